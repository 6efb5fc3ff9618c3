"""The programs of examples/ run, reduced and headless; what they promise to notice, they notice."""

import importlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import longstream
from longstream.stream import Stream
from tests.documents import ROOT

BOT = ("--headless", "--hidden-size", 16, "--layers", 1, "--minutes", 0.002, "--seconds", 1)


@pytest.fixture
def example(monkeypatch, tmp_path):
    """A function that imports an example by name, as if its folder were that of the program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


def run(monkeypatch, capsys, module, *arguments):
    """(exit code, what was printed) of an example's main."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    try:
        code = module.main()
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out + printed.err


# the game


def test_a_frame_has_the_numbers_it_says(example):
    arena = example("arena")
    recording = arena.record(3, 200, seed=1)
    assert recording.frames.shape == (3, 200, 287)
    assert recording.frames.dtype == np.float32
    assert np.isfinite(recording.frames).all()
    assert recording.actions.shape == (3, 200, 2)
    again = arena.record(3, 200, seed=1)
    assert np.array_equal(again.frames, recording.frames)
    assert not np.array_equal(arena.record(3, 200, seed=2).frames, recording.frames)


def test_only_memory_tells_the_answer(example):
    arena = example("arena")
    script = arena.record(16, 300, seed=3).script
    signs, flags = script.lamps[..., :4] > 0, script.lamps[..., 4] > 0
    assert script.asked.sum() >= 32
    assert not signs[flags].any()  # no sign is out while a flag is up
    assert np.array_equal(flags, script.answers > 0)
    for match, frame in np.argwhere(script.asked):
        shown = signs[match, :frame].any(-1).nonzero()[0]
        assert frame - shown[-1] > 20
        assert signs[match, shown[-1]].argmax() + 1 == script.answers[match, frame]


@pytest.mark.parametrize("seed", range(4))
def test_the_connection_ends_with_what_truly_happened(example, seed):
    arena = example("arena")
    recording = arena.record(1, 150, seed=seed)
    shown, backs = [], []
    for arrival in arena.connection(recording, seed):
        assert len(arrival.frames) == arrival.back + 1
        del shown[len(shown) - arrival.back :]
        shown.extend(arrival.frames)
        backs.append(arrival.back)
    assert len(backs) == 150
    assert np.array_equal(np.stack(shown), recording.frames[0])
    assert sum(back > 0 for back in backs) >= 3
    assert max(backs) <= arena.MOST_LATE


# the bot


@pytest.mark.slow
def test_the_bot_trains_plays_and_is_kept(example, monkeypatch, capsys):
    bot = example("realtime_bot")
    code, printed = run(monkeypatch, capsys, bot, *BOT)
    assert code == 0, printed
    assert "training edifice-hgrn" in printed
    assert "60 of 60" in printed
    assert "all 60 outputs equal those of a stream without rollbacks, bit for bit" in printed
    assert Path("realtime_bot-edifice-hgrn.safetensors").is_file()
    for weights in ("float32", "int8"):
        code, printed = run(monkeypatch, capsys, bot, *BOT, "--weights", weights)
        assert code == 0, printed
        assert "training" not in printed.replace("--retrain", "")
        assert f"{weights} weights, backend native" in printed
    code, printed = run(monkeypatch, capsys, bot, *BOT, "--seed", 1)
    assert code == 2
    assert "holds another bot (seed is 0, not 1)" in printed
    Path("realtime_bot-edifice-hgrn.safetensors").write_bytes(b"no bot")
    code, printed = run(monkeypatch, capsys, bot, *BOT)
    assert code == 2
    assert "is damaged or no bot of this example" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", [info.name for info in longstream.list_models()])
def test_any_model_plays(example, monkeypatch, capsys, name):
    size = {"hybrid": ("--layers", 2)}.get(name, ())
    code, printed = run(monkeypatch, capsys, example("realtime_bot"), *BOT, "--seconds", 0.5, "--model", name, *size)
    assert code == 0, printed
    assert "all 30 outputs equal" in printed


@pytest.mark.parametrize("wrong_by", [1, 10])
def test_a_rollback_that_goes_wrong_is_noticed(example, monkeypatch, capsys, wrong_by):
    rollback = Stream.rollback
    monkeypatch.setattr(Stream, "rollback", lambda self, frames: rollback(self, max(frames - wrong_by, 0)))
    code, printed = run(monkeypatch, capsys, example("realtime_bot"), *BOT)
    assert code == 1
    assert "outputs differ from those without rollbacks" in printed


def test_the_screen_shows_what_is_counted(example):
    screen, arena = example("realtime_screen"), example("arena")
    recording = arena.record(1, 5, seed=0)
    tally = screen.Tally(300, "a model", 1000, 2000)
    for shown in (False, True):
        if shown:
            tally.latencies, tally.work = [0.5, 1.0, 20.0], [0.4, 0.9, 19.0]
            tally.rollbacks, tally.replayed, tally.last_rollback = 1, 4, (4, 2, 1.5)
        panel = screen.screen(tally, recording.script.start, (3, 2), recording.script.lamps[0, 0])
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(panel)
        text = console.export_text()
    assert tally.misses == 1
    for words in (
        "a model",
        "p50 1.00, p99",
        "worst 20.00 ms",
        "1 (more than",
        "4 at frame 2, 1.50 ms",
        "jump presses 2",
    ):
        assert words in text


# the sensor


@pytest.fixture
def series(tmp_path):
    """A beat of 100 samples a second with a little noise."""
    time = np.arange(9_000)
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    path = tmp_path / "series.npy"
    np.save(path, (np.exp(-(((time % 83) - 40) ** 2) / 20) + noise).astype(np.float32))
    return path


SENSOR = ("--rate", 100, "--minutes", 0.002, "--hidden-size", 16)


def test_the_sensor_is_watched(example, monkeypatch, capsys, series):
    sensor = example("sensor")
    code, printed = run(monkeypatch, capsys, sensor, series, *SENSOR, "--picture", "watched.png")
    assert code == 0, printed
    assert "backend native" in printed
    assert "not a bit differs" in printed
    assert "half seconds ranked right" in printed
    assert Path("watched.png").read_bytes().startswith(b"\x89PNG")
    code, printed = run(monkeypatch, capsys, sensor, series, *SENSOR, "--weights", "int8")
    assert code == 0, printed
    code, printed = run(monkeypatch, capsys, sensor, series, *SENSOR, "--picture", "watched.png")
    assert code == 2
    assert "exists already" in printed


def test_a_state_that_was_not_restored_is_noticed(example, monkeypatch, capsys, series):
    sensor, load = example("sensor"), longstream.State.load

    def other(path):
        state = load(path)
        return state.with_tensors([t * (1 + 1e-6) if t.is_floating_point() else t for t in state.tensors()])

    monkeypatch.setattr(longstream.State, "load", staticmethod(other))
    code, printed = run(monkeypatch, capsys, sensor, series, *SENSOR)
    assert code == 1
    assert "outputs after the state was restored differ" in printed


def test_what_is_disturbed_is_ranked_above_what_is_not(example, series):
    anomalies = example("anomalies")
    values = np.load(series)
    disturbed, events = anomalies.disturb(values[4_000:], 100, seed=0)
    assert {event.kind for event in events} == set(anomalies.KINDS)
    lost = sum(event.kind == "samples lost" for event in events)
    assert len(disturbed) == 5_000 - 15 * lost
    watched = np.concatenate([values[2_000:4_000], disturbed])
    weights = anomalies.fit_linear(values[:2_000], 2)
    before = events[4].start  # nothing is lost before: what would have come without disturbances is known
    truly = values[2_000 : 4_002 + before] + np.random.default_rng(1).normal(0, 0.01, 2_002 + before)
    medians = np.stack([truly[1:-1], truly[2:]], axis=1)
    linear = anomalies.judge(anomalies.linear(watched, weights), watched, 2_000, events, 100, 2)
    last = anomalies.judge(anomalies.last_value(watched, 2), watched, 2_000, events, 100, 2)
    knows = anomalies.judge((medians, np.ones_like(medians)), watched[: 2_000 + before], 2_000, events[:4], 100, 2)
    assert [knows.found[kind] for kind in ("upside down", "noise", "spike")] == [1, 1, 1]  # flat where it is flat: no
    assert knows.ranking > 0.95
    assert linear.ranking > last.ranking


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.npy",), "No such file"),
        (("short.npy",), "must hold 7200 or more finite samples, got 10"),
        (("noise.csv",), "noise.csv is no array and no table of numbers"),
        (("noise.npz",), "noise.npz is no array and no table of numbers"),
        (("series.npy", "--channel", "1"), r"--channel must lie in [0, 1), got 1"),
        (("series.npy", "--minutes", "0"), "--minutes must be > 0"),
    ],
)
def test_bad_input_is_refused(example, monkeypatch, capsys, series, arguments, words):
    np.save("short.npy", np.zeros(10, dtype=np.float32))
    for name in ("noise.csv", "noise.npz"):
        Path(name).write_bytes(np.random.default_rng(0).bytes(1000))
    code, printed = run(monkeypatch, capsys, example("sensor"), *arguments)
    assert code == 2
    assert words in printed


def test_tables_are_read(example, series):
    sensor = example("sensor")
    values = np.load(series)
    np.savez("series.npz", X=values[None, :, None])
    Path("series.csv").write_text("time,value\n" + "\n".join(f"{i},{v:.6f}" for i, v in enumerate(values)))
    assert np.array_equal(sensor.read_series(Path("series.npz"), 0), values)
    assert np.allclose(sensor.read_series(Path("series.csv"), 1), values, atol=1e-5)
