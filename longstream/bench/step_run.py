"""Rows of `longstream bench step`: each checked, then all of them timed in alternating rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from longstream.bench import peers
from longstream.bench.measure import PAUSE, TOLERANCE, Skip, relative_error
from longstream.bench.step_clock import WARM, Turn, Turns, no_collector, pinned, run_frames, summary, verdict
from longstream.bench.step_limits import Rates, measure_rates
from longstream.bench.step_ours import Contender, Ready
from longstream.bench.step_subject import Prepared, Subject, answer

TURN = 4.0  # seconds that a turn of steps one after another takes at most
FIRST = 50  # steps of a contender's first turn
QUANTILES = 400  # numbers that results.json keeps of a distribution


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    steps: int = 20000  # of streams at a rate, and of all rows one after another where TURN allows
    others: int = 1200  # of the other rows at a rate
    rate: float = 60.0  # frames a second; 0 leaves that part out
    rounds: int = 5
    threads: Sequence[int] = (1,)
    cpus: Sequence[int] = ()  # of the pinned half; none: it is left out
    collector: bool = False  # leave Python's garbage collector on
    limits: float = 0.4  # seconds for each rate of memory

    @property
    def pins(self) -> list[tuple[int, ...]]:
        """Unpinned, and pinned where that is possible."""
        return [(), tuple(self.cpus)] if self.cpus else [()]


@dataclass
class StepRow:
    """A contender at one pace. Times are in microseconds; without them, ``note`` says why."""

    group: str  # the subject, in words
    name: str
    package: str
    version: str
    rate: float  # frames a second, 0: one after another
    pinned: str  # the CPUs, "" for none
    threads: int
    batch: int
    steps: int = 0
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None
    worst: float | None = None
    mean: float | None = None
    late: float | None = None  # the latest that a step began after its frame was due
    misses: int | None = None  # answers later than the next frame
    over_limit: float | None = None  # p50 over the time that reading its weights once takes
    limit: float | None = None  # that time
    error: float | None = None
    lost: float | None = None  # of weights that are not float32: error against those that are
    oracle: str = ""
    weights: str = ""
    parameters: int | None = None
    weight_bytes: int | None = None
    state_bytes: int | None = None
    allocations: float | None = None  # of tensors, a step
    mallocs: float | None = None  # all calls of malloc, a step
    note: str = ""
    answers: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)  # seconds, sorted, at most QUANTILES


class Entry(NamedTuple):
    """A contender that may be timed, with so many threads."""

    contender: Contender
    threads: int
    ready: Ready
    about: dict[str, Any]  # fields that all of its rows share


def measure_subject(
    given: Prepared,
    contenders: Sequence[Contender],
    effort: Effort,
    rows: list[StepRow],
    tell: Callable[[str], object] = lambda line: None,
) -> list[Rates]:
    """Check all contenders with every number of threads, and time them; the rates of memory for their weights.

    Their rows are added to ``rows``, also where Ctrl-C ends it.
    """
    before = torch.get_num_threads()
    entries: list[Entry] = []
    refused: list[StepRow] = []
    timed: list[StepRow] = []
    rates = Limits(effort.limits)
    try:
        for threads in effort.threads:
            for contender in contenders:
                tell(f"  {contender.name}, {threads} thread{'s' * (threads > 1)}: checking")
                about = _about(given.subject, contender, threads)
                try:
                    entries.append(check(given, contender, threads, about))
                except Skip as why:
                    refused.append(StepRow(**about, rate=0.0, pinned="", note=str(why)))
                except Exception as error:  # whatever another package comes up with ends its row, not the run
                    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                    refused.append(StepRow(**about, rate=0.0, pinned="", note=f"failed: {said}"))
        rates.look_at(entries)
        with no_collector(effort.collector):
            for rate in (0.0, effort.rate) if effort.rate else (0.0,):
                time_entries(given, entries, effort, rate, timed, tell)
        rates.look_at(entries)
    finally:
        torch.set_num_threads(before)
        for row in timed:
            rates.apply(row)
        rows += timed + refused
    return rates.found


@torch.inference_mode()
def check(given: Prepared, contender: Contender, threads: int, about: dict[str, Any]) -> Entry:
    """A contender whose outputs are right.

    Raises:
        Skip: they are not, or it cannot run here.
    """
    torch.set_num_threads(threads)
    with torch.inference_mode(mode=False), torch.no_grad():  # what it makes is to outlive this call
        ready = contender.make(given, threads)
    about |= {
        "oracle": ready.oracle,
        "weights": ready.weights,
        "parameters": ready.parameters,
        "weight_bytes": ready.weight_bytes,
        "state_bytes": ready.state_bytes,
    }
    ready.restart()
    got = torch.stack([answer(ready.step(frame)).clone() for frame in given.frames[: len(ready.exact)]])
    about["error"] = error = relative_error([got], [ready.exact])
    if ready.unrounded is not None:
        about["lost"] = relative_error([got], [ready.unrounded])
    if not error <= TOLERANCE:
        raise Skip(f"not timed: its output is wrong, error {error:.1e} against {ready.oracle}")
    return Entry(contender, threads, ready, about)


def _about(subject: Subject, contender: Contender, threads: int) -> dict[str, Any]:
    return {
        "group": subject.title,
        "name": contender.name,
        "package": contender.package,
        "version": peers.version(contender.package),
        "threads": threads,
        "batch": subject.batch,
    }


def time_entries(
    given: Prepared,
    entries: Sequence[Entry],
    effort: Effort,
    rate: float,
    rows: list[StepRow],
    tell: Callable[[str], object],
) -> None:
    """Add a row for every entry and way of pinning, all of them in turn, round after round."""
    pins = effort.pins
    turns: dict[tuple[int, tuple[int, ...]], list[Turn]] = {}
    try:
        for turn in range(effort.rounds):
            for i, entry in enumerate(entries):
                for pin in pins:
                    count = _count(entry, effort, rate, turn, turns.get((i, pin), []))
                    if not count:
                        continue
                    tell(
                        f"  round {turn + 1} of {effort.rounds}, {_pace(rate)}: {entry.contender.name},"
                        f" {entry.threads} thread{'s' * (entry.threads > 1)}{', pinned' * bool(pin)}, {count:,} steps"
                    )
                    turns.setdefault((i, pin), []).append(_turn(given, entry, count, rate, pin))
    finally:
        for (i, pin), found in sorted(turns.items(), key=lambda item: (item[0][1], item[0][0])):
            cpus = ",".join(map(str, pin[: entries[i].threads]))
            rows.append(make_row(entries[i].about, found, rate, cpus))


def _pace(rate: float) -> str:
    return f"{rate:g} a second" if rate else "one after another"


def _count(entry: Entry, effort: Effort, rate: float, turn: int, so_far: Sequence[Turn]) -> int:
    """Steps of a turn, from 0."""
    is_stream = entry.contender.key == "stream"
    if rate:
        if entry.threads != effort.threads[0]:
            return 0
        whole = effort.steps if is_stream and entry.ready.weights == "float32" else min(effort.others, effort.steps)
        return whole * (turn + 1) // effort.rounds - whole * turn // effort.rounds
    if not turn:
        return min(-(-effort.steps // effort.rounds), FIRST)  # by which the others are measured out
    left = effort.steps - sum(len(one.steps) for one in so_far)
    most = round(TURN / float(np.median(so_far[0].steps)))
    return min(-(-left // (effort.rounds - turn)), max(most, 1))


def _turn(given: Prepared, entry: Entry, count: int, rate: float, cpus: Sequence[int]) -> Turn:
    torch.set_num_threads(entry.threads)
    time.sleep(PAUSE)  # in which the threads of the one before stop spinning
    ready = entry.ready
    with torch.inference_mode():
        run_frames(ready.step, given.frames, WARM, longest=given.longest, restart=ready.restart)
        with pinned(cpus[: entry.threads]):
            return run_frames(ready.step, given.frames, count, rate, longest=given.longest, restart=ready.restart)


def make_row(about: dict[str, Any], turns: Sequence[Turn], rate: float, cpus: str) -> StepRow:
    """What came of some turns."""
    answers = np.concatenate([turn.answers for turn in turns])
    times = summary(answers)
    row = StepRow(**about, rate=rate, pinned=cpus, steps=len(answers))
    row.p50, row.p99, row.p999 = times["p50"], times["p99"], times["p99.9"]
    row.worst, row.mean = times["worst"], times["mean"]
    if rate:
        row.misses = int((answers > 1 / rate).sum())
        row.late = max(float(turn.late.max()) for turn in turns) * 1e6
    row.answers = tail(answers)
    return row


def ranks(n: int, most: int = QUANTILES) -> np.ndarray:
    """Which of n sorted answers are kept, counted from the slowest, 1: all of the slowest, ever fewer of the others."""
    return np.arange(1, n + 1) if n <= most else np.unique(np.geomspace(1, n, most).round().astype(int))


def tail(answers: np.ndarray) -> np.ndarray:
    """Sorted answers, of many those of `ranks`."""
    return np.sort(answers)[len(answers) - ranks(len(answers))][::-1]


class Limits:
    """The rates of memory for the weights of all entries, measured before and after; the higher ones count."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.best: dict[tuple[int, int], Rates] = {}

    @property
    def found(self) -> list[Rates]:
        """All rates, by bytes and threads."""
        return [self.best[key] for key in sorted(self.best)]

    def look_at(self, entries: Sequence[Entry]) -> None:
        """Measure once more, for streams: theirs are the rows that are held against the limit."""
        wanted = {(e.ready.weight_bytes, e.threads) for e in entries if e.contender.key == "stream"}
        for nbytes, threads in sorted((n, threads) for n, threads in wanted if n):
            new = measure_rates(nbytes, threads, self.seconds)
            old = self.best.get((nbytes, threads), new)
            medians = (old.read_median + new.read_median) / 2
            self.best[nbytes, threads] = new._replace(
                read=max(old.read, new.read), read_median=medians, copy=max(old.copy, new.copy)
            )

    def apply(self, row: StepRow) -> None:
        """Give a row its limit: its weights over the higher of the two rates."""
        rates = self.best.get((row.weight_bytes or 0, row.threads))
        if rates is not None and row.name.startswith("Stream"):
            row.limit = rates.nbytes / max(rates.read, rates.copy) * 1e6
            row.over_limit = (row.p50 or 0.0) / row.limit


def verdict_of(row: StepRow) -> str:
    """Whether the answers of a row at a rate came in time, in a sentence."""
    found = Turns(row.steps, row.misses or 0, (row.worst or 0.0) / 1e6)
    threads = f"{row.threads} thread{'s' * (row.threads > 1)}"
    return (
        f"{row.group}, {row.name}, {threads}{f' on CPUs {row.pinned}' * bool(row.pinned)}: {verdict(found, row.rate)}"
    )


def fastest(rows: Sequence[StepRow], rate: float = 0.0) -> Iterator[StepRow]:
    """Of each name the row with the lowest p50: of numbers of threads and ways of pinning the best for it."""
    best: dict[tuple[str, str], StepRow] = {}
    for row in rows:
        if row.p50 is not None and row.rate == rate:
            key = (row.group, row.name)
            if key not in best or row.p50 < (best[key].p50 or math.inf):
                best[key] = row
    yield from best.values()
