"""The clock of `longstream bench step`: frames one after another or at a rate, on chosen CPUs, without the collector.

At a rate, frame i is due at start + i / rate. The thread sleeps until SPIN seconds before that and then asks the clock
again and again, for a sleep ends some dozens of microseconds late and a core that slept is slow at first. An answer's
time counts from when its frame was due: a thread that the system woke late, or that was still busy with the frame
before, answers late, and that is what the user of a stream sees.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

SPIN = 1e-3  # seconds before a frame is due in which its thread does not sleep
WARM = 20  # steps before each turn that count for nothing
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


class Turn(NamedTuple):
    """What the clock said in one turn; arrays of one number a step, in seconds."""

    steps: np.ndarray  # how long the step took
    answers: np.ndarray  # from the moment the frame was due to the answer; one after another, the same as steps
    late: np.ndarray  # from that moment to the begin of the step


def run_frames(
    step: Callable[[Any], object],
    frames: Sequence[Any],
    count: int,
    rate: float = 0.0,
    *,
    longest: int | None = None,
    restart: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Turn:
    """Call ``step`` on ``count`` frames, in turn those of ``frames``.

    Args:
        rate:    frames a second; 0: the next one as soon as the one before is answered.
        longest: frames after which ``restart`` is called, between two steps.
    """
    steps, answers, late = (np.zeros(count) for _ in range(3))
    number = len(frames)
    restart()
    start = clock() + (1 / rate if rate else 0.0)
    for i in range(count):
        frame = frames[i % number]
        if longest and i and i % longest == 0:
            restart()
        due = begin = clock()
        if rate:
            due = start + i / rate
            if due - begin > SPIN:
                sleep(due - begin - SPIN)
            begin = clock()
            while begin < due:
                begin = clock()
        step(frame)
        end = clock()
        steps[i], answers[i], late[i] = end - begin, end - due, begin - due
    return Turn(steps, answers, late)


def percentile(values: np.ndarray, percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed: one that was measured."""
    if not len(values):
        raise ValueError("percentile: values must be one or more, got none")
    place = max(math.ceil(len(values) * percent / 100 - 1e-9), 1) - 1
    return float(np.partition(values, place)[place])


def summary(values: np.ndarray) -> dict[str, float]:
    """Percentiles, the mean and the worst, in microseconds."""
    found = {name: percentile(values, percent) * 1e6 for name, percent in PERCENTILES.items()}
    return {**found, "mean": float(values.mean()) * 1e6, "worst": float(values.max()) * 1e6}


class Turns(NamedTuple):
    """What a verdict is made from."""

    frames: int
    misses: int  # answers later than the next frame
    worst: float  # seconds


def verdict(found: Turns, rate: float) -> str:
    """What a user of so many frames a second is to make of the answers."""
    budget = 1 / rate
    said = f"{found.frames:,} frames at {rate:g} a second, budget {budget * 1e3:.2f} ms"
    worst = f"the worst answer after {found.worst * 1e3:.3g} ms"
    if found.misses:
        return f"{said}: {found.misses:,} MISSED ({found.misses / found.frames:.2%}), {worst}"
    return f"{said}: none missed, {worst}, {found.worst / budget:.1%} of the budget"


@contextmanager
def no_collector(leave_on: bool = False) -> Iterator[str]:
    """Python's garbage collector off, what is there frozen; yields what was done, in words."""
    if leave_on:
        yield "Python's garbage collector was on"
        return
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield "Python's garbage collector was off while measuring (gc.freeze, gc.disable), for all rows alike"
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def may_pin() -> str | None:
    """None where threads can be pinned to CPUs, else why not."""
    if not hasattr(os, "sched_setaffinity") or not os.path.isdir("/proc/self/task"):
        return "threads cannot be pinned here: it needs Linux (os.sched_setaffinity)"
    return None


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """This thread on the first of ``cpus``, the other threads of the process in turn on the rest; no CPUs: nothing.

    Threads that there are when it begins: what starts threads has to have run before.
    """
    if not cpus:
        yield
        return
    before: dict[int, set[int]] = {}
    here = os.getpid()  # of the main thread, which is the one that steps
    rest = [*cpus[1:]] or [*cpus]
    for i, task in enumerate(sorted(int(name) for name in os.listdir("/proc/self/task"))):
        try:
            before[task] = os.sched_getaffinity(task)
            os.sched_setaffinity(task, {cpus[0]} if task == here else {rest[i % len(rest)]})
        except ProcessLookupError:  # it has ended meanwhile
            before.pop(task, None)
    try:
        yield
    finally:
        for task, allowed in before.items():
            try:
                os.sched_setaffinity(task, allowed)
            except ProcessLookupError:
                continue
