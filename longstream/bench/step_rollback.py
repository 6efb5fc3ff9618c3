"""What it costs to be able to go back: keeping the states of ten frames, and taking ten frames back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from longstream.bench.measure import Skip
from longstream.bench.step_clock import WARM, no_collector
from longstream.bench.step_subject import Prepared

DEPTH = 10  # frames, as a connection may roll back
TIMES = 300
TURNS = 20  # of steps with a history and without one, in turn


class Cost(NamedTuple):
    """Median microseconds of something, and of the slowest hundredth."""

    what: str
    p50: float
    p99: float


def measure_rollback(given: Prepared, threads: int, times: int = TIMES) -> list[Cost]:
    """Costs of a native float32 stream with a history of DEPTH frames, batch and all.

    Raises:
        Skip: there is no native stream of this model.
    """
    from longstream.stream import Stream

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    options: dict[str, Any] = {"batch_size": given.subject.batch, "backend": "native", "threads": threads}
    try:
        plain, kept = Stream(given.module, **options), Stream(given.module, history=DEPTH, **options)
    except (RuntimeError, TypeError) as error:
        raise Skip(" ".join(str(error).split())[:200]) from None
    frames, out = given.frames, plain.step(given.frames[0])
    steps: dict[str, list[float]] = {"plain": [], "kept": []}
    try:
        with torch.inference_mode(), no_collector():
            for _ in range(TURNS):
                for name, stream in (("plain", plain), ("kept", kept)):
                    stream.reset()
                    for i in range(max(times // TURNS, 1) + WARM):
                        begin = time.perf_counter()
                        stream.step(frames[i], out=out)
                        if i >= WARM:
                            steps[name].append(time.perf_counter() - begin)
            back = _timed(times, lambda: kept.rollback(DEPTH), lambda: _go(kept, frames, out))
            state = kept.state
            copy = _timed(times, lambda: kept.state)
            load = _timed(times, lambda: kept.load(state))
    finally:
        torch.set_num_threads(before)
    with_, without = (np.array(steps[name]) for name in ("kept", "plain"))
    more = float(np.median(with_) - np.median(without)) * 1e6
    return [
        _cost("a step without a history", without),
        _cost(f"a step with a history of {DEPTH}: each keeps the state before it", with_),
        Cost("the state of one frame kept: their difference", more, more),
        _cost(f"rollback({DEPTH})", back),
        _cost("stream.state, a copy as a State", copy),
        _cost("stream.load(state)", load),
    ]


def _go(stream: Any, frames: Sequence[Any], out: Any) -> None:
    for i in range(DEPTH):
        stream.step(frames[i], out=out)


def _timed(times: int, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> np.ndarray:
    found = np.zeros(times)
    for i in range(times):
        before()
        begin = time.perf_counter()
        run()
        found[i] = time.perf_counter() - begin
    return found


def _cost(what: str, seconds: np.ndarray) -> Cost:
    return Cost(what, float(np.median(seconds)) * 1e6, float(np.quantile(seconds, 0.99)) * 1e6)


def snapshot_and_rollback(costs: Sequence[Cost]) -> float:
    """Microseconds of keeping one state and taking DEPTH frames back."""
    kept = next(cost for cost in costs if cost.what.startswith("the state of one frame"))
    back = next(cost for cost in costs if cost.what.startswith("rollback"))
    return max(kept.p50, 0.0) + back.p50
