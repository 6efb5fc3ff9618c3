"""How fast the weights of a step could be read and nothing else done: the least time that a step can take.

A step at batch 1 reads every weight once, so the limit is their bytes over the rate at which so many bytes are read
again and again, with as many threads: that of the cache they fit into, or of the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from longstream.ops import _native

PASS = 0.02  # seconds of reading that the clock is asked for
CACHES = ((2**20, "KiB", 10), (2**30, "MiB", 20), (2**62, "GiB", 30))


class Rates(NamedTuple):
    """Bytes a second of a buffer that is read, and of one that is copied (read and written), best and median."""

    nbytes: int
    threads: int
    read: float
    read_median: float
    copy: float
    how: str


def measure_rates(nbytes: int, threads: int, seconds: float = 0.4) -> Rates:
    """The rates of a buffer of ``nbytes``; torch's threads are as they were afterwards."""
    if nbytes < 4:
        raise ValueError(f"measure_rates: nbytes must be at least 4, got {nbytes}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        numbers, target = torch.ones(nbytes // 4), torch.empty(nbytes // 4)
        read, how = _reader(numbers, threads)
        reads = _rates(read, 4 * len(numbers), seconds)
        copies = _rates(lambda repeats: _copy(numbers, target, repeats), 8 * len(numbers), seconds)
    finally:
        torch.set_num_threads(before)
    return Rates(nbytes, threads, max(reads), sorted(reads)[len(reads) // 2], max(copies), how)


def _reader(numbers: torch.Tensor, threads: int) -> tuple[Callable[[int], object], str]:
    if _native.MISSING is None and hasattr(torch.ops.longstream, "read_numbers"):
        sums = torch.empty(threads)
        return lambda repeats: torch.ops.longstream.read_numbers(numbers, sums, repeats), "vector sums (csrc/limits)"
    return lambda repeats: [numbers.sum() for _ in range(repeats)], "torch.sum"


def _copy(source: torch.Tensor, target: torch.Tensor, repeats: int) -> None:
    for _ in range(repeats):
        target.copy_(source)


def _rates(run: Callable[[int], object], nbytes: int, seconds: float) -> list[float]:
    """Bytes a second of each of some batches."""
    start = time.perf_counter()
    run(1)
    repeats = max(1, round(PASS / max(time.perf_counter() - start, 1e-7)))
    found = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        run(repeats)
        found.append(nbytes * repeats / (time.perf_counter() - start))
    return found


def show_bytes(nbytes: float) -> str:
    """In KiB, MiB or GiB, three digits."""
    for most, unit, shift in CACHES:
        if nbytes < most:
            return f"{nbytes / 2**shift:.3g} {unit}"
    return f"{nbytes:g} B"
