"""The verb `longstream study`: what it lists and refuses, its progress, and real processes that are interrupted."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from longstream import cli
from longstream.studies import command, registry, runner
from longstream.studies.progress import Progress
from longstream.studies.study import Run
from tests.conftest import ROOT
from tests.studies.conftest import MODULE
from tests.studies.tiny_study import HerePool


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch):
    """The tiny study is the only one, and is trained in this process."""
    monkeypatch.setattr(registry, "STUDIES", {"tiny": MODULE})
    monkeypatch.setattr(runner, "Pool", HerePool)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["expnsion"], "no study is called 'expnsion'; did you mean 'expansion'?; there are expansion, heads, "),
        (["expansion", "--seeds", "0"], "--seeds must be between 1 and 1000, got 0"),
        (["expansion", "--budget", "-1"], "--budget must be a positive number of minutes, got -1"),
        (["expansion", "--budget", "nan"], "--budget must be a positive number of minutes, got nan"),
        (["expansion", "--jobs", "-2"], "--jobs must be between 1 and 1024, or 0 for one a core, got -2"),
        (["expansion", "--bugdet", "3"], "unknown option '--bugdet'; did you mean '--budget'?"),
    ],
)
def test_bad_input_is_refused_in_a_line(words: list[str], error: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["study", *words]) == 2
    said = capsys.readouterr().err
    assert error in said
    assert len(said.splitlines()) == 1


def test_a_full_pass_takes_four_hours_at_most():
    minutes = [registry.load_study(module).minutes["small"] for module in registry.STUDIES.values()]
    assert max(minutes) <= 30
    assert sum(minutes) <= 240


def test_all_studies_are_listed(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["study", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0] for line in lines if line[:1].strip()]
    assert named == ["study", *registry.STUDIES]


def test_a_finished_study_prints_verdicts_and_files(
    tiny: None, whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(whole, tmp_path / "tiny")
    assert cli.main(["study", "all", "--data", str(data), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Supported: a bigger state is better [nobody]. n=16 against n=2, bits per byte; +")
    for name in ("tiny/report.html", "tiny/results.md", "tiny/results.csv", "summary.md"):
        assert f" {tmp_path / name}\n" in out
        assert (tmp_path / name).is_file()
    assert cli.main(["study", "tiny", "--data", str(data), "--out", str(tmp_path / "tiny"), "--budget", "3"]) == 2
    assert "was begun with no --budget" in capsys.readouterr().err
    assert cli.main(["study", "tiny", "--data", str(data), "--out", str(tmp_path / "new"), "--budget", "1.5"]) == 2
    assert "study tiny: --budget must be at least 2 minutes for 20 steps" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_one_study_that_cannot_be_carried_out_keeps_no_other_from_it(
    tiny: None, whole: Path, data: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(registry, "STUDIES", {"first": MODULE, "second": MODULE})
    shutil.copytree(whole, tmp_path / "second")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "mine.txt").write_text("")
    assert cli.main(["study", "all", "--data", str(data), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "first exists and holds no study" in said.err.splitlines()[-1]
    assert "| first | " in (tmp_path / "summary.md").read_text()
    assert str(tmp_path / "second" / "report.html") in said.out


def runs(*minutes: float) -> list[Run]:
    return [
        Run(group="g", variant=str(i), seed=0, settings={"train.steps": 20}, minutes=m) for i, m in enumerate(minutes)
    ]


def test_progress_counts_the_steps_that_were_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    progress = Progress("tiny", tmp_path, jobs=2, factor=1.0)
    progress.console = Console(file=(out := io.StringIO()), highlight=False, width=200)
    first, second, third = declared = runs(4, 2, 2)
    progress.declare(declared, [third.name])
    (tmp_path / first.name).mkdir()
    lines = [json.dumps({"kind": "train", "step": step}) for step in (5, 10)]
    (tmp_path / first.name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    progress.started -= 60  # half of four minutes' worth in one minute: four more minutes' worth take two
    monkeypatch.setattr(progress, "_last_line", -1e9)
    progress.update([first, second])
    assert out.getvalue() == "tiny: 1 of 3 runs, about 2 minutes left; g-0-seed0 10/20, g-1-seed0 0/20\n"
    progress.finish(second, "done", {"minutes": 1.25})
    assert out.getvalue().endswith("2/3 g-1-seed0: done, 1.2 minutes, about 30 seconds left\n")
    with open(tmp_path / first.name / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # half a line
    progress.update([first])


def test_a_terminal_shows_a_bar_for_all_and_one_for_each_at_work(tmp_path: Path):
    progress = Progress("tiny", tmp_path, jobs=2, factor=1.0)
    progress.console = Console(file=(out := io.StringIO()), force_terminal=True, width=160)
    progress.bars.live.console = progress.console
    first, second = declared = runs(4, 2)
    progress.declare(declared, [])
    progress.start()
    progress.update([first, second])
    progress.finish(first, "done", {})
    progress.update([second])
    progress.stop()
    assert "tiny: 1 of 2 runs" in out.getvalue()
    assert "g-1-seed0  step 0/20" in out.getvalue()
    assert list(progress.lines) == [second.name]


def start(folder: Path, data: Path, jobs: int) -> subprocess.Popen[str]:
    """The command as it is typed, of the tiny study."""
    code = f"from longstream.studies import registry; registry.STUDIES = {{'tiny': {MODULE!r}}}\n"
    code += "import sys; from longstream.cli import main; sys.exit(main())"
    words = ["study", "tiny", "--data", str(data), "--out", str(folder), "--jobs", str(jobs), "--seeds", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_interrupted_and_with_other_jobs_the_numbers_are_the_same(data: Path, tmp_path: Path):
    """Real processes: Ctrl-C while two runs train, then on with one process; against one that never stopped."""
    process = start(tmp_path / "stopped", data, jobs=2)
    end = time.monotonic() + 600
    while not any(len(file.read_text().splitlines()) > 3 for file in tmp_path.glob("stopped/runs/*/metrics.jsonl")):
        assert time.monotonic() < end, "no run began"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "stopping, saving first" in err
    assert "runs are left; the same command goes on" in err
    assert "Traceback" not in err
    assert list(tmp_path.glob("stopped/runs/*/checkpoints/checkpoint-*"))
    for name, jobs in (("stopped", 1), ("straight", 2)):
        process = start(tmp_path / name, data, jobs=jobs)
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert "Not resolved at this scale (one seed has no interval)" in out
    kept = [(tmp_path / name / "results.csv").read_bytes() for name in ("stopped", "straight")]
    assert kept[0] == kept[1]
    weights = [sorted(tmp_path.glob(f"{name}/runs/*/model.safetensors")) for name in ("stopped", "straight")]
    assert len(weights[0]) == 3
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]


def test_exit_codes():
    assert command.LEFT not in (0, 1, 2)
