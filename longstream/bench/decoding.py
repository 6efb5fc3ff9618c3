"""The contestants of decoding: long convolutions token by token, in tiles or anew for every token.

The time of a row is seconds a token, mean over all from the first to the T-th. What is made anew for every token is
timed at four lengths, the middles of four equal parts of T; its mean is that of all, for the time grows with length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from longstream import Hyena
from longstream.bench.measure import Case, Contestant, Entry, Skip, relative_error
from longstream.bench.ops import by_fft
from longstream.bench.problems import CHANNELS, D, problem
from longstream.ops import LongConvFilters, available_backends, long_conv

WINDOW = 1024  # tokens at the end of which a late token is timed


def _middles(T: int) -> list[int]:
    return [max(1, T * part // 8) for part in (1, 3, 5, 7)]


def _anew(run: Callable[[int], Tensor], T: int) -> Callable[[], float]:
    """Mean seconds of ``run(t)`` over the middles."""

    def timed() -> float:
        start = time.perf_counter()
        for t in _middles(T):
            run(t)
        return (time.perf_counter() - start) / len(_middles(T))

    return timed


def _conv_inputs(case: Case) -> list[Tensor]:
    if case.B > 1:
        raise Skip("measured at B = 1")
    return list(problem(Case("long_conv", "fwd", 1, case.T)).inputs.values())


def _tiled(backend: str, longest: bool = False) -> Callable[[Case], Entry]:
    def make(case: Case) -> Entry:
        why = available_backends("long_conv")[backend]
        if why is not None:
            raise Skip(f"backend {backend}: {why}")
        x, filters, skip = _conv_inputs(case)
        ready, exact = LongConvFilters(filters), problem(Case("long_conv", "fwd", 1, case.T))

        @torch.no_grad()
        def decode() -> tuple[Tensor, list[float]]:
            state, outs, taken = None, [], []
            for t in range(case.T):
                start = time.perf_counter()
                out, state = long_conv(x[:, t : t + 1], ready, skip, state, backend=backend)
                taken.append(time.perf_counter() - start)
                outs.append(out)
            return torch.cat(outs, 1), taken

        def run() -> float:
            taken = decode()[1]
            return max(taken) if longest else sum(taken) / case.T

        return Entry(run, lambda: relative_error(exact.part([decode()[0]]), exact.exact), exact.oracle)

    return make


def _conv_anew(product: bool) -> Callable[[Case], Entry]:
    def make(case: Case) -> Entry:
        x, filters, skip = _conv_inputs(case)
        flipped = filters.flip(1).T.contiguous()  # (T, D)

        @torch.no_grad()
        def last(t: int) -> Tensor:
            if product:
                return (x[:, :t] * flipped[case.T - t :]).sum(1) + skip * x[:, t - 1]
            return by_fft(x[:, :t], filters[:, :t], skip)[:, -1]

        def check() -> float:
            few, taps = x[..., :CHANNELS].double(), filters[:CHANNELS].double().T
            exact = [(few[:, :t] * taps[:t].flip(0)).sum(1) + skip[:CHANNELS] * few[:, t - 1] for t in _middles(case.T)]
            return relative_error([last(t)[:, :CHANNELS] for t in _middles(case.T)], exact)

        return Entry(_anew(last, case.T), check, f"float64 sums, {CHANNELS} channels of {D}")

    return make


@lru_cache(maxsize=1)
def _hyena(T: int) -> tuple[Hyena, Tensor, Tensor]:
    """A layer, an input, and its output in float64 all at once."""
    torch.manual_seed(0)
    layer, x = Hyena(D, max_seq_len=T).eval(), torch.randn(1, T, D)
    exact = Hyena(D, max_seq_len=T, backend="torch").eval()
    exact.load_state_dict(layer.state_dict())
    with torch.inference_mode():
        return layer, x, exact.double()(x.double())[0]


def _layer_tiled(begin: int, end: int) -> Callable[[Case], Entry]:
    """Tokens from ``begin`` to ``end``, counted from the end where negative; end 0 is the end."""

    def make(case: Case) -> Entry:
        if case.B > 1:
            raise Skip("measured at B = 1")
        if case.T < 2 * WINDOW and (begin, end) != (0, 0):
            raise Skip(f"needs {2 * WINDOW} tokens")
        layer, x, exact = _hyena(case.T)
        first, last = begin % case.T, end % case.T or case.T

        @torch.inference_mode()
        def decode() -> tuple[Tensor, float]:
            state, outs, start, seconds = layer.init_state(1), [], time.perf_counter(), 0.0
            for t in range(last):
                if t == first:
                    start = time.perf_counter()
                y, state = layer.step(x[:, t], state)
                outs.append(y)
            seconds = time.perf_counter() - start
            return torch.stack(outs, 1), seconds / (last - first)

        def check() -> float:
            return relative_error([decode()[0]], [exact[:, :last]])

        return Entry(lambda: decode()[1], check, "itself in float64, whole pass")

    return make


def _layer_anew(case: Case) -> Entry:
    if case.B > 1:
        raise Skip("measured at B = 1")
    layer, x, exact = _hyena(case.T)

    @torch.inference_mode()
    def last(t: int) -> Tensor:
        return layer(x[:, :t])[0][:, -1]

    def check() -> float:
        return relative_error([last(t) for t in _middles(case.T)], [exact[:, t - 1] for t in _middles(case.T)])

    return Entry(_anew(last, case.T), check, "itself in float64, whole pass")


def conv_contestants() -> list[Contestant]:
    """long_conv from its state, and the two ways that there are without one."""
    backends = available_backends("long_conv")
    return [
        *(Contestant(f"tiled {backend}", "longstream", _tiled(backend)) for backend in backends),
        Contestant("tiled, the longest step", "longstream", _tiled(next(b for b in backends if not backends[b]), True)),
        Contestant("FFT of all, anew for each", "torch", _conv_anew(product=False)),
        Contestant("product with all, anew for each", "torch", _conv_anew(product=True)),
    ]


def layer_contestants() -> list[Contestant]:
    """A layer of Hyena from its state, and run anew for every token."""
    return [
        Contestant("tiled", "longstream", _layer_tiled(0, 0)),
        Contestant("tiled, an early token", "longstream", _layer_tiled(WINDOW // 2, WINDOW // 2 * 3)),
        Contestant("tiled, a late token", "longstream", _layer_tiled(-WINDOW, 0)),
        Contestant("the layer anew for each", "longstream", _layer_anew),
    ]
