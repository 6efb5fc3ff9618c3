"""One case: check every contestant against its float64 oracle, then time them in turn.

In each round every contestant has a turn: a pause in which the threads of the one before go to sleep, one call that
counts for nothing, then calls that are timed one by one, or in batches where one is too short for the clock. The median
and the minimum are over all rounds. Garbage is collected before them only.

Peak memory is that of one more call: how far the resident memory of the process rises above what stood before, after
free memory went back to the system. It needs Linux and glibc; elsewhere it is not measured.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

OURS = "longstream"  # the package of our rows
TOLERANCE = 1e-3  # largest error of a float32 result, relative to the largest value of its tensor; a wrong one has 1
PAUSE = 0.01  # seconds; threads of OpenMP go on spinning for some milliseconds after their work
SHORTEST = 1e-3  # seconds of a batch of calls that the clock is asked for
LONG = 0.5  # seconds; a call that takes longer needs none before it that counts for nothing, and no more rounds than
FEW = 3
MOST = 100  # batches in a turn
TRAIN = 12  # times the limit for a training step, which is made of many calls
PLAIN_LOOP = 2048  # tokens in all, past which backend "reference" would take longer than everybody else together


class Skip(Exception):
    """Why a contestant does not take part, in words for its row."""


class Case(NamedTuple):
    """What is measured: a group of contestants on one shape. All other sizes are the group's."""

    group: str
    mode: str  # "fwd", "fwd+bwd", "step" (one token from a state), "token" (mean of many) or "train"
    B: int
    T: int

    def __str__(self) -> str:
        return f"{self.group} {self.mode} B={self.B} T={self.T}"


class Entry(NamedTuple):
    """A contestant that is ready to run."""

    run: Callable[[], object]  # a float that it returns is the seconds that it has measured itself
    check: Callable[[], float]  # the largest relative error of its results
    oracle: str  # what they are compared with
    parameters: int | None = None
    work: float | None = None  # what share_of allows at its rate: multiply-adds, bytes
    share_of: str = ""  # name of a limit


class Contestant(NamedTuple):
    """Who takes part in the cases of a group."""

    name: str
    package: str  # the distribution whose version the row shows
    make: Callable[[Case], Entry]  # raises Skip where it cannot take part
    modes: tuple[str, ...] = ("fwd", "fwd+bwd", "step", "token", "train")  # in others it has no row


class Effort(NamedTuple):
    """How much time is spent."""

    rounds: int = 5
    turn: float = 0.1  # seconds of timed calls in a turn
    limit: float = 3.0  # seconds; who needs more for a call is not timed


@dataclass
class Row:
    """What is known of a contestant in a case. Without a time, ``note`` says why."""

    group: str
    mode: str
    B: int
    T: int
    threads: int
    name: str
    package: str
    version: str = ""
    median_ms: float | None = None
    min_ms: float | None = None
    ratio: float | None = None  # of its median to that of the first of ours
    peak_mib: float | None = None
    error: float | None = None
    oracle: str = ""
    parameters: int | None = None
    work: float | None = None
    share_of: str = ""
    share: float | None = None  # of the limit
    note: str = ""


@dataclass
class History:
    """Times of contestants at shorter lengths: who cannot be faster than the limit is not even started."""

    seconds: dict[tuple[str, str, int, str], tuple[int, float]] = field(default_factory=dict)

    def expected(self, case: Case, name: str) -> float:
        """At least so many seconds a call, by the time of the last length; no contestant is faster than linear."""
        T, seconds = self.seconds.get((case.group, case.mode, case.B, name), (1, 0.0))
        return seconds * max(case.T / T, 1) * (0.8 if case.T > T else 1)  # a fifth is left for noise and start-up

    def add(self, case: Case, name: str, seconds: float) -> None:
        """Remember a call."""
        self.seconds[case.group, case.mode, case.B, name] = (case.T, seconds)


def relative_error(got: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest error over all tensors, each relative to the largest value that is right; inf where one is not."""
    worst = 0.0
    for a, b in zip(got, exact, strict=True):
        if a.shape != b.shape:
            return math.inf
        if b.numel():
            error = float((a.detach().double() - b.double()).abs().max() / b.abs().max().clamp(min=1e-30))
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def run_case(
    case: Case,
    contestants: Sequence[Contestant],
    threads: int,
    effort: Effort,
    history: History,
    at: Callable[[str], object] = lambda name: None,
    versions: Callable[[str], str] = lambda package: "",
) -> list[Row]:
    """Check, time and weigh all contestants; ``at`` is told who is about to run."""
    rows = [Row(*_of(case), threads, c.name, c.package, versions(c.package)) for c in contestants]
    ready: list[tuple[Row, Entry, float]] = []
    for contestant, row in zip(contestants, rows, strict=True):
        at(contestant.name)
        try:
            ready += [(row, *one) for one in _prepare(case, contestant, row, effort, history)]
        except Skip as why:
            row.note = str(why)
        except Exception as error:  # whatever another package comes up with ends its row, not the run
            row.note = "failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:200]
    samples: list[list[float]] = [[] for _ in ready]
    gc.collect()
    gc.disable()
    try:
        for turn in range(effort.rounds):
            for (row, entry, seconds), taken in zip(ready, samples, strict=True):
                if seconds > LONG and turn >= FEW:
                    continue
                at(row.name)
                taken += _turn(entry.run, seconds, effort.turn)
    finally:
        gc.enable()
    for (row, entry, _), taken in zip(ready, samples, strict=True):
        row.median_ms, row.min_ms = statistics.median(taken) * 1e3, min(taken) * 1e3
        at(row.name)
        row.peak_mib = peak_mib(entry.run)
    ours = next((row.median_ms for row in rows if row.median_ms and row.package == OURS), None)
    for row in rows:
        if ours and row.median_ms:
            row.ratio = row.median_ms / ours
    return rows


def _of(case: Case) -> tuple[str, str, int, int]:
    return case.group, case.mode, case.B, case.T


def _prepare(
    case: Case, contestant: Contestant, row: Row, effort: Effort, history: History
) -> Iterator[tuple[Entry, float]]:
    """The contestant and the seconds of a call, if it is right and not too slow; else its row says so."""
    limit = effort.limit * (TRAIN if case.mode == "train" else 1)
    expected = history.expected(case, contestant.name)
    if expected > limit:
        least = f"{expected:.1f} s or more by its time at fewer tokens"
        raise Skip(f"not timed: a call takes {least}; the limit is {limit:g} s")
    entry = contestant.make(case)
    row.parameters, row.work, row.share_of, row.oracle = entry.parameters, entry.work, entry.share_of, entry.oracle
    row.error = entry.check()
    if not row.error <= TOLERANCE:
        raise Skip(f"not timed: its output is wrong, error {row.error:.1e} against {entry.oracle}")
    seconds, _ = _call(entry.run)
    if SHORTEST < seconds < 10 * limit:  # the first call may have compiled or allocated
        seconds = min(seconds, _call(entry.run)[0])
    history.add(case, contestant.name, seconds)
    if seconds > limit:
        raise Skip(f"not timed: a call takes {seconds:.1f} s; the limit is {limit:g} s")
    yield entry, seconds


def _call(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and what it says they are."""
    start = time.perf_counter()
    own = run()
    taken = time.perf_counter() - start
    return taken, own if isinstance(own, float) else taken


def _turn(run: Callable[[], object], seconds: float, turn: float) -> list[float]:
    """Times of some calls, or of batches of them; ``seconds`` is what one took before."""
    calls = max(1, math.ceil(SHORTEST / max(seconds, 1e-7)))
    batches = min(max(1, round(turn / (calls * max(seconds, 1e-7)))), MOST)
    time.sleep(PAUSE)
    first = run() if seconds < LONG else None
    if calls == 1 or isinstance(first, float):  # who has a clock of its own has it in every call
        return [_call(run)[1] for _ in range(batches)]
    return [_batch(run, calls) for _ in range(batches)]


def _batch(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def peak_mib(run: Callable[[], Any]) -> float | None:
    """How far a call raises the process's memory, in MiB; None where the system does not say."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")  # the highest mark starts anew
        before = _status(status, "VmRSS")
        run()
        return max(0, _status(status, "VmHWM") - before) / 1024
    except (OSError, AttributeError, TypeError):
        return None


def _status(path: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
