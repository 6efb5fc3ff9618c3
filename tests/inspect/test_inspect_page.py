"""`longstream inspect` as it is typed: its files, its page in a browser, what it refuses; and what the trainer logs."""

import json
from pathlib import Path

import numpy as np
import pytest

from longstream.cli import main
from longstream.train.layer_scalars import SCALARS
from longstream.train.run import train
from longstream.train.rundir import RunDirectory
from longstream.train.settings import build_settings
from tests.browser import open_page
from tests.train.runs import SMALL, metrics, small, write_text
from tests.train.sequence_files import labeled, small_sequences

COPYING = "copying:num_tokens=2,delay=4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def text_run(folder: Path) -> Path:
    """HGRN2 on text, 24 logged steps."""
    text = write_text(folder / "text.txt")
    train(small(text, steps=24, eval_every=12, save_every=0, sample_tokens=0), folder / "hgrn2")
    return folder / "hgrn2"


def train_text(folder: Path, name: str, **changes: object) -> Path:
    text = write_text(folder / "text.txt")
    settings = small(text, name=name, steps=2, eval_every=0, save_every=0, sample_tokens=0, **changes)
    train(settings, folder / name)
    return folder / name


def read(run: Path) -> dict:
    return json.loads((run / "inspect" / "inspect.json").read_text())


def test_a_run_of_text(text_run: Path, capsys):
    assert main(["inspect", str(text_run), "--sequences", "3"]) == 0
    said = capsys.readouterr().out
    for sign in ("lost long-range recall", "cost out of proportion", "instability"):
        assert f"{sign}: " in said
    found = read(text_run)
    assert found["inputs"] == [3, 64]  # twice the 32 of training
    assert "text.txt" in found["data"]
    assert [each["layer"] for each in found["gates"]] == [0, 1]
    assert len(found["gates"][1]["lasting"]) == 16
    assert found["gates"][1]["forced"] == pytest.approx([2] * 16, rel=0.1)
    assert all(now >= forced for now, forced in zip(found["gates"][1]["low"], found["gates"][1]["forced"], strict=True))
    assert found["ranks"][0]["after"][-1] == 64
    assert found["reach"]["before"][-1] == 49
    assert found["filters"] == []
    written = sorted(path.name for path in (text_run / "inspect").iterdir())
    assert written == sorted(
        ["gates.png", "inspect.html", "inspect.json", "ranks.png", "reach.png", "saturation.png", "training.png"]
    )


def test_the_page_in_a_browser(text_run: Path):
    page_file = text_run / "inspect" / "inspect.html"
    if not page_file.exists():
        assert main(["inspect", str(text_run), "--sequences", "3"]) == 0
    with open_page(page_file, width=400, dark=True) as page:
        heads = page.locator("h2").all_inner_texts()
        assert heads == [
            "Signs of failure",
            "How long the gates remember",
            "How much of the state is used",
            "How far back a changed token still moves the output",
            "What the memory costs",
            "Training",
        ]
        assert page.locator("p.verdict").count() == 3
        sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.clientWidth])")
        assert len(sizes) == 5
        assert all(natural > 500 and 200 < shown <= 400 for natural, shown in sizes)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_nothing_is_overwritten_unasked(text_run: Path, capsys):
    out = text_run.parent / "twice"
    assert main(["inspect", str(text_run), "--sequences", "1", "--length", "8", "--out", str(out)]) == 0
    first = (out / "inspect.json").read_bytes()
    assert main(["inspect", str(text_run), "--out", str(out)]) == 2
    assert "already holds inspect.html" in capsys.readouterr().err
    assert (out / "inspect.json").read_bytes() == first
    mine = out.parent / "figures"
    mine.mkdir()
    (mine / "filters.png").write_bytes(b"mine")
    assert main(["inspect", str(text_run), "--out", str(mine)]) == 2
    assert (mine / "filters.png").read_bytes() == b"mine"
    assert main(["inspect", str(text_run), "--sequences", "1", "--length", "8", "--out", str(mine), "--overwrite"]) == 0
    assert (mine / "filters.png").read_bytes() == b"mine"  # a text model of HGRN2 draws none
    assert main(["inspect", str(text_run), "--sequences", "2", "--length", "8", "--out", str(out), "--overwrite"]) == 0
    assert json.loads((out / "inspect.json").read_text())["inputs"] == [2, 8]


def test_other_text_by_file(text_run: Path, tmp_path: Path):
    other = tmp_path / "other.txt"
    other.write_bytes(b"abcdefghij" * 30)
    out = tmp_path / "out"
    assert main(["inspect", str(text_run), "--data", str(other), "--out", str(out), "--length", "40"]) == 0
    found = json.loads((out / "inspect.json").read_text())
    assert found["data"] == str(other)
    assert found["inputs"] == [7, 40]  # all there are of 301 tokens


def test_a_run_of_hyena(folder: Path):
    run = train_text(folder, "hyena")
    assert main(["inspect", str(run), "--sequences", "2"]) == 0
    found = read(run)
    assert found["inputs"] == [2, 32]  # its filters are no longer
    assert [each["taps"] for each in found["filters"]] == [32, 32]
    assert len(found["filters"][0]["hankel"]) == 16
    assert (found["gates"], found["ranks"]) == ([], [])
    html = (run / "inspect" / "inspect.html").read_text()
    assert "Hankel" in html
    assert "Hyena has no forget gates, and its state is the past itself: layers 0, 1." in html
    assert (run / "inspect" / "filters.png").stat().st_size > 10_000


def test_a_hybrid_says_what_attention_has_not(folder: Path):
    run = train_text(folder, "hybrid", attention_every=2, attention_window=8)
    assert main(["inspect", str(run), "--sequences", "2"]) == 0
    found = read(run)
    assert [each["layer"] for each in found["gates"]] == [0]
    assert found["cost"]["mixers"] == ["HGRN2", "SlidingWindowAttention"]
    html = (run / "inspect" / "inspect.html").read_text()
    assert "Attention has no gates, no state of a fixed rank and no filters: layer 1." in html


def test_a_run_of_sequences(tmp_path: Path):
    run = tmp_path / "run"
    train(small_sequences(labeled(tmp_path / "data.npz"), "classify", name="hgrn", num_hidden_layers=2), run)
    assert main(["inspect", str(run)]) == 0
    found = read(run)
    assert found["unit"] == "frames"
    assert found["inputs"][2] == 2
    assert [each["most"] for each in found["ranks"]] == [8, 8]
    assert "frame" in (run / "inspect" / "inspect.html").read_text()


def test_a_model_that_looks_both_ways(tmp_path: Path):
    run = tmp_path / "run"
    settings = small_sequences(labeled(tmp_path / "data.npz"), "classify", name="hgrn", direction="bidirectional")
    train(settings, run)
    assert main(["inspect", str(run)]) == 0
    found = read(run)
    assert (found["reach"], found["ranks"]) == (None, [])
    assert len(found["gates"]) == 1
    assert found["signs"][0]["found"] is None


def test_a_run_of_a_token_task(tmp_path: Path, capsys):
    run = tmp_path / "run"
    changes = {"data.task": "tokens", "data.generator": COPYING, "train.steps": 2, "data.validation_examples": 8}
    kept = {key: value for key, value in SMALL.items() if key != "data.seq_len"}
    train(build_settings(kept, changes), run)
    assert main(["inspect", str(run), "--sequences", "5"]) == 0
    found = read(run)
    assert COPYING.partition(":")[0] in found["data"]
    assert 0 <= found["accuracy"] <= 1
    assert "guessing" in found["signs"][0]["measured"]
    capsys.readouterr()
    assert main(["inspect", str(run), "--data", "builtin", "--overwrite"]) == 2
    assert "--data is for runs of frames and text" in capsys.readouterr().err


def test_what_is_refused(folder: Path, text_run: Path, capsys):
    llama, out = train_text(folder, "llama"), str(folder / "nothing")
    asked = {
        (str(llama),): "is a llama model; gates, states and filters are shown of hgrn, hgrn2, hyena and hybrid",
        (str(folder / "none"),): "no such run directory",
        (str(text_run), "--length", "100000"): "length must be at most",
        (str(text_run), "--length", "1"): "length must be >= 2, or 0, got 1",
        (str(text_run), "--sequences", "0"): "sequences must be >= 1, got 0",
        (str(text_run), "--generator", "mqar"): "--generator is for runs of token tasks",
        (str(text_run), "--data", str(folder / "no.txt")): "no file",
        (str(text_run), "--lenght", "8"): "unknown option '--lenght'; did you mean '--length'?",
    }
    capsys.readouterr()  # the log of the training
    for words, message in asked.items():
        assert main(["inspect", *words, "--out", out]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1
    assert not Path(out).exists()


def test_the_trainer_logs_each_layer(text_run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = metrics(text_run, "layers")
    assert [row["step"] for row in rows] == [12, 24]
    for row in rows:
        assert all(len(row[name]) == 2 and np.isfinite(row[name]).all() for name in SCALARS)
        assert row["time_scale_mean"][1] > 2  # what the bound forces
    events = EventAccumulator(str(text_run / "tensorboard")).Reload()
    logged = {name: [event.value for event in events.Scalars(f"layers/{name}/layer_1")] for name in SCALARS}
    for name in SCALARS:
        assert logged[name] == pytest.approx([row[name][1] for row in rows], rel=1e-5)


def test_an_overwritten_run_loses_its_inspection(tmp_path: Path):
    run, settings = RunDirectory(tmp_path / "run"), small(write_text(tmp_path / "text.txt"))
    run.create(settings, {})
    (run.path / "inspect").mkdir()
    (run.path / "inspect" / "inspect.html").write_text("of the run before")
    run.create(settings, {})
    assert not (run.path / "inspect").exists()
