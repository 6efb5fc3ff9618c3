"""What the machine can do at most, which the kernels are held against.

matrix product:   flops a second of torch.mm, 2048 x 2048, float32; a multiply-add is two flops.
multiply-adds:    a second, of float32 vectors in registers (csrc/limits_kernels.cpp). None where csrc is not compiled.
copy:             bytes a second, read and written, of copy_ of 256 MiB.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from longstream.ops import _native

MATRIX = 2048
COPY = 2**28  # bytes
REPEATS = 100_000  # about 20 ms
FLOPS, MULTIPLY_ADDS, BYTES = "matrix product", "multiply-adds", "copy"
UNITS = {FLOPS: "Gflop/s", MULTIPLY_ADDS: "G multiply-adds/s", BYTES: "GB/s"}
WHAT = {
    FLOPS: f"torch.mm, {MATRIX} x {MATRIX}, float32",
    MULTIPLY_ADDS: "vector multiply-adds in registers, float32",
    BYTES: f"copy_ of {COPY >> 20} MiB, bytes read and written",
}


def measure_limits(seconds: float = 1.0, copy: int = COPY, matrix: int = MATRIX) -> dict[str, float | None]:
    """The best rate of each, a second, with the threads that torch has now; they take turns for some seconds each."""
    a, b, c = (torch.randn(matrix, matrix) for _ in range(3))
    source, target = torch.ones(copy // 4), torch.empty(copy // 4)
    sums = torch.empty(16 * torch.get_num_threads())

    def product() -> float:
        torch.mm(a, b, out=c)
        return 2.0 * matrix**3

    def multiply_adds() -> float:
        return float(torch.ops.longstream.multiply_adds(sums, REPEATS) * len(sums))

    def move() -> float:
        target.copy_(source)
        return 2.0 * copy

    probes: dict[str, Callable[[], float]] = {FLOPS: product, BYTES: move}
    if _native.MISSING is None:
        probes[MULTIPLY_ADDS] = multiply_adds
    best: dict[str, float | None] = {FLOPS: None, MULTIPLY_ADDS: None, BYTES: None}
    end = time.perf_counter() + seconds * len(probes)
    while any(best[name] is None for name in probes) or time.perf_counter() < end:
        for name, probe in probes.items():
            start = time.perf_counter()
            done = probe()
            best[name] = max(best[name] or 0.0, done / (time.perf_counter() - start))
    return best


def better(a: dict[str, float | None], b: dict[str, float | None]) -> dict[str, float | None]:
    """The higher rate of each."""
    return {name: max((rate for rate in (a.get(name), b.get(name)) if rate), default=None) for name in WHAT}
