"""How far a study is, on stderr: in a terminal a bar of all runs and a line for each at work, else a line a run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longstream.studies.study import Run

TAIL = 4096  # bytes of a metrics.jsonl that surely hold its last line
BETWEEN = 60.0  # seconds between lines where there is no terminal


class Progress:
    """Progress over all runs of a study.

    Args:
        name:   of the study.
        folder: with the run directories.
        jobs:   that train at the same time.
        factor: on the runs' minutes, until the first of them have been measured.
        expect: the runs that a study will have declared in the end, as far as that is known before.
    """

    def __init__(self, name: str, folder: Path, jobs: int, factor: float, expect: Sequence[Run] = ()) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self.name, self.folder, self.jobs, self.factor = name, folder, jobs, factor
        self.expected, self.expected_minutes = len(expect), sum(run.minutes for run in expect)
        self.runs: list[Run] = []
        self.at_work: list[Run] = []
        self.finished: set[str] = set()
        self.earlier = 0.0  # weight of what was finished before this session
        self.started = time.monotonic()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = Bars(BarColumn(bar_width=24), TextColumn("{task.description}", markup=False), console=self.console)
        self.whole = self.bars.add_task(name, total=1.0)
        self.lines: dict[str, Any] = {}  # of the runs at work
        self._last_line = 0.0

    def start(self) -> None:
        """Draw, where there is a terminal."""
        if self.console.is_terminal:
            self.bars.start()

    def stop(self) -> None:
        """Give the terminal back."""
        if self.console.is_terminal:
            self.bars.stop()

    def declare(self, runs: Sequence[Run], finished: Sequence[str]) -> None:
        """More runs, of which some are finished already."""
        new = [run for run in runs if run not in self.runs]
        self.runs += new
        self.finished.update(finished)
        self.earlier += sum(run.minutes for run in new if run.name in self.finished)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False)

    def finish(self, run: Run, status: str, measured: dict[str, float]) -> None:
        """A run has come to its end."""
        self.finished.add(run.name)
        self.at_work = [other for other in self.at_work if other is not run]
        at_work = [(other, *self._steps(other)) for other in self.at_work]
        minutes = f", {measured['minutes']:.1f} minutes" if "minutes" in measured else ""
        self.say(f"{len(self.finished)}/{self._count} {run.name}: {status}{minutes}{self._left(at_work)}")

    def update(self, at_work: Sequence[Run]) -> None:
        """Where the runs at work are."""
        self.at_work = list(at_work)
        steps = {run.name: (run, *self._steps(run)) for run in at_work}
        total = self._total or 1.0
        done = self._done([*steps.values()])
        words = f"{self.name}: {len(self.finished)} of {self._count} runs{self._left([*steps.values()])}"
        if self.console.is_terminal:
            self.bars.update(self.whole, completed=done / total, description=words)
            for name in [name for name in self.lines if name not in steps]:
                self.bars.remove_task(self.lines.pop(name))
            for name, (_, step, last) in steps.items():
                if name not in self.lines:
                    self.lines[name] = self.bars.add_task(name, total=1.0)
                self.bars.update(self.lines[name], completed=step / last, description=f"{name}  step {step}/{last}")
        elif time.monotonic() - self._last_line >= BETWEEN:
            self._last_line = time.monotonic()
            at = ", ".join(f"{name} {step}/{last}" for name, (_, step, last) in steps.items())
            self.say(f"{words}; {at}")

    @property
    def _count(self) -> int:
        return max(self.expected, len(self.runs))

    @property
    def _total(self) -> float:
        """Minutes' worth of all runs."""
        return max(self.expected_minutes, sum(run.minutes for run in self.runs))

    def _done(self, at_work: Sequence[tuple[Run, int, int]]) -> float:
        """Minutes' worth of the declared runs."""
        finished = sum(run.minutes for run in self.runs if run.name in self.finished)
        return finished + sum(run.minutes * min(1.0, step / last) for run, step, last in at_work)

    def _left(self, at_work: Sequence[tuple[Run, int, int]]) -> str:
        total, done = self._total, self._done(at_work)
        here, seconds = done - self.earlier, time.monotonic() - self.started
        if total <= done:
            return ""
        pace = seconds / here if here > 0 and seconds > 20 else 60 * self.factor / self.jobs  # seconds a minute's worth
        left = (total - done) * pace
        return f", about {left / 60:.0f} minutes left" if left >= 90 else f", about {left:.0f} seconds left"

    def _steps(self, run: Run) -> tuple[int, int]:
        """Steps done, as of the last that was logged, and all of them."""
        last = max(int(run.settings.get("train.steps", 0)), 1)
        try:
            with open(self.folder / run.name / "metrics.jsonl", "rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL))
                rows = file.read().splitlines()
            return min(int(json.loads(rows[-1])["step"]), last), last
        except (OSError, ValueError, KeyError, IndexError):  # not begun, or a line half written
            return 0, last
