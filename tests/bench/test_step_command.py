"""`longstream bench step` as it is typed: its help, what it refuses, what it leaves behind."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from longstream.bench import step_memory, step_plot, step_report
from longstream.bench.step_memory import Allocations
from longstream.bench.step_run import StepRow
from longstream.cli import main

SIZES = ["--model", "edifice-hgrn", "--embed-dim", "5", "--hidden-size", "8", "--layers", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the command; nobody changes them."""
    out = tmp_path_factory.mktemp("bench") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_memory, "why_not", lambda: None)
        counted = {"Stream, float32": Allocations(0.0, 9.0, 64), "eager step": Allocations(50.0, 100.0, 64)}
        patch.setattr(step_memory, "measure_allocations", lambda *given: counted)
        words = [*SIZES, "--peers", "eager,gru,window", "--quick", "--steps", "40", "--rate", "2000", "--window", "4"]
        assert main(["bench", "step", *words, "--out", str(out)]) == 0
    return out


def test_files(folder: Path):
    out = folder
    written = json.loads((out / "results.json").read_text())
    assert written["machine"]["versions"]["torch"]
    rows = written["rows"]
    timed = [row for row in rows if row["p50"]]
    assert {"eager step", "window anew", "nn.GRU"} <= {row["name"] for row in timed}
    assert {row["rate"] for row in timed} == {0.0, 2000.0}
    for row in timed:
        assert row["error"] < 1e-3
        assert row["p50"] <= row["p99"] <= row["p999"] <= row["worst"]
        assert len(row["slowest"]) == row["steps"] <= 42
    assert {row["allocations"] for row in rows if row["name"] == "eager step"} == {50.0}
    with (out / "results.csv").open() as stream:
        assert len([*csv.DictReader(stream)]) == len(rows)
    text = (out / "results.md").read_text()
    for said in (
        "frames at 2000 a second",
        "budget 0.50 ms",
        "one after another; microseconds",
        "gc.freeze",
        "x limit",
    ):
        assert said in text
    (picture,) = out.glob("*.png")
    assert f"]({picture.name})" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not [*out.glob(".*")]


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    try:
        code = main(["bench", *words])
    except SystemExit as error:  # argparse
        code = error.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert lines[-1].startswith("longstream: error: ")
    return lines[-1].removeprefix("longstream: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "lstm"), "--model must be one of hgrn, hgrn2, hyena"),
        (("--hidden-size", "0"), "--hidden-size must be an integer >= 1, got 0"),
        (("--steps", "-5"), "--steps must be an integer >= 1, got -5"),
        (("--batch", "0"), "--batch must be an integer >= 1, got 0"),
        (("--rate", "-1"), "--rate must be frames a second between 0 and 100000, got -1"),
        (("--rate", "nan"), "--rate must be frames a second between 0 and 100000, got nan"),
        (("--weights", "int4"), "--weights must be among float32, bfloat16, int8, got 'int4'"),
        (("--peers", "jax"), "--peers must be among eager, window"),
        (("--threads", "1000000"), "--threads must be at most"),
        (("--threads", "two"), "--threads must be positive integers with commas between them, got 'two'"),
        (("--pin", "99999"), "--pin must be among the CPUs"),
        (("--pin", "0", "--no-pin"), "--pin and --no-pin exclude each other"),
        (("--layer=2",), "unknown option '--layer=2'; did you mean '--layers'?"),
        (("--layers", "x"), "invalid int value: 'x'"),
    ],
)
def test_refusals(words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert message in fails(capsys, "step", *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_built_is_told_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ("--model", "hybrid", "--layers", "1", "--out", str(tmp_path / "out"))
    assert "num_layers must be >= 2" in fails(capsys, "step", *words)
    (tmp_path / "run").mkdir()
    words = ("--model", str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    assert "holds no trained model" in fails(capsys, "step", *words)
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten_unasked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = folder
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert "already holds results" in fails(capsys, "step", "--out", str(out))
    assert "holds no results of bench" in fails(capsys, "limits", "--out", str(out), "--overwrite")
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "letter.txt").write_text("dear")
    for more in ([], ["--overwrite"]):
        assert "holds no results of bench step" in fails(capsys, "step", "--out", str(tmp_path), *more)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "worker.log").write_text("of the other bench")
    assert "holds no results of bench step" in fails(capsys, "step", "--out", str(tmp_path), "--overwrite")


def test_missing_matplotlib_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    message = fails(capsys, "step", "--out", str(tmp_path / "out"))
    assert message.startswith("bench step needs more")
    assert "pip install 'longstream[bench]'" in message


@pytest.mark.parametrize("verb", ["step", "decode"])
def test_help_fits_a_screen(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["bench", verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"usage: longstream bench {verb} [options]"
    assert len(shown) <= 40
    assert max(map(len, shown)) <= 105


def test_text_is_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--hidden-size", "16", "--layers", "1", "--vocab-size", "11", "--threads", "1", "--no-pin", "--quick"]
    assert main(["bench", "decode", *words, "--steps", "20", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "tokens a second" in shown
    assert "hgrn2-text, 11 tokens -> 16 x 1 layers, B = 1: 20 tokens one after another" in shown
    assert "# `longstream bench decode`" in (tmp_path / "out" / "results.md").read_text()


def test_tables_leave_out_what_is_empty():
    about = {"package": "longstream", "version": "", "rate": 0.0, "pinned": "", "threads": 1, "batch": 1}
    rows = [
        StepRow(group="g", name="Stream, float32", p50=10.0, p99=20.0, p999=30.0, worst=1234.5, steps=99, **about),
        StepRow(group="g", name="slow", p50=25.0, p99=25.0, p999=25.0, worst=25.0, steps=99, **about),
        StepRow(group="g", name="none", note="not installed", **{**about, "package": "jax"}),
    ]
    times, who = step_report.tables(step_report.StepResults(rows))
    assert times[0] == "g: 99 frames one after another; microseconds"
    assert times[1] == ["who", "threads", "p50", "p99", "p99.9", "worst", "ratio"]
    assert times[2] == [
        ["Stream, float32", "1", "10", "20", "30", "1,234", "1.00"],
        ["slow", "1", "25", "25", "25", "25", "2.50"],
    ]
    assert who[1] == ["who", "note"]
    assert who[2][2] == ["none (jax)", "not installed"]


def test_a_picture_needs_times(tmp_path: Path):
    about = {"package": "longstream", "version": "", "rate": 0.0, "threads": 1, "batch": 1, "steps": 3}
    row = StepRow(group="g", name="a", pinned="", p50=2.0, **about)
    assert not step_plot.plot_latencies([row], "g", tmp_path / "a.png")
    row.answers = np.array([1e-6, 2e-6, 3e-6])
    assert step_plot.plot_latencies([row], "g", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    np.testing.assert_allclose(step_plot.shares(row), [1, 2 / 3, 1 / 3])
