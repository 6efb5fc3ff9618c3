"""Time of `long_conv` over T, at once and token by token: ``python benchmarks/long_conv.py``; 256 channels, float32.

Before the clock starts, output, final state and gradients are compared with the plain sums in float64. At once: against
the same convolution by torch.fft as the authors of Hyena write it, without a state. Token by token, from the first to
the T-th, without gradients: against the two ways there are without tiles, the whole convolution by FFT for each token,
and the product of all inputs kept so far with the filter; both are timed at four lengths up to T, of which the mean
counts. Every row has processes of its own, in turn with the other rows', of which the median counts.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from longstream.ops import LongConvFilters, long_conv

D = 256


def inputs(B: int, T: int, dtype: torch.dtype = torch.float32, channels: int = D) -> list[Tensor]:
    """x, filters that decay, and skip."""
    torch.manual_seed(0)
    envelope = torch.exp(-torch.linspace(1, 8, channels)[:, None] * torch.arange(T) / T)
    given = [torch.randn(B, T, channels), torch.randn(channels, T) * envelope * T**-0.5, torch.randn(channels)]
    return [x.to(dtype).requires_grad_() for x in given]


def check(T: int) -> float:
    """The largest error of all results, relative to the largest value of each, against the float64 sums."""
    results = []
    for backend, dtype in (("torch", torch.float32), ("reference", torch.float64)):
        given = inputs(1, T, dtype, channels=8)
        x, filters, skip = given
        out, state = long_conv(x, filters, skip, backend=backend)
        outs = [out, *(tensor for tensor in state[1:] if tensor.numel())]
        gradients = torch.autograd.grad(outs[0].square().sum() + outs[-1].square().sum(), given)
        results.append([*(x.detach() for x in outs), *gradients])
    pairs = [pair for pair in zip(*results, strict=True) if pair[1].any()]
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def by_fft(x: Tensor, filters: Tensor, skip: Tensor) -> Tensor:
    """The convolution as in Hyena's code (arXiv:2302.10866), time last inside."""
    T, x = x.shape[1], x.transpose(1, 2)
    spectrum = torch.fft.rfft(x, 2 * T) * torch.fft.rfft(filters, 2 * T)
    return (torch.fft.irfft(spectrum, 2 * T)[..., :T] + x * skip[:, None]).transpose(1, 2)


def at_once(way: str, B: int, T: int, mode: str) -> float:
    """Seconds, median of five calls after one, with gradients of everything in mode fwd+bwd."""
    given, cotangent = inputs(B, T), torch.randn(B, T, D)
    convolve: dict[str, Callable[..., Tensor]] = {"long_conv": lambda *x: long_conv(*x)[0], "torch.fft": by_fft}

    def run() -> None:
        with torch.set_grad_enabled(mode == "fwd+bwd"):
            out = convolve[way](*given)
            if mode == "fwd+bwd":
                torch.autograd.grad(out, given, cotangent)

    return _median(run, 5)


@torch.no_grad()
def by_token(way: str, B: int, T: int, _: str) -> float:
    """Seconds a token, mean over tokens 1 to T."""
    x, filters, skip = inputs(B, T)
    if way == "tiles":
        return sum(_steps(x, filters, skip)) / T
    if way == "worst tile":  # the longest of all steps
        return max(_steps(x, filters, skip))
    flipped = filters.flip(1).T.contiguous()  # (L, D)

    def fft(t: int) -> Tensor:
        return by_fft(x[:, :t], filters[:, :t], skip)[:, -1]

    def product(t: int) -> Tensor:
        return (x[:, :t] * flipped[T - t :]).sum(1) + skip * x[:, t - 1]

    last = {"fft": fft, "product": product}[way]
    # The middles of four equal parts of 1 .. T.
    return statistics.mean(_median(lambda t=T * part // 8: last(t), 5) for part in (1, 3, 5, 7))


def _steps(x: Tensor, filters: Tensor, skip: Tensor) -> list[float]:
    ready, state, taken = LongConvFilters(filters.detach()), None, []
    for t in range(x.shape[1]):
        start = time.perf_counter()
        _, state = long_conv(x[:, t : t + 1], ready, skip, state)
        taken.append(time.perf_counter() - start)
    return taken


def _median(run: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def alone(what: str, way: str, B: int, T: int, mode: str) -> float:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--one", what, way, str(B), str(T), mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print one row for each shape and mode, then one for each T token by token."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["8x256", "1x2048", "1x16384"], help="B x T, at once")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384], help="T, token by token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, way, B, T, mode = args.one
        print({"at_once": at_once, "by_token": by_token}[what](way, int(B), int(T), mode))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"largest relative error against the float64 sums at T=1000: {check(1000):.1e}")
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes]
    modes, ways = ("fwd", "fwd+bwd"), ("tiles", "worst tile", "fft", "product")
    rows = [("at_once", way, B, T, m) for B, T in shapes for m in modes for way in ("long_conv", "torch.fft")]
    rows += [("by_token", way, 1, T, "fwd") for T in args.lengths for way in ways]
    times: dict[tuple[str, str, int, int, str], list[float]] = {row: [] for row in rows}
    for _ in range(args.rounds):
        for row in rows:
            times[row].append(alone(*row))
    median = {row: statistics.median(taken) for row, taken in times.items()}
    print(f"{'B':>3} {'T':>6} {'mode':8} {'ms':>8} {'torch.fft ms':>13} {'ratio':>6}")
    for B, T in shapes:
        for m in modes:
            ours, theirs = (median["at_once", way, B, T, m] * 1e3 for way in ("long_conv", "torch.fft"))
            print(f"{B:3} {T:6} {m:8} {ours:8.1f} {theirs:13.1f} {theirs / ours:6.2f}")
    titles = "us/token", "longest ms", "FFT us/token", "ratio", "product us/token", "ratio"
    print(f"{'T':>10} {titles[0]:>9} {titles[1]:>11} {titles[2]:>13} {titles[3]:>7} {titles[4]:>17} {titles[5]:>6}")
    for T in args.lengths:
        tiles, worst, fft, product = (median["by_token", way, 1, T, "fwd"] for way in ways)
        us = [seconds * 1e6 for seconds in (tiles, fft, product)]
        print(
            f"{T:10} {us[0]:9.1f} {worst * 1e3:11.1f} {us[1]:13.0f} {us[1] / us[0]:7.1f} {us[2]:17.1f}"
            f" {us[2] / us[0]:6.2f}"
        )


if __name__ == "__main__":
    main()
