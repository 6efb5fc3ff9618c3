"""Time of `gated_scan`: ``python benchmarks/gated_scan.py``; float32, real and complex, against the plain loop.

Before the clock starts, outputs, final states and gradients are compared with the plain loop in float64. In every round
each row is measured once, the loop right after the scan it is compared with; of the rounds the median counts. A step
(T = 1) stands beside the bare expression.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longstream.ops import gated_scan

SHAPES = [(8, 256, 256), (2, 1024, 256), (1, 16384, 512)]


def inputs(B: int, T: int, D: int, unit: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Signed values, and gates from slow to fast."""
    torch.manual_seed(0)
    pair = (2,) if unit == "complex" else ()
    given = {"x": torch.randn(B, T, *pair, D), "log_forget": (torch.rand(B, T, D) ** 0.05).log()}
    given["initial_state"] = torch.randn(B, *pair, D)
    if pair:
        given["theta"] = 10000 ** -(torch.arange(D) / D)
    return {name: x.to(dtype).requires_grad_() for name, x in given.items()}


def results(given: dict[str, Any], backend: str) -> list[Tensor]:
    """Output, final state and the gradients of everything."""
    out, last = gated_scan(**given, backend=backend)
    return [out.detach(), last.detach(), *torch.autograd.grad((out, last), list(given.values()), (out, last))]


def check(B: int, T: int, D: int, unit: str) -> float:
    """The largest error of all results, relative to the largest value of each, against the float64 loop."""
    got = results(inputs(B, T, D, unit), "torch")
    exact = results(inputs(B, T, D, unit, torch.float64), "reference")
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, exact, strict=True))


def seconds(run: Callable[[], object], calls: int) -> float:
    """Mean of some calls."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # the first minds no other program
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def forward(given: dict[str, Any], backend: str) -> None:
    """One call without gradients."""
    with torch.no_grad():
        gated_scan(**given, backend=backend)


def bare(given: dict[str, Any]) -> None:
    """A step as one would write it by hand."""
    with torch.no_grad():
        x, forget, h = given["x"][:, 0], given["log_forget"][:, 0].exp(), given["initial_state"]
        if "theta" not in given:
            _ = forget * h + x
            return
        re, im = h.unbind(1)
        cos, sin = forget * given["theta"].cos(), forget * given["theta"].sin()
        _ = torch.stack([cos * re - sin * im, sin * re + cos * im], dim=1) + x


def rows(shapes: list[tuple[int, int, int]]) -> dict[str, tuple[Callable[[], object], Callable[[], object], int]]:
    """By name: what is measured, what it is compared with, and calls a round."""
    table = {}
    for unit in ("real", "complex"):
        for B, T, D in shapes:
            given = inputs(B, T, D, unit)
            for mode, run in (("fwd", forward), ("fwd+bwd", results)):
                pair = [lambda given=given, run=run, backend=b: run(given, backend) for b in ("torch", "reference")]
                table[f"{unit:8} {f'{B} x {T} x {D}':16} {mode}"] = (*pair, 1)
        step = inputs(1, 1, 256, unit)
        name = f"{unit:8} {'1 x 1 x 256':16} fwd (bare)"
        table[name] = (lambda given=step: forward(given, "torch"), lambda given=step: bare(given), 500)
    return table


def main() -> None:
    """Print one line for each shape, unit and mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--longest", type=int, default=16384, help="leave out shapes with more tokens")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    shapes = [shape for shape in SHAPES if shape[1] <= args.longest]
    threads = torch.get_num_threads()
    clock = "process time" if threads == 1 else "wall time"
    print(f"torch {torch.__version__}, {threads} threads, {clock}, {torch.backends.cpu.get_cpu_capability()}")
    for unit in ("real", "complex"):
        worst = max(check(*shape, unit) for shape in SHAPES if shape[1] <= 1024)
        print(f"largest relative error against the float64 loop, {unit}: {worst:.1e}")
    table = rows(shapes)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in table}
    for turn in range(args.rounds + 1):
        for name, (scan, other, calls) in table.items():
            pair = seconds(scan, calls), seconds(other, calls)
            if turn:  # the first round only warms up
                taken[name].append(pair)
    print(f"{'unit':8} {'B x T x D':16} {'mode':10} {'torch ms':>9} {'loop ms':>9} {'ratio':>6}")
    for name, pairs in taken.items():
        scan, other = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        print(f"{name:36} {scan:9.3f} {other:9.3f} {scan / other:6.2f}")


if __name__ == "__main__":
    main()
