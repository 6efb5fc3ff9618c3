"""What a run of the benchmark writes, what it survives, and what it refuses."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from longstream.bench import figures, limits, plots, report, run
from longstream.bench.command import add_bench_flags
from longstream.bench.measure import Case, Effort, Row
from longstream.bench.registry import figure_cases
from longstream.cli import main
from longstream.ops import _native, available_backends

TINY = Effort(rounds=1, turn=0.0, limit=60.0)


def row(case: Case, name: str, ms: float, package: str = "longstream", **more) -> Row:
    return Row(*case, 2, name, package, median_ms=ms, min_ms=ms, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the command; nobody changes them."""
    out = tmp_path_factory.mktemp("bench") / "results"
    words = [
        "--op",
        "gla,short_conv",
        "--lengths",
        "2,5",
        "--threads",
        "1",
        "--backends",
        "torch",
        "--quick",
        "--budget",
        "3600",
    ]
    assert main(["bench", "ops", *words, "--out", str(out)]) == 0
    return out


def test_files(folder: Path):
    written = json.loads((folder / "results.json").read_text())
    assert written["machine"]["versions"]["torch"]
    assert written["limits"]["1"]["copy"] > 0
    rows = written["rows"]
    assert {row["group"] for row in rows} == {"gla", "short_conv"}
    assert {row["T"] for row in rows} == {1, 2, 5}
    timed = [row for row in rows if row["median_ms"]]
    assert {row["name"] for row in timed} >= {"torch", "torch conv1d"}
    assert all(row["error"] <= 1e-4 and row["version"] for row in timed)
    assert any(row["share"] for row in timed)
    with (folder / "results.csv").open() as stream:
        assert len([*csv.DictReader(stream)]) == len(rows)
    for name in ("gla.png", "short_conv.png"):
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000
    text = (folder / "results.md").read_text()
    assert "![gla: HGRN2's recurrence" in text
    for heading in ("## gla", "## short_conv", "## limits of this machine"):
        assert heading in text


def test_tables_go_to_stdout(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--op", "short_conv", "--lengths", "3", "--threads", "1", "--quick", "--budget", "3600"]
    words += ["--out", str(tmp_path / "out")]
    assert main(["bench", "limits", *words]) == 0
    shown = capsys.readouterr()
    assert "short_conv: 4 taps" in shown.out
    assert "torch.mm" in shown.out
    assert "conv1d" not in shown.out  # limits are about ours
    assert "[1/2] short_conv fwd B=1 T=3, 1 thread" in shown.err
    assert str(tmp_path / "out" / "results.json") in shown.err


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
        (("everything",), "invalid choice: 'everything'"),
        (("ops", "--op", "attention"), "--op must be among gated_scan"),
        (("layers", "--op", "gla"), "--op goes with ops and limits, not with layers"),
        (("--lengths", "512,x"), "--lengths must be positive integers with commas between them, got '512,x'"),
        (("--batch", "0"), "--batch must be positive integers"),
        (("--threads", "1000000"), "--threads must be at most"),
        (("--backends", "cuda"), "--backends must be among native"),
        (("--budget", "-1"), "--budget must be a number of seconds > 0, got -1"),
        (("--budget", "nan"), "--budget must be a number of seconds > 0"),
        (("ops", "--op", "long_conv", "--lengths", "100000"), "at most 65,536 tokens, got 100000"),
        (("ops", "--op", "long_conv_decoding", "--lengths", "100"), "nothing to measure"),
        (("--length=5",), "unknown option '--length=5'; did you mean '--lengths'?"),
    ],
)
def test_refusals(words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if "cuda" in words and "native" not in available_backends("gla"):
        message = "--backends must be among"
    assert message in fails(capsys, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten_unasked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert "already holds results" in fails(capsys, "limits", "--out", str(folder))
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "letter.txt").write_text("dear")
    for more in ([], ["--overwrite"]):
        assert "holds no results of bench" in fails(capsys, "limits", "--out", str(tmp_path), *more)
    assert "is a file" in fails(capsys, "limits", "--out", str(tmp_path / "letter.txt"))


def test_missing_matplotlib_is_told_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    message = fails(capsys, "--out", str(tmp_path / "out"))
    assert "pip install 'longstream[bench]'" in message
    assert not (tmp_path / "out").exists()


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) <= 45
    assert max(map(len, shown)) <= 100
    assert add_bench_flags.__doc__


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the name mambapy for the processes that measure."""
    (tmp_path / "mambapy").mkdir()
    (tmp_path / "mambapy" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "mambapy" / "pscan.py"


@pytest.mark.slow
@pytest.mark.parametrize(("last", "said"), [("os._exit(3)", "code 3"), ("os.abort()", "signal 6")])
def test_a_package_that_ends_the_process_loses_its_rows_only(last: str, said: str, peer: Path, tmp_path: Path):
    peer.write_text(f"import os\n{last}\n")
    plan = run.Plan([Case("gated_scan", "fwd", 2, 3), Case("gated_scan", "fwd", 2, 4)], [1], TINY, limits=0.0)
    results, told = run.Results(), []
    with (tmp_path / "log").open("w") as log:
        run.measure(plan, results, log, told.append)
    assert [row.T for row in results.rows if row.package == "mambapy"] == [3, 4]
    for one in results.rows:
        if one.package == "mambapy":
            assert one.note == f"failed: its process ended with {said}"
        elif one.package == "longstream" and one.name != "native":
            assert one.median_ms
    assert any("mambapy pscan" in line for line in told)


@pytest.mark.slow
def test_who_does_not_answer_is_stopped(peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    peer.write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.setattr(run, "PATIENCE", 5.0)
    plan = run.Plan([Case("gated_scan", "fwd", 2, 3)], [1], TINY, limits=0.0)
    results = run.Results()
    with (tmp_path / "log").open("w") as log:
        run.measure(plan, results, log, lambda line: None)
    (row,) = (row for row in results.rows if row.package == "mambapy")
    assert row.note == "failed: no answer for 5 s"


def test_the_budget_ends_what_has_not_begun(tmp_path: Path):
    plan = run.Plan([Case("short_conv", "fwd", 1, 3)], [1], TINY, budget=1e-9, limits=0.0)
    results = run.Results()
    with (tmp_path / "log").open("w") as log:
        run.measure(plan, results, log, lambda line: None)
    assert results.rows
    assert all(row.note.startswith("not run: the time that --budget allows") for row in results.rows)


def test_limits_are_rates():
    found = limits.measure_limits(0.0, copy=2**16, matrix=16)
    assert set(found) == set(limits.WHAT) == set(limits.UNITS)
    for name, rate in found.items():
        if name == limits.MULTIPLY_ADDS and _native.MISSING:
            assert rate is None
        else:
            assert rate is not None
            assert rate > 0
    assert limits.better({"copy": 1.0}, {"copy": 2.0, "matrix product": None})["copy"] == 2.0


def all_figure_rows() -> list[Row]:
    """Rows that reach every figure: ours takes 1 ms for 512 tokens."""
    rows = []
    for case in figure_cases():
        ms = case.B * case.T / 512 * (3 if case.mode == "fwd+bwd" else 1)
        rows.append(row(case, "native", ms, share=0.9))
        rows.append(row(case, "torch", 20 * ms))
        if case.group == "gated_scan":
            rows.append(row(case, "jax.lax.scan, jit", 2 * ms, "jax"))
        if case.group in ("layer", "train"):
            rows += [row(case, f"{name} native", ms, share=0.7) for name in ("HGRN2", "HGRN")]
            rows.append(row(case, "projections alone", ms / 1.5, "torch"))
            rows.append(row(case, "SDPA attention", 13 * ms, "torch"))
            rows.append(row(case, "nn.GRU", 1.2 * ms, "torch"))
        if case.group == "train":
            rows.append(row(case, "Llama", 4 * ms, "transformers"))
    return rows


def test_figures_that_are_reached():
    found = figures.figures(all_figure_rows())
    assert len(found) > 40
    assert [figure for figure in found if not figure.reached] == []
    layer = next(figure for figure in found if figure.what.startswith("HGRN2 layer, times as fast as the fastest"))
    assert layer.measured == "1.2x (nn.GRU, of 2)"


def test_a_peer_that_is_missing_leaves_the_figure_open():
    missing = Row("layer", "fwd+bwd", 1, 512, 2, "minGRU-pytorch", "minGRU-pytorch", note="not installed: ...")
    slow = replace(missing, name="Mamba", note="not timed: a call takes 25.0 s; the limit is 20 s")
    for more, reached, text in (([missing, slow], None, "without minGRU-pytorch)"), ([slow], True, "of 2)")):
        found = figures.figures([*all_figure_rows(), *more])
        figure = next(f for f in found if "fastest peer" in f.what and f.shape == "T=512")
        assert figure.reached is reached
        assert figure.measured.endswith(text)


def test_figures_that_are_not_reached_or_not_measured():
    worse = {"native": 100.0, "HGRN2 native": 100.0, "HGRN native": 100.0}
    rows = [
        replace(one, median_ms=(one.median_ms or 0) * worse.get(one.name, 1.0) ** (one.T / 4096), share=0.1)
        for one in all_figure_rows()
    ]
    found = figures.figures(rows)
    assert {figure.reached for figure in found if "forward, time a token" in figure.what} == {False}
    assert {figure.reached for figure in found if "rate" in figure.what or "bandwidth" in figure.what} == {False}
    assert {figure.reached for figure in figures.figures([])} == {None}
    assert {figure.measured for figure in figures.figures([])} == {"not measured"}


def test_shares_of_limits():
    results = run.Results([row(Case("gla", "fwd", 1, 8), "torch", 2.0, work=1e6, share_of="copy")], {2: {"copy": 1e9}})
    results.add_shares()
    assert results.rows[0].share == pytest.approx(0.5)


def test_a_row_without_a_time_shows_why():
    texts = report.row_texts(Row("gla", "fwd", 1, 8, 1, "jax", "jax", "0.1", note="not installed: ..."))
    assert texts[-1] == "not installed: ..."
    assert texts[3] == "jax (jax 0.1)"
    assert len(texts) == len(report.COLUMNS)


def test_plots_need_two_lengths(tmp_path: Path):
    case = Case("gla", "fwd", 1, 8)
    assert not plots.plot_group([row(case, "torch", 1.0)], "title", report.MODES, tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
    rows = [row(case._replace(T=T), name, T / 8 + i) for T in (8, 16, 64) for i, name in enumerate(("torch", "native"))]
    assert plots.plot_group(rows, "title", report.MODES, tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 10_000
