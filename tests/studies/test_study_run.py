"""A tiny study from its declaration to its folder: whole, interrupted, damaged, diverged, and with a budget."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from longstream.studies import runner
from longstream.studies.results import Outcome
from longstream.studies.runner import expected_runs, make_plan, run_study
from longstream.studies.study import Plan
from tests.studies import tiny_study
from tests.studies.conftest import MODULE
from tests.studies.tiny_study import POOLS, STUDY, HerePool

NAMES = [
    "language-n=2-lr=0.003-seed0",
    "language-n=2-lr=0.003-seed1",
    "language-n=2-lr=0.003-seed2",
    "language-n=16-lr=0.001-seed0",
    "language-n=16-lr=0.01-seed0",
    "language-n=16-lr=0.01-seed1",
    "language-n=16-lr=0.01-seed2",
]


@pytest.fixture(autouse=True)
def _train_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner, "Pool", HerePool)


@pytest.fixture
def again(data: Path, whole: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """A copy of the finished study at tmp_path / "tiny", and how to carry it out again."""
    shutil.copytree(whole, tmp_path / "tiny")
    return lambda **kwargs: run_study(MODULE, STUDY, Plan(data=data), tmp_path / "tiny", **kwargs)


def figures(folder: Path) -> dict[str, dict[str, float]]:
    """What was measured of each run, without what depends on the machine's speed."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {line["run"]: {k: v for k, v in line["measured"].items() if k != "minutes"} for line in lines}


def test_a_study_leaves_all_that_it_promises(whole: Path):
    found = {path.name for path in whole.iterdir()}
    assert found == {
        *("study.json", "results.jsonl", "alone.json", "results.md", "results.csv", "report.html", "workers.log"),
        *("state.png", "runs", "metrics"),
    }
    assert [path.name for path in sorted((whole / "metrics").iterdir())] == sorted(f"{name}.jsonl" for name in NAMES)
    lines = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == NAMES
    for line in lines:
        rows = map(json.loads, (whole / "metrics" / f"{line['run']}.jsonl").read_text().splitlines())
        (held_out,) = [row for row in rows if row["kind"] == "validation"]
        assert line["measured"]["bits_per_byte"] == held_out["bits_per_byte"]
        assert line["measured"]["parameters"] > 1000
        assert line["measured"]["state"] == 16 * line["settings"]["model.expand_ratio"]
        assert line["settings"]["data.files"] == ["text.txt"]  # no path of this machine
        assert set(line["made"]) == {"longstream", "torch", "kernels", "sha256", "validation_sha256"}
    said = json.loads((whole / "study.json").read_text())
    assert said["seeds"] == [0, 1, 2]
    assert said["sessions"][0]["versions"]["torch"]


def test_the_second_round_takes_the_better_rate(whole: Path):
    tried = {name: of["loss"] for name, of in figures(whole).items() if name in NAMES[3:5]}
    assert min(tried, key=tried.__getitem__) == NAMES[4]


def test_what_is_finished_is_not_done_again(whole: Path, again: Callable[..., Outcome], tmp_path: Path):
    outcome = again()
    assert POOLS[-1].trained == []
    assert (tmp_path / "tiny" / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert (tmp_path / "tiny" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert len(outcome.results) == len(NAMES)
    assert [session["runs"] for session in outcome.asked.sessions] == [len(NAMES)]  # what trains nothing is no session


def test_a_stopped_study_goes_on_to_the_same_figures(data: Path, whole: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "tiny"
    now = iter([0.0] * 4)  # the session's begin, the training's, and the ends of two runs
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: next(now, 1e9)))
    first = run_study(MODULE, STUDY, Plan(data=data), folder, budget=2.0)
    monkeypatch.undo()
    monkeypatch.setattr(runner, "Pool", HerePool)
    assert len(first.results) == 3
    assert first.left == 4  # of all rounds
    assert first.why == "the budget's time is used up"
    assert "Unfinished" in (folder / "results.md").read_text()
    assert first.alone == {}
    second = run_study(MODULE, STUDY, Plan(data=data), folder, budget=2.0)
    assert len(POOLS[-1].trained) == len(NAMES) - len(first.results)
    assert second.left == 0
    assert figures(folder) == figures(whole)
    assert "Unfinished" not in (folder / "results.md").read_text()


def test_a_study_stopped_between_two_rounds_is_not_at_its_end(data: Path, whole: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "tiny"
    shutil.copytree(whole, folder)
    lines = [
        line for line in (folder / "results.jsonl").read_text().splitlines() if json.loads(line)["run"] in NAMES[:4]
    ]
    (folder / "results.jsonl").write_text("\n".join(lines))  # the last of the first round is missing, and the second
    for name in NAMES[5:]:
        shutil.rmtree(folder / "runs" / name)
    now = iter([0.0] * 2)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: next(now, 1e9)))
    first = run_study(MODULE, STUDY, Plan(data=data), folder, budget=2.0)
    assert POOLS[-1].trained == [NAMES[4]]
    assert (len(first.results), first.left) == (5, 2)


def test_more_seeds_are_added_and_fewer_are_enough(data: Path, again: Callable[..., Outcome], tmp_path: Path):
    fewer = run_study(MODULE, STUDY, Plan(seeds=(0, 1), data=data), tmp_path / "tiny")
    assert POOLS[-1].trained == []
    assert len(fewer.results) == 5
    more = run_study(MODULE, STUDY, Plan(seeds=(0, 1, 2, 3), data=data), tmp_path / "tiny")
    assert POOLS[-1].trained == ["language-n=2-lr=0.003-seed3", "language-n=16-lr=0.01-seed3"]
    assert len(more.results) == 9


@pytest.mark.parametrize("damage", ["{", "[1]", '{"run": "x"}', "null", "\x00\xff", '{"run": 1, "status": "done"}'])
def test_a_damaged_line_is_named_and_the_run_taken_from_its_folder(
    damage: str, again: Callable[..., Outcome], whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    results = tmp_path / "tiny" / "results.jsonl"
    lines = results.read_text().splitlines()
    results.write_text("\n".join([lines[0], damage, *lines[2:]]), encoding="utf-8")
    again()
    assert "results.jsonl: line 2 is damaged and passed over" in caplog.text
    assert POOLS[-1].trained == [NAMES[1]]  # looked at only: it is finished
    assert figures(tmp_path / "tiny") == figures(whole)


def test_runs_without_results_are_not_trained_again(again: Callable[..., Outcome], whole: Path, tmp_path: Path):
    for name in ("results.jsonl", "study.json", "report.html"):
        (tmp_path / "tiny" / name).unlink()
    before = (tmp_path / "tiny" / "runs" / NAMES[0] / "model.safetensors").stat().st_mtime_ns
    again()
    assert figures(tmp_path / "tiny") == figures(whole)
    assert (tmp_path / "tiny" / "runs" / NAMES[0] / "model.safetensors").stat().st_mtime_ns == before


def test_results_without_runs_are_enough_for_the_report(again: Callable[..., Outcome], whole: Path, tmp_path: Path):
    shutil.rmtree(tmp_path / "tiny" / "runs")
    again()
    assert POOLS[-1].trained == []
    assert (tmp_path / "tiny" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_what_speed_is_measured_with_is_trained_again(
    again: Callable[..., Outcome], whole: Path, tmp_path: Path, caplog
):
    shutil.rmtree(tmp_path / "tiny" / "runs" / NAMES[0])
    (tmp_path / "tiny" / "alone.json").write_text("{")
    again()
    assert "1 run directories are gone" in caplog.text
    assert "alone.json is damaged" in caplog.text
    assert POOLS[-1].trained == [NAMES[0]]
    assert figures(tmp_path / "tiny") == figures(whole)
    assert (tmp_path / "tiny" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


@pytest.mark.parametrize("missing", ["settings.toml", "data.json", "checkpoints", "model.safetensors"])
def test_a_half_deleted_run_is_trained_again_or_taken(
    missing: str, again: Callable[..., Outcome], whole: Path, tmp_path: Path
):
    folder = tmp_path / "tiny"
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[1:]))
    gone = folder / "runs" / NAMES[0] / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    again()
    assert figures(folder) == figures(whole)
    assert gone.exists()


def test_a_foreign_file_in_a_run_directory_is_left_alone(again: Callable[..., Outcome], tmp_path: Path):
    folder = tmp_path / "tiny"
    shutil.rmtree(folder / "runs" / NAMES[0])
    (folder / "runs" / NAMES[0]).mkdir()
    (folder / "runs" / NAMES[0] / "mine.txt").write_text("mine")
    (folder / "results.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"run {NAMES[0]} failed: .* exists and is not a run of longstream"):
        again()
    assert (folder / "runs" / NAMES[0] / "mine.txt").read_text() == "mine"


def test_other_settings_are_refused_in_words(data: Path, again: Callable[..., Outcome], tmp_path: Path, monkeypatch):
    monkeypatch.setitem(tiny_study.BASE, "train.batch_size", 3)
    with pytest.raises(ValueError, match=r"is here with train.batch_size=2, and is declared with train.batch_size=3"):
        again()
    outcome = again(fresh=True)
    assert len(POOLS[-1].trained) == len(NAMES)
    assert {result.run.settings["train.batch_size"] for result in outcome.results} == {3}


def test_a_run_directory_of_other_settings_is_refused(again: Callable[..., Outcome], tmp_path: Path, monkeypatch):
    (tmp_path / "tiny" / "results.jsonl").unlink()
    monkeypatch.setitem(tiny_study.BASE, "train.batch_size", 3)
    with pytest.raises(ValueError, match=r"is of train.batch_size=2, not 3"):
        again()


def test_a_diverged_run_is_kept_marked_and_counted(data: Path, tmp_path: Path, monkeypatch):
    def declare(plan: Plan, done):
        runs = tiny_study.declare(plan, ())[:3]
        lost = {**runs[1].settings, "train.learning_rate": 1e18, "train.max_grad_norm": 0.0}
        return [runs[0], replace(runs[1], settings=lost), runs[2]]

    study = replace(STUDY, runs=declare, alone=None)
    monkeypatch.setattr(tiny_study, "STUDY", study)
    outcome = run_study(MODULE, study, Plan(data=data), tmp_path / "tiny")
    assert [result.status for result in outcome.results] == ["done", "diverged", "done"]
    assert outcome.left == 0
    text = (tmp_path / "tiny" / "results.md").read_text()
    assert "(2 of 3; 1 diverged)" in text
    assert "Not resolved at this scale" in text
    run_study(MODULE, study, Plan(data=data), tmp_path / "tiny")
    assert POOLS[-1].trained == []


def test_a_run_that_fails_stops_the_study_and_is_named(data: Path, tmp_path: Path, monkeypatch):
    study = replace(STUDY, measure=lambda run, folder: {"state": 1 / 0})
    monkeypatch.setattr(tiny_study, "STUDY", study)
    with pytest.raises(
        ValueError, match=r"study tiny: run .* failed: ZeroDivisionError: division by zero; what is fin"
    ):
        run_study(MODULE, study, Plan(data=data), tmp_path / "tiny")
    assert len(POOLS[-1].trained) == 1


def test_a_report_is_there_where_speed_could_not_be_measured(data: Path, whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "tiny")
    (tmp_path / "tiny" / "alone.json").unlink()
    (tmp_path / "tiny" / "results.md").unlink()
    study = replace(STUDY, alone=lambda plan, folder: {("language", "n=2"): {"size": 1 / 0}})
    with pytest.raises(ValueError, match=r"study tiny: speed and memory could not be measured: division by zero"):
        run_study(MODULE, study, Plan(data=data), tmp_path / "tiny")
    text = (tmp_path / "tiny" / "results.md").read_text()
    assert "a bigger state is better" in text
    assert "bytes" not in text


def test_what_is_measured_afterwards_takes_its_part_of_a_budget():
    study = replace(STUDY, fixed={"small": 0.5})
    assert make_plan(study, "small", 3, 2.0, Path("d")).factor == 1.0
    assert make_plan(study, "small", 3, 3.5, Path("d")).factor == 2.0
    nothing = replace(study, runs=lambda plan, done: [])
    assert make_plan(nothing, "small", 3, 2.5, None).factor == 1.0
    with pytest.raises(
        ValueError, match=r"--budget must be at least 2 minutes, got 1.9: it measures, and trains nothing"
    ):
        make_plan(nothing, "small", 3, 1.9, None)


def test_a_budget_scales_steps_by_what_was_asked():
    plan = make_plan(STUDY, "small", 3, 4.0, Path("d"))
    assert plan.factor == 2.0
    assert {run.settings["train.steps"] for run in STUDY.runs(plan, ())} == {40}
    assert make_plan(STUDY, "small", 3, None, Path("d")).factor == 1.0
    assert make_plan(STUDY, "medium", 3, 200.0, Path("d")).factor == 10.0
    # with three seeds 2, 2, 2 minutes' worth and four times 16, with two 18 less
    assert make_plan(STUDY, "small", 2, 4.0, Path("d")).factor == pytest.approx(2 * 70 / 52)
    assert [run.name for run in expected_runs(STUDY, Plan(data=Path("d")))][:5] == NAMES[:5]
    assert len(expected_runs(STUDY, Plan(data=Path("d")))) == 7


def test_a_budget_too_small_says_how_much_is_needed():
    with pytest.raises(ValueError, match=r"--budget must be at least 2 minutes for 20 steps .* got 1.5"):
        make_plan(STUDY, "small", 3, 1.5, Path("d"))
    long = replace(STUDY, runs=lambda plan, done: [_with_steps(run, plan) for run in tiny_study.declare(plan, done)])
    with pytest.raises(ValueError, match=r"at least 0.1 minutes"):
        make_plan(long, "small", 3, 0.01, Path("d"))
    assert make_plan(long, "small", 3, 0.1, Path("d")).factor == pytest.approx(0.05)


def _with_steps(run, plan: Plan):
    return replace(run, settings={**run.settings, "train.steps": plan.steps(400)})


def test_two_runs_of_one_name_are_refused(data: Path, tmp_path: Path):
    twice = replace(STUDY, runs=lambda plan, done: tiny_study.declare(plan, done)[:1] * 2)
    with pytest.raises(ValueError, match=r"names of their own, got language-n=2-lr=0.003-seed0 twice"):
        run_study(MODULE, twice, Plan(data=data), tmp_path / "tiny")
