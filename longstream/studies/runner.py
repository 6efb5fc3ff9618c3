"""A study from its declaration to its folder: what is finished is taken, what is missing is trained, then reported."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from longstream.studies.machine import machine
from longstream.studies.pool import Pool, cores
from longstream.studies.progress import Progress
from longstream.studies.report import write_report
from longstream.studies.results import Alone, Outcome, StudyFolder
from longstream.studies.study import LEAST_STEPS, Plan, Result, Run, Study
from longstream.train.settings import DEFAULT_STEPS

logger = logging.getLogger("longstream")

USUAL_FIGURES = ("loss", "bits_per_byte", "perplexity", "accuracy", "sequences", "parameters", "minutes")  # of runs
PATIENCE = 1.5  # times the budget, after which no more runs begin


def make_plan(study: Study, scale: Any, seeds: int, budget: float | None, data: Path | None) -> Plan:
    """The plan that a budget of so many minutes on two cores allows; None is all that the study wants.

    Raises:
        ValueError: the budget is too small for the fewest steps; the message says how much is needed.
    """
    plan = Plan(scale=scale, seeds=tuple(range(seeds)), data=data)
    if budget is None:
        return plan
    whole = _minutes(study, plan)
    runs = expected_runs(study, plan)
    weight = sum(run.minutes for run in runs)
    fixed = whole * study.fixed.get(scale, 0.0) / study.minutes[scale]
    shares = [run.minutes / weight * min(1.0, LEAST_STEPS / _steps(run)) for run in runs]
    least = fixed + (whole - fixed) * sum(shares) if runs else whole
    if budget < least:
        needed = math.ceil(10 * least) / 10
        what = f" for {LEAST_STEPS} steps of each of its {len(runs)} runs at scale {scale} with {seeds} seeds"
        rest = f"; all steps take {whole:.0f}" if runs else ": it measures, and trains nothing"
        raise ValueError(
            f"study {study.name}: --budget must be at least {needed:g} minutes{what if runs else ''}, got"
            f" {budget:g}{rest}"
        )
    return replace(plan, factor=(budget - fixed) / (whole - fixed) if runs else 1.0)


def run_study(
    module: str,
    study: Study,
    plan: Plan,
    path: str | Path,
    *,
    budget: float | None = None,
    jobs: int = 0,
    fresh: bool = False,
) -> Outcome:
    """Carry out a study in the folder ``path``, or go on with what is there.

    Args:
        module: that has it as STUDY, for the processes that train.
        budget: minutes, of the plan's factor.
        jobs:   processes that train at the same time; 0 is one a core.
        fresh:  delete what an earlier study left there.
    Raises:
        ValueError: the folder holds another study, scale or budget, or a run failed.
        FileExistsError: it holds other things, or a study is carried out there now.
    """
    folder = StudyFolder(path)
    with folder.locked():
        asked = folder.open(study.name, plan, budget, fresh=fresh)
        session = {**machine(), "began": _now(), "jobs": jobs or cores(), "runs": 0, "minutes": 0.0}
        asked.sessions.append(session)
        started = time.monotonic()
        outcome = Outcome(study, plan, asked, folder, [], {})
        failed: Exception | None = None
        try:
            folder.write_asked(asked)
            _train_all(module, outcome, jobs or cores(), PATIENCE * 60 * budget if budget else math.inf)
            if not outcome.left and not outcome.interrupted_by:
                try:
                    outcome.alone = _measure_alone(outcome)
                except Exception as error:  # of speed and memory: what was trained is reported all the same
                    failed = error
        finally:
            session["minutes"] = round((time.monotonic() - started) / 60, 2)
            if not session["runs"] and len(asked.sessions) > 1:  # the report alone was written anew
                asked.sessions.remove(session)
            folder.write_asked(asked)
        asked.pictures = write_report(outcome)
        folder.write_asked(asked)
    if failed is not None:
        raise ValueError(
            f"study {study.name}: speed and memory could not be measured: {failed}; {folder.path} has the rest"
        ) from failed
    return outcome


class _Training:
    """The runs of a study while they are trained."""

    def __init__(self, module: str, outcome: Outcome, jobs: int, seconds: float) -> None:
        self.outcome, self.end = outcome, time.monotonic() + seconds
        self.stop: dict[str, str] = {}  # why no more runs begin: "signal", "time", "failed"
        expected = expected_runs(outcome.study, outcome.plan)
        self.log = outcome.folder.log.open("a", encoding="utf-8")
        self.pool = Pool(module, outcome.folder.runs, jobs, self.log)
        self.progress = Progress(outcome.study.name, outcome.folder.runs, jobs, outcome.plan.factor, expected)

    def train(self, runs: Sequence[Run]) -> None:
        """Train runs, the first seeds first and of a seed the longest; what came of each is written down at once.

        Raises:
            ValueError: one failed for another reason than a loss that is no number.
        """
        folder = self.outcome.folder
        ordered = sorted(runs, key=lambda run: (run.seed, -run.minutes))
        for event in self.pool.train(ordered, self.stop):
            if time.monotonic() > self.end:
                self.stop.setdefault("time", "the budget's time is used up")
            if event is None:
                self.progress.update(self.pool.at_work)
                continue
            run, said = event
            if said["status"] in ("done", "diverged"):
                self.outcome.asked.sessions[-1]["runs"] += 1
                folder.add_result(Result(run, said["status"], said["measured"], said["made"]))
                self.progress.finish(run, said["status"], said["measured"])
            elif said["status"] != "interrupted" and not self.outcome.interrupted_by:
                self.stop.setdefault("failed", f"run {run.name} failed: {said['why']}")
                self.pool.interrupt()
        if "failed" in self.stop:
            name, log = self.outcome.study.name, folder.log
            raise ValueError(f"study {name}: {self.stop['failed']}; what is finished stays, and {log} has the rest")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM let all runs save and end, a second one ends them at once."""

        def on_signal(number: int, frame: Any) -> None:
            if not self.outcome.interrupted_by:
                self.progress.say("stopping, saving first; again to stop at once")
            self.outcome.interrupted_by = number
            self.stop["signal"] = "interrupted"
            self.pool.interrupt()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """End the processes."""
        self.progress.stop()
        self.pool.close()
        self.log.close()


def _train_all(module: str, outcome: Outcome, jobs: int, seconds: float) -> None:
    """Train what the study declares, and what it declares then, until it declares no more or something stops it."""
    study, folder = outcome.study, outcome.folder
    folder.runs.mkdir(exist_ok=True)
    folder.read_results()
    training = _Training(module, outcome, jobs, seconds)
    done: list[Result] = []  # what the study is told: of whole rounds, so that it does not depend on interruptions
    runs: list[Run] = []
    training.progress.start()
    try:
        with training.listening():
            while not training.stop and len(declared := _declared(study, outcome.plan, done)) > len(runs):
                runs = declared
                missing = [run for run in runs if folder.result_of(run) is None]
                training.progress.declare(runs, [run.name for run in runs if run not in missing])
                training.train(missing)
                done = _results(folder, runs)
            if len(done) == len(runs):  # stopped between two rounds, it is not at its end
                runs = _declared(study, outcome.plan, done)
            if study.alone is not None and not training.stop and folder.read_alone(runs) is None:
                training.train(_without_folder(folder, done))
    finally:
        folder.write_results(runs)
        outcome.asked.sessions[-1]["trained with"] = training.pool.kernels
        training.close()
    outcome.results = _results(folder, runs)
    outcome.left = max(len(runs), len(expected_runs(study, outcome.plan))) - len(outcome.results)
    outcome.why = next(iter(training.stop.values()), "") if outcome.left else ""


def _declared(study: Study, plan: Plan, done: Sequence[Result]) -> list[Run]:
    """The runs that a study declares.

    Raises:
        ValueError: two of them have one name.
    """
    runs = list(study.runs(plan, done))
    names = [run.name for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"study {study.name}: runs must have names of their own, got {min(twice)} twice")
    return runs


def _results(folder: StudyFolder, runs: Sequence[Run]) -> list[Result]:
    """Those that there are, as declared."""
    return [result for run in runs if (result := folder.result_of(run)) is not None]


def _without_folder(folder: StudyFolder, results: Sequence[Result]) -> list[Run]:
    """Runs that are done, but whose directory is gone."""
    gone = [
        r.run for r in results if r.status == "done" and not (folder.runs / r.run.name / "model.safetensors").is_file()
    ]
    if gone:
        logger.warning(
            "%s: %d run directories are gone, which speed is measured with: trained again", folder.path, len(gone)
        )
    return gone


def _measure_alone(outcome: Outcome) -> Alone:
    """Figures of speed and memory, those that are there or new ones."""
    study, folder = outcome.study, outcome.folder
    runs = [result.run for result in outcome.results]
    if study.alone is None:
        return {}
    if (found := folder.read_alone(runs)) is None:
        logger.info("%s: measuring speed and memory, with nothing else running", study.name)
        measured = study.alone(outcome.plan, folder.runs)
        found = {key: {name: float(value) for name, value in of.items()} for key, of in measured.items()}
        folder.write_alone(runs, found, machine())
    return found


def expected_runs(study: Study, plan: Plan) -> list[Run]:
    """The runs that a study will have declared in the end, were all figures alike; what is tuned moves none of this."""
    figures = dict.fromkeys([*(metric.key for metric in study.metrics), *USUAL_FIGURES], 1.0)
    runs = _declared(study, plan, ())
    while len(more := _declared(study, plan, [Result(run, "done", figures) for run in runs])) > len(runs):
        runs = more
    return runs


def _minutes(study: Study, plan: Plan) -> float:
    """That a study takes on two cores with all steps: as measured, and longer with more seeds than by default."""
    plans = plan, Plan(scale=plan.scale, data=plan.data)
    asked, usual = (sum(run.minutes for run in expected_runs(study, each)) for each in plans)
    return study.minutes[plan.scale] * (asked / usual if usual else 1.0)


def _steps(run: Run) -> int:
    return int(run.settings.get("train.steps", 0)) or DEFAULT_STEPS


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
