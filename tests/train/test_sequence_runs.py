"""Runs of classify, regress and forecast from files to reports, and what they refuse."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from longstream.cli import main
from longstream.sequences import SequenceModel, read_sequences
from longstream.train.callbacks import RunClock
from longstream.train.run import train
from longstream.train.rundir import RunDirectory
from longstream.train.sequence_models import build_sequence_model, network_options
from longstream.train.sequence_task import SequenceTask, read_parts
from longstream.train.settings import build_settings
from longstream.train.trainer import Best
from tests.test_cli import fails
from tests.train.runs import flags, losses, metrics
from tests.train.sequence_files import labeled, numbered, small_sequences, waves


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classification made by the command; nobody changes it."""
    folder = tmp_path_factory.mktemp("classified")
    settings = small_sequences(labeled(folder / "data.npz"), "classify", steps=24, eval_every=12, save_every=12)
    assert main(["train", *flags(settings), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_learns_and_reports(finished: Path):
    for name in ("settings.toml", "data.json", "metrics.jsonl", "loss.png", "config.json", "report.md"):
        assert (finished / name).is_file(), name
    assert not (finished / "samples").exists()
    for name in ("confusion.png", "loss.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((finished / "report.json").read_text())
    assert report["task"] == "classify"
    assert report["accuracy"] == 1.0
    assert sum(map(sum, report["confusion"])) == report["sequences"] == 10  # a group
    last = metrics(finished, "validation")[-1]
    assert last["accuracy"] == report["accuracy"]
    assert last["loss"] == report["loss"]
    assert losses(finished)[0][1] > 0.5 > losses(finished)[-1][1]
    rows = metrics(finished)
    frames = np.load(finished.parent / "data.npz")["lengths"]
    assert 24 * 8 * frames.min() < rows[-1]["tokens"] < 24 * 8 * frames.max()


def test_the_saved_model_is_the_one_of_the_report(finished: Path, capsys: pytest.CaptureFixture[str]):
    report = (finished / "report.json").read_text()
    model = SequenceModel.from_pretrained(finished)
    _, held_out, _ = read_parts(RunDirectory(finished).read_settings().data)
    assert held_out is not None
    assert model.config.classes == ["down", "up"]
    assert model.config.indicators == [1]
    (finished / "report.json").unlink()
    assert main(["evaluate", str(finished)]) == 0
    assert (finished / "report.json").read_text() == report
    assert "# Classification of 10 held-out sequences" in capsys.readouterr().out


def test_evaluate_other_files(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = labeled(tmp_path / "other.npz", 12)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    checkpoint = finished / "checkpoints" / "checkpoint-24"
    assert main(["evaluate", str(finished), "--data", str(other)]) == 0
    shown = capsys.readouterr().out
    assert "12 held-out sequences" in shown
    assert main(["evaluate", str(checkpoint), "--data", str(other), "--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.splitlines()[1:20] == shown.splitlines()[1:20]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "confusion.png",
        "report.json",
        "report.md",
    ]
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    again = ("evaluate", str(finished), "--data", str(other), "--out", str(tmp_path / "report"))
    assert "already holds a run or report" in fails(capsys, *again)
    unseen = labeled(tmp_path / "unseen.npz", 12, classes=("down", "level", "up"))
    message = fails(capsys, "evaluate", str(finished), "--data", str(unseen))
    assert "never seen in training: ['level']" in message
    one = tmp_path / "one.npz"
    np.savez(one, X=np.zeros((3, 5, 1), np.float32), y=["up", "up", "down"])
    assert "must have the channels ['0', '1'], got ['0']" in fails(
        capsys, "evaluate", str(finished), "--data", str(one)
    )


def test_evaluate_refuses_data_that_have_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = labeled(tmp_path / "data.npz")
    train(small_sequences(data, "classify", steps=1), tmp_path / "run")
    labeled(data, 42)
    capsys.readouterr()
    assert "the data have changed since this run began" in fails(capsys, "evaluate", str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"the data have changed since this run began \(\d+ \+ \d+ frames then, \d+"):
        train(small_sequences(data, "classify", steps=2), tmp_path / "run", resume=True)


def test_info_and_generate(finished: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(finished)]) == 0
    shown = capsys.readouterr().out
    model = SequenceModel.from_pretrained(finished)
    assert f"{model.num_parameters():,}" in shown
    assert f"{model.init_state(1).nbytes:,} bytes per sequence, however long" in shown
    assert f"PooledState {4 * model.features.output_size} bytes, and 8 of the position" in shown
    for word in ("classify; one of 2 classes: down, up", "2: 0, 1", "allowed in 1", "hidden_size=8", "train.steps=24"):
        assert word in shown
    assert "is a model of sequences that are not text" in fails(capsys, "generate", str(finished))


@pytest.mark.parametrize("task", ["classify", "forecast"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Step 3 is where an evaluation is put off; dropout draws from the random state that is kept."""
    data = labeled(tmp_path / "data.npz") if task == "classify" else waves(tmp_path / "waves.csv")
    settings = small_sequences(data, task, dropout=0.2, **({"seq_len": 16} if task == "forecast" else {}))
    train(settings, tmp_path / "whole")
    on_step_end = RunClock.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return on_step_end(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(RunClock, "on_step_end", interrupted)
        assert train(settings, tmp_path / "run").interrupted_by == signal.SIGINT
    assert not (tmp_path / "run" / "report.json").exists()
    train(settings, tmp_path / "run", resume=True)
    for kind in ("train", "validation"):
        assert losses(tmp_path / "run", kind) == losses(tmp_path / "whole", kind)
    weights = [safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    reports = [(tmp_path / name / "report.json").read_text() for name in ("run", "whole")]
    assert reports[0] == reports[1]


def test_patience_ends_a_run_with_its_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ranks that are told: the second is the best, and two later ones are not better."""
    ranks = iter([(0.5, -1.0), (0.7, -1.0), (0.7, -1.1), (0.6, -0.1), (0.9, 0.0)])
    evaluate = SequenceTask.evaluate
    monkeypatch.setattr(SequenceTask, "evaluate", lambda self, *args: evaluate(self, *args)._replace(rank=next(ranks)))
    settings = small_sequences(
        labeled(tmp_path / "data.npz"), "classify", steps=50, eval_every=2, save_every=0, keep=1, patience=2
    )
    result = train(settings, tmp_path / "run")
    assert (result.step, result.kept_step) == (8, 4)
    run = RunDirectory(tmp_path / "run")
    assert [path.name for path in run.list_checkpoints()] == ["checkpoint-4", "checkpoint-8"]
    kept = run.path / "model.safetensors"
    best = (run.list_checkpoints()[0] / "model.safetensors").read_bytes()
    assert kept.read_bytes() == best
    report = json.loads(run.report.read_text())
    assert report["loss"] == metrics(run.path, "validation")[1]["loss"]
    assert not train(settings, run.path, resume=True).trained
    more = replace(settings, train=replace(settings.train, patience=3, steps=10))
    assert train(more, run.path, resume=True).step == 10
    newest = run.list_checkpoints()[-1] / "model.safetensors"
    assert kept.read_bytes() == newest.read_bytes() != best


def test_best_is_the_first_of_equals():
    best = Best()
    assert best.take((0.5, -2.0), 10)
    assert not best.take((0.5, -2.0), 20)
    assert best.waited == 1
    assert best.take((0.5, -1.0), 30)
    assert (best.step, best.waited) == (30, 0)


def test_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = numbered(tmp_path / "data.npz")
    settings = small_sequences(data, "regress", steps=60, eval_every=0, save_every=0, name="gru")
    train(settings, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["targets"]["target 0"]["r2"] > 0.5
    assert (tmp_path / "run" / "regression.png").is_file()
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "regress; for each sequence: target 0, target 1" in capsys.readouterr().out


def test_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = {"seq_len": 30, "horizon": 4, "season": 10, "stride": 2, "target_channels": ["one"], "eval_every": 0}
    settings = small_sequences(waves(tmp_path / "waves.csv"), "forecast", steps=60, save_every=0, **changes)
    train(settings, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["origins"] == 10
    assert report["errors"]["model"]["mae"] < report["errors"]["naive"]["mae"]
    assert report["errors"]["seasonal_naive"]["mae"] == pytest.approx(0, abs=1e-3)
    assert len(report["by_horizon"]["model"]["mae"]) == 4
    for name in ("horizons.png", "forecasts.png", "loss.png"):
        assert (tmp_path / "run" / name).is_file()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "waves.csv"), "--stride", "20"]) == 0
    assert "Forecasts of 4 frames after 10 frames" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "forecast; after each frame the next 4 of: one" in capsys.readouterr().out


def test_an_overwritten_run_loses_its_report(tmp_path: Path):
    waves(tmp_path / "waves.csv")
    train(small_sequences(tmp_path / "waves.csv", "forecast", steps=1, seq_len=8), tmp_path / "run")
    settings = small_sequences(labeled(tmp_path / "data.npz"), "classify", steps=1, validation_fraction=0)
    result = train(settings, tmp_path / "run", overwrite=True)
    assert result.measured is None
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"report.json", "report.md", "forecasts.png", "horizons.png", "confusion.png"}


def test_what_is_held_out_is_checked_before_training(tmp_path: Path):
    data = labeled(tmp_path / "data.npz")
    unseen = labeled(tmp_path / "unseen.npz", 12, classes=("down", "level", "up"))
    gap = tmp_path / "gap.npz"  # training misses values in the second channel only
    np.savez(gap, X=np.full((2, 5, 2), np.nan), y=["up", "down"])
    for file, message in (
        (unseen, r"never seen in training: \['level'\]"),
        (gap, r"held out misses values in the channels \['0'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            train(small_sequences(data, "classify", validation_files=[str(file)]), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    settings = small_sequences(waves(tmp_path / "waves.csv"), "forecast", seq_len=8, horizon=10_000)
    with pytest.raises(ValueError, match=r"horizon must be less than the .* frames of the longest series"):
        train(settings, tmp_path / "run")


def test_groups_and_files_are_held_out(tmp_path: Path):
    data = labeled(tmp_path / "data.npz")
    parts = read_parts(small_sequences(data, "classify", hold_out_groups=["b", "d"]).data)
    assert parts[0].groups is not None
    assert parts[1] is not None
    assert set(parts[0].groups) == {"a", "c"}
    assert set(parts[1].groups if parts[1].groups is not None else ()) == {"b", "d"}
    other = labeled(tmp_path / "other.npz", 6)
    first, second, _ = read_parts(small_sequences(data, "classify", validation_files=[str(other)]).data)
    assert second is not None
    assert (len(first), len(second)) == (40, 6)
    whole = read_sequences([data], task="classify")
    assert first.sha256() == whole.sha256()


def test_class_weights_change_what_is_learned(tmp_path: Path):
    data = labeled(tmp_path / "data.npz", 41)
    for name, weights in (("even", True), ("plain", False)):
        train(small_sequences(data, "classify", class_weights=weights, steps=1), tmp_path / name)
    assert losses(tmp_path / "even") != losses(tmp_path / "plain")


@pytest.mark.parametrize("name", ["hgrn2", "hgrn", "hyena", "hybrid", "edifice-hgrn", "edifice-hyena", "gru", "llama"])
def test_every_model_of_a_size(name: str, tmp_path: Path):
    data = labeled(tmp_path / "data.npz")
    settings = small_sequences(data, "classify", name=name, params="20k", steps=1)
    model = build_sequence_model(settings, read_sequences([data], task="classify"), None)
    assert 15_000 < model.num_parameters() < 25_500  # the head is not counted, and no size is to the point
    out = model(torch.zeros(2, 7, 2), labels=torch.tensor([0, 1]))
    assert torch.isfinite(out.loss)


def test_options_of_the_settings_reach_the_network():
    wide = {"model.recurrence_ratio": 2, "model.use_short_conv": True, "model.dropout": 0.25, "data.task": "classify"}
    for name, expected in {
        "hgrn": {"expand_ratio": 2, "conv_size": 4, "dropout": 0.25, "window_size": 99},
        "hgrn2": {"expand_ratio": 64, "conv_size": 4},
        "hyena": {"order": 2, "dropout": 0.25, "window_size": 99},
        "hybrid": {"attention_every": 4, "window_size": 99},
        "lstm": {"expand_ratio": 2, "hidden_ratio": 4},
        "edifice-hgrn": {"hidden_size": 256, "num_layers": 4, "dropout": 0.25},
        "mamba": {"hidden_size": 256, "num_layers": 4},
    }.items():
        options = network_options(build_settings(wide, {"model.name": name}).model, 99)
        assert expected.items() <= options.items(), name


def test_images_as_grids(tmp_path: Path):
    X = np.random.default_rng(0).normal(size=(20, 4, 5, 1)).astype(np.float32)
    np.savez(tmp_path / "images.npz", X=X, y=np.arange(20) % 2)
    settings = small_sequences(
        tmp_path / "images.npz", "classify", name="hgrn", direction="2d", as_grid=True, steps=2, eval_every=0
    )
    train(settings, tmp_path / "run")
    assert SequenceModel.from_pretrained(tmp_path / "run").config.is_grid
    with pytest.raises(ValueError, match="chunk must be 0 here, got 3"):
        train(replace(settings, train=replace(settings.train, chunk=3)), tmp_path / "other")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_chunks_as_long_as_the_sequences_change_nothing(pooling: str, tmp_path: Path):
    data = labeled(tmp_path / "data.npz")
    for name, chunk in (("whole", 0), ("chunk", 12), ("cut", 3)):
        train(small_sequences(data, "classify", steps=4, chunk=chunk, pooling=pooling), tmp_path / name)
    whole, chunk, cut = (losses(tmp_path / name) for name in ("whole", "chunk", "cut"))
    assert chunk == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in whole]
    assert cut[0][1] == pytest.approx(whole[0][1], rel=1e-5)  # the loss is exact, and then the gradient is another
    assert cut[-1][1] != pytest.approx(whole[-1][1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "bpe:300"}, "DataSettings.tokenizer must be left out with task classify: it is for next-token"),
        ({"horizon": 3}, "horizon must be left out with task classify: it is for forecast"),
        ({"target_columns": ["x"]}, "target_columns must be left out with task classify"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"patience": 1, "validation_fraction": 0}, "patience must be 0 where nothing is held out"),
        ({"hold_out_groups": ["a"], "validation_files": ["x.npz"]}, "hold_out_groups must be left out with validation"),
        ({"validation_labels_file": "y.csv"}, "validation_labels_file must be left out without validation_files"),
        ({"hold_out_groups": ["z"]}, "hold_out_groups must be of 'a', 'b', 'c', 'd', got 'z'"),
        ({"direction": "2d"}, "direction must be causal or 2d_parallel or 2d_series for hgrn2, got '2d'"),
        ({"direction": "2d_series"}, "data are series, which need a direction that is not 2d"),
        ({"name": "gru", "direction": "bidirectional"}, "direction must be causal for gru"),
        ({"name": "hgrn", "direction": "bidirectional", "chunk": 3}, "chunk must be 0 here, got 3: --chunk needs"),
        ({"params": "1"}, "no hgrn2 of that size"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict, message: str, tmp_path: Path):
    data = labeled(tmp_path / "data.npz")
    with pytest.raises(ValueError, match=message):
        train(small_sequences(data, "classify", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_files_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ("--out", str(tmp_path / "run"))

    def refused(*words: str) -> str:
        return fails(capsys, "train", *words, *out)

    (tmp_path / "text.md").write_text("words")
    assert "is of no kind that longstream reads" in refused("--task", "classify", "--data", str(tmp_path / "text.md"))
    assert "no file" in refused("--task", "classify", "--data", str(tmp_path / "none.npz"))
    np.savez(tmp_path / "one.npz", X=np.zeros((1, 4, 1)), y=[1])
    assert "one sequence" in refused("--task", "classify", "--data", str(tmp_path / "one.npz"))
    np.savez(tmp_path / "same.npz", X=np.zeros((4, 4, 1)), y=[1, 1, 1, 1])
    assert "two classes or more" in refused("--task", "classify", "--data", str(tmp_path / "same.npz"))
    np.savez(tmp_path / "bare.npz", X=np.zeros((4, 4, 1)))
    assert "must have labels" in refused("--task", "classify", "--data", str(tmp_path / "bare.npz"))
    assert "task must be one of next-token, classify" in refused("--task", "cluster", "--data", "x")
    message = refused("--model", "edifice-hgrn", "--data", str(tmp_path / "text.md"))
    assert "ModelSettings.name must be a model of text" in message
    assert not (tmp_path / "run").exists()
