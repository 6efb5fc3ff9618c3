"""Time and peak memory of `gla` over T: ``python benchmarks/gla.py``; B = 1, H = 4, K = V = 128, float32.

Before the clock starts, output, final state and gradients are compared with the plain loop in float64. Every row has
processes of its own: several for the time, in turn with the other rows', of which the median counts, and one for the
memory, in which freed blocks go back to the system at once (Linux).
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from longstream.ops import gla

H, K = 4, 128


def inputs(T: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Signed values, and gates from slow to fast."""
    torch.manual_seed(0)
    q, v = torch.randn(1, T, H, K), torch.randn(1, T, H, K)
    forget = torch.rand(1, T, H, K) ** 0.05
    given = [q, 1 - forget, v, forget.log(), torch.randn(1, H, K, K)]
    return [x.to(dtype).requires_grad_() for x in given]


def check(T: int) -> float:
    """The largest error of all results, relative to the largest value of each, against the float64 loop."""
    results = []
    for backend, dtype in (("torch", torch.float32), ("reference", torch.float64)):
        given = inputs(T, dtype)
        out, last = gla(*given, backend=backend)
        gradients = torch.autograd.grad((out, last), given, (out.detach(), last.detach()))
        results.append([out.detach(), last.detach(), *gradients])
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def run(given: list[torch.Tensor], mode: str) -> None:
    """One call, with gradients of everything in mode fwd+bwd."""
    with torch.set_grad_enabled(mode == "fwd+bwd"):
        out, last = gla(*given, backend="torch")
        if mode == "fwd+bwd":
            torch.autograd.grad((out, last), given, (out, last))


def seconds(T: int, mode: str) -> float:
    """Median of three calls after one."""
    given, taken = inputs(T), []
    for _ in range(4):
        start = time.perf_counter()
        run(given, mode)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def peak_mib(T: int, mode: str) -> float:
    """Peak memory of the second call above what stood before it."""
    given = inputs(T)
    run(given, mode)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    run(given, mode)
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def alone(what: str, T: int, mode: str) -> float:
    """What a process of its own measures."""
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "peak_mib" else {}
    command = [sys.executable, __file__, "--one", what, str(T), mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **returning})
    return float(done.stdout)


def main() -> None:
    """Print one row for each T and mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(globals()[args.one[0]](int(args.one[1]), args.one[2]))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"largest relative error against the float64 loop at T=1024: {check(1024):.1e}")
    rows = [(T, mode) for T in args.lengths for mode in ("fwd", "fwd+bwd")]
    times: dict[tuple[int, str], list[float]] = {row: [] for row in rows}
    for _ in range(args.rounds):
        for row in rows:
            times[row].append(alone("seconds", *row))
    print(f"{'T':>6} {'mode':8} {'ms':>8} {'us/token/head':>14} {'peak MiB':>9} {'of q,k,v,f':>11}")
    for T, mode in rows:
        median, peak = statistics.median(times[T, mode]), alone("peak_mib", T, mode)
        given = 4 * T * H * K * 4 / 2**20
        print(f"{T:6} {mode:8} {median * 1e3:8.1f} {median / T / H * 1e6:14.2f} {peak:9.1f} {peak / given:11.2f}")


if __name__ == "__main__":
    main()
