"""The folder of a study: what it refuses, what it deletes, and what it writes of settings."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from longstream.studies.results import Alone, StudyFolder, portable
from longstream.studies.study import Plan, Result, Run

PLAN = Plan(data=Path("d"))


def run(seed: int = 0, settings: Mapping[str, object] | None = None) -> Run:
    """Of 20 steps."""
    return Run(group="g", variant="a", seed=seed, settings={"train.steps": 20, **(settings or {})})


def opened(path: Path, **kwargs) -> StudyFolder:
    """A folder with study.json."""
    folder = StudyFolder(path)
    path.mkdir(exist_ok=True)
    folder.write_asked(folder.open("tiny", kwargs.pop("plan", PLAN), kwargs.pop("budget", None), fresh=False))
    return folder


def test_a_folder_of_other_things_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and holds no study: choose another --out"):
        StudyFolder(tmp_path).open("tiny", PLAN, None, fresh=True)
    project = tmp_path / "project"
    (project / "runs" / "model").mkdir(parents=True)
    (project / "results.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and holds no study"):
        StudyFolder(project).open("tiny", PLAN, None, fresh=True)
    assert (project / "results.csv").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file, not a folder"), StudyFolder(tmp_path / "file").locked():
        pass


def test_another_study_scale_or_budget_is_refused(tmp_path: Path):
    folder = opened(tmp_path)
    with pytest.raises(ValueError, match=r"holds the study 'tiny', not 'other': give --fresh"):
        folder.open("other", PLAN, None, fresh=False)
    with pytest.raises(ValueError, match=r"holds the scale 'small', not 'medium'"):
        folder.open("tiny", Plan(scale="medium"), None, fresh=False)
    with pytest.raises(
        ValueError, match=r"was begun with no --budget, so its runs have other steps than with --budget 5"
    ):
        folder.open("tiny", Plan(factor=0.5), 5.0, fresh=False)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"format": 1}', '{"format": 7, "name": "tiny"}'])
def test_a_damaged_study_json_is_named(text: str, tmp_path: Path):
    folder = opened(tmp_path)
    folder.study.write_text(text)
    with pytest.raises(ValueError, match=r"study.json is damaged: .*; give --fresh to begin anew"):
        folder.open("tiny", PLAN, None, fresh=False)
    assert folder.open("tiny", PLAN, None, fresh=True).sessions == []


def test_fresh_deletes_what_studies_leave_and_nothing_else(tmp_path: Path):
    folder = opened(tmp_path)
    asked = folder.open("tiny", PLAN, None, fresh=False)
    asked.pictures = ["state.png", "../outside.png"]
    folder.write_asked(asked)
    for name in ("state.png", "results.md", "report.html", "mine.txt", "mine.png"):
        (tmp_path / name).write_text("x")
    outside = tmp_path.parent / "outside.png"
    outside.write_text("x")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "text-a-seed0").mkdir()
    folder.open("tiny", PLAN, None, fresh=True)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "mine.png", "runs"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]
    assert outside.exists()


def test_two_at_once_are_refused(tmp_path: Path):
    with StudyFolder(tmp_path).locked():
        with pytest.raises(FileExistsError, match="another longstream study is at work"):
            StudyFolder(tmp_path).locked().__enter__()
        assert len(list(tmp_path.iterdir())) == 1
    with StudyFolder(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_settings_are_kept_without_the_folders_of_this_machine(tmp_path: Path):
    folder = opened(tmp_path)
    first, moved = (
        run(settings={"data.files": (str(tmp_path / place / "text.txt"), "builtin")}) for place in ("a", "b")
    )
    assert portable(first) == {"data.files": ["text.txt", "builtin"], "train.steps": 20}
    folder.add_result(Result(first, "done", {"loss": 1.0}))
    assert str(tmp_path) not in folder.results.read_text()
    again = StudyFolder(tmp_path)
    again.read_results()
    assert again.result_of(moved) == Result(moved, "done", {"loss": 1.0})
    with pytest.raises(ValueError, match=r"is here with train.steps=20, and is declared with train.steps=30"):
        again.result_of(run(settings={"data.files": ("text.txt", "builtin"), "train.steps": 30}))
    with pytest.raises(ValueError, match=r"is declared with model.name='gru'"):
        again.result_of(run(settings={"data.files": ("text.txt", "builtin"), "model.name": "gru"}))


def test_results_of_runs_that_nobody_asks_for_stay(tmp_path: Path):
    folder = opened(tmp_path)
    for seed in (2, 0, 1):
        folder.add_result(Result(run(seed), "done", {"loss": float(seed)}))
    again = StudyFolder(tmp_path)
    again.read_results()
    again.write_results([run(0), run(1)])
    assert [json.loads(line)["seed"] for line in again.results.read_text().splitlines()] == [0, 1, 2]


def test_figures_measured_alone_are_those_of_the_same_runs(tmp_path: Path):
    folder = opened(tmp_path)
    found: Alone = {("g", "a"): {"ms": 1.5}}
    folder.write_alone([run(0)], found, {"cpus": 2})
    assert folder.read_alone([run(0)]) == found
    assert folder.read_alone([run(0), run(1)]) is None
    folder.alone.write_text('{"runs": []}')
    assert folder.read_alone([]) is None
