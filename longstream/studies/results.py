"""The folder of a study: what lies where, and how it is read again after an interruption, or half deleted.

study.json                       what was asked for, and the sessions that carried it out: machine, versions, minutes
runs/<run>/                      run directories of `longstream train`
metrics/<run>.jsonl              each run's metrics.jsonl
results.jsonl                    a line a run: settings, status, what was measured
alone.json                       speed and memory, measured with nothing else running
results.md, results.csv, *.png, report.html
workers.log                      what the training processes said
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longstream.studies.study import Plan, Result, Run, Study
from longstream.train.rundir import remove, write_text

logger = logging.getLogger("longstream")

FORMAT = 1
FILES = ("study.json", "results.jsonl", "alone.json", "results.md", "results.csv", "report.html", "workers.log")
FOLDERS = ("runs", "metrics")
LOCK = ".at-work"
LINE = ("run", "group", "variant", "choice", "seed", "status", "settings", "measured", "made")  # of results.jsonl
STATUS = ("done", "diverged")
RUN_NAME = re.compile(r".+-seed\d+")  # as `Run.name` ends
AGAIN = "give --fresh to begin anew, or choose another --out"
Alone = dict[tuple[str, str], dict[str, float]]


@dataclass
class Asked:
    """The content of study.json.

    Attributes:
        sessions: one each time that it was begun or went on: `machine`, with ``began``, ``minutes``, ``jobs``,
                  ``runs`` (that it finished) and ``trained with``, the instruction set of the kernels.
        pictures: files that the last report drew.
    """

    name: str
    scale: str
    factor: float
    budget: float | None  # minutes
    seeds: list[int]
    sessions: list[dict[str, Any]]
    pictures: list[str]


class StudyFolder:
    """The files of one study."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.study = self.path / "study.json"
        self.runs = self.path / "runs"
        self.metrics = self.path / "metrics"
        self.results = self.path / "results.jsonl"
        self.alone = self.path / "alone.json"
        self.log = self.path / "workers.log"
        self._lines: dict[str, dict[str, Any]] = {}  # of results.jsonl, by run; also of runs that nobody asks for now

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other process carries out a study here.

        Raises:
            FileExistsError: one does already, or the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file, not a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / LOCK, "w", encoding="utf-8") as lock:
            try:
                import fcntl
            except ModuleNotFoundError:  # Windows
                yield
                return
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise FileExistsError(f"{self.path}: another longstream study is at work here; wait for it") from None
            try:
                yield
            finally:
                remove(self.path / LOCK)

    def open(self, name: str, plan: Plan, budget: float | None, *, fresh: bool) -> Asked:
        """What was asked for here before, and is asked for again; a folder without a study becomes one.

        Raises:
            FileExistsError: it holds other things.
            ValueError: another study, scale or budget is here, and ``fresh`` is not given.
        """
        self._refuse_foreign()
        if fresh:
            self.clear()
        asked = self._read_asked()
        if asked is None:
            return Asked(name, plan.scale, plan.factor, budget, list(plan.seeds), [], [])
        for what, before, now in (("study", asked.name, name), ("scale", asked.scale, plan.scale)):
            if before != now:
                raise ValueError(f"{self.path} holds the {what} {before!r}, not {now!r}: {AGAIN}")
        if asked.factor != plan.factor:
            before, now = (f"--budget {minutes:g}" if minutes else "no --budget" for minutes in (asked.budget, budget))
            raise ValueError(
                f"{self.path} was begun with {before}, so its runs have other steps than with {now}: {AGAIN}"
            )
        asked.seeds, asked.budget = list(plan.seeds), budget
        return asked

    def write_asked(self, asked: Asked) -> None:
        """Write study.json."""
        write_text(self.study, json.dumps({"format": FORMAT, **vars(asked)}, indent=1) + "\n")

    def clear(self) -> None:
        """Delete what a study left here, and nothing else: of ``runs`` and ``metrics`` only its own runs."""
        asked = self._read_asked(damaged=True)
        self.read_results()
        for folder in (self.runs, self.metrics):
            for path in folder.glob("*") if folder.is_dir() else ():
                if path.stem in self._lines or RUN_NAME.fullmatch(path.name.removesuffix(".jsonl")):
                    remove(path)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for name in (*FILES, *(Path(picture).name for picture in (asked.pictures if asked else []))):
            remove(self.path / name)

    def _refuse_foreign(self) -> None:
        """Raise unless the folder is empty or a study's; one whose study.json is gone is known by its other files."""
        found = {path.name for path in self.path.iterdir()} - {LOCK}
        if found and not found & {"study.json", "results.jsonl", "alone.json"}:
            raise FileExistsError(f"{self.path} exists and holds no study: choose another --out")

    def _read_asked(self, damaged: bool = False) -> Asked | None:
        """What study.json says; None without one. ``damaged``: also None where it cannot be read."""
        try:
            said = json.loads(self.study.read_text(encoding="utf-8"))
            if said.pop("format") != FORMAT:
                raise ValueError("it is of another version of longstream")
            return Asked(**said)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if damaged:
                return None
            raise ValueError(f"{self.study} is damaged: {error}; {AGAIN}") from None

    def read_results(self) -> None:
        """Read results.jsonl; a damaged line is passed over and named."""
        self._lines = {}
        text = self.results.read_text(encoding="utf-8", errors="replace") if self.results.is_file() else ""
        for number, line in enumerate(text.splitlines(), 1):
            try:
                said = json.loads(line)
                if said["status"] not in STATUS or not all(type(v) in (int, float) for v in said["measured"].values()):
                    raise ValueError("a value is of the wrong kind")
                self._lines[said["run"]] = {key: said[key] for key in LINE}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                what = error if isinstance(error, ValueError) else f"it lacks {error}"
                logger.warning("%s: line %d is damaged and passed over: %s", self.results, number, what)

    def result_of(self, run: Run) -> Result | None:
        """What came of a run, as results.jsonl says; None if it does not.

        Raises:
            ValueError: it is of other settings than the run's.
        """
        if (said := self._lines.get(run.name)) is None:
            return None
        before, now = said["settings"], portable(run)
        if before != now:
            key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
            raise ValueError(
                f"{self.path}: run {run.name} is here with {key}={before.get(key)!r}, and is declared with"
                f" {key}={now.get(key)!r} now (another version, scale or budget of the study): {AGAIN}"
            )
        return Result(run, said["status"], said["measured"], said["made"])

    def add_result(self, result: Result) -> None:
        """Write results.jsonl with one more line, whole or not at all, and keep the run's metrics.jsonl."""
        run = result.run
        values = (
            *(run.name, run.group, run.variant, run.choice, run.seed, result.status),
            *(portable(run), result.measured, result.made),
        )
        self._lines[run.name] = dict(zip(LINE, values, strict=True))
        self.write_results([])
        self.keep_metrics(run.name)

    def write_results(self, first: Sequence[Run]) -> None:
        """Write results.jsonl, these runs first and in this order."""
        order = [run.name for run in first if run.name in self._lines]
        names = [*order, *(name for name in self._lines if name not in set(order))]
        write_text(self.results, "".join(json.dumps(self._lines[name]) + "\n" for name in names))

    def keep_metrics(self, name: str) -> None:
        """Copy a run's metrics.jsonl to where it stays when run directories are deleted."""
        source = self.runs / name / "metrics.jsonl"
        if source.is_file():
            self.metrics.mkdir(exist_ok=True)
            shutil.copyfile(source, self.metrics / f"{name}.jsonl")

    def read_alone(self, runs: Sequence[Run]) -> Alone | None:
        """What was measured alone, of these runs; None where it was not, or the file is damaged."""
        try:
            said = json.loads(self.alone.read_text(encoding="utf-8"))
            if said["runs"] != sorted(run.name for run in runs):
                return None
            return {(row["group"], row["variant"]): row["measured"] for row in said["rows"]}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("%s is damaged, and measured again: %s", self.alone, error)
            return None

    def read_alone_machine(self) -> dict[str, Any] | None:
        """The machine that alone.json was measured on; None without one."""
        try:
            found: dict[str, Any] = json.loads(self.alone.read_text(encoding="utf-8"))["machine"]
            return found
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_alone(self, runs: Sequence[Run], found: Alone, here: Mapping[str, Any]) -> None:
        """Write alone.json."""
        rows = [{"group": g, "variant": v, "measured": dict(measured)} for (g, v), measured in found.items()]
        said = {"machine": here, "runs": sorted(run.name for run in runs), "rows": rows}
        write_text(self.alone, json.dumps(said, indent=1) + "\n")


def portable(run: Run) -> dict[str, Any]:
    """A run's settings as JSON has them, files by their names alone: they may lie elsewhere on another machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(each) for each in value]
        value = str(value) if isinstance(value, Path) else value
        return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value

    return {key: plain(value) for key, value in sorted(run.settings.items())}


@dataclass
class Outcome:
    """What a study has come to.

    Attributes:
        results:        of the runs that are finished, as they were declared.
        left:           how many are not.
        why:            they are not; "" if none are left.
        interrupted_by: a signal's number.
    """

    study: Study
    plan: Plan
    asked: Asked
    folder: StudyFolder
    results: list[Result]
    alone: Alone
    left: int = 0
    why: str = ""
    interrupted_by: int = 0
