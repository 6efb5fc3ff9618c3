"""One function that all of this op's sums are made of: some outputs of a convolution, by FFT.

``y_i = sum_s filters[:, first + i - s] x_s`` for 0 <= i < count. With first = 0 that is a causal convolution, with
first > 0 what inputs contribute to outputs that come after them, with a filter of negative and positive lags shifted by
``first`` a two-sided one. Inputs, taps and outputs that cannot meet are cut off first, and the FFT is no larger than
keeps cyclic wrapping out of the outputs that are asked for.
"""

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops._check import wide
from longstream.ops.long_conv.filters import LongConvFilters

# On a CPU the channels are worked on in groups of this many real numbers for each thread, which then stay in its cache:
# measured 1.5 to 4 times as fast as all at once from 2^21 numbers on, and as fast below.
GROUP_ELEMENTS = 2**17
# Fewer channels than a cache line holds would read each line of x more than once.
GROUP_CHANNELS = 16
# Up to so many pairs of an input and an output the sum itself is faster.
DIRECT_PAIRS = 256


class Sums(NamedTuple):
    """The sums of a backend, which stand in `convolve` and `convolve_with_tail` here for plain torch."""

    convolve: Callable[..., Tensor]
    convolve_with_tail: Callable[..., tuple[Tensor, Tensor]]


class Cut(NamedTuple):
    """The inputs begin .. end - 1 and the taps left .. right - 1, which can meet, and the outputs they meet in.

    first: as if these inputs and taps were all there are.
    """

    begin: int
    end: int
    left: int
    right: int
    first: int
    outputs: int

    @property
    def least(self) -> int:
        """How large a transform must be, for what wraps round to stay out of the outputs."""
        return max(self.end - self.begin + self.right - self.left - 1 - self.first, self.first + self.outputs)


def cut(S: int, L: int, first: int, count: int) -> Cut | None:
    """What S inputs and L taps have to do with the outputs; None if nothing."""
    begin, end = max(0, first - L + 1), min(S, first + count)
    S, first = end - begin, first - begin
    count = min(count, S + L - 1 - first)
    left, right = max(0, first - S + 1), min(L, first + count)
    return None if S <= 0 or count <= 0 or right <= left else Cut(begin, end, left, right, first - left, count)


def convolve(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    first: int,
    count: int,
    skip: Tensor | None = None,
    skip_at: int = 0,
) -> Tensor:
    """x (B, S, D) and filters (D, L) -> (B, count, D), in the dtype of x; see the top of this file.

    With skip (D,), plus ``skip * x_{skip_at + i}``: then skip_at + count <= S.
    """
    taps = filters.taps if isinstance(filters, LongConvFilters) else filters
    part = cut(x.shape[1], taps.shape[1], first, count)
    if part is None or x.numel() == 0:
        return x.new_zeros(x.shape[0], count, x.shape[2])
    met = x[:, part.begin : part.end]
    if met.shape[1] * part.outputs <= DIRECT_PAIRS:
        y = _direct(met, taps[:, part.left : part.right].to(x.dtype), part.first, part.outputs)
    else:
        size = fast_size(part.least)
        kept = None
        if isinstance(filters, LongConvFilters):
            kept = filters.spectrum(part.left, part.right, size, x.dtype)
        near = taps[:, part.left : part.right].to(x.dtype)
        (y,) = _Convolution.apply(met, near, kept, part.first, (part.outputs,), size)
    y = y if part.outputs == count else F.pad(y, (0, 0, 0, count - part.outputs))
    return y if skip is None else add_skip(y, skip, x[:, skip_at : skip_at + count])


def convolve_with_tail(
    x: Tensor, filters: Tensor | LongConvFilters, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (B, S, D), filters (D, L <= S) -> the outputs 0 .. S - 1, plus ``skip * x``, and S .. 2 S - 1, by one FFT."""
    taps = filters.taps if isinstance(filters, LongConvFilters) else filters
    S, L = x.shape[1], taps.shape[1]
    size = fast_size(S + L - 1)
    kept = filters.spectrum(0, L, size, x.dtype) if isinstance(filters, LongConvFilters) else None
    y, tail = _Convolution.apply(x, taps.to(x.dtype), kept, 0, (S, L - 1), size)
    return add_skip(y, skip, x), F.pad(tail, (0, 0, 0, S - L + 1))


TORCH = Sums(convolve, convolve_with_tail)


def convolve_any(x: Tensor, taps: Tensor, skip: Tensor | None = None) -> Tensor:
    """`convolve` with first 0 and count S, for a graph that is to take any sizes: no choice depends on them."""
    dtype = wide(x, taps, skip)
    x_, taps = x.to(dtype).transpose(1, 2), taps.to(dtype)
    size = (x.shape[1] + taps.shape[1] + 127) // 128 * 128  # large enough, and no prime
    y = torch.fft.irfft(torch.fft.rfft(x_, size) * torch.fft.rfft(taps, size), size)[..., : x.shape[1]].transpose(1, 2)
    return (y if skip is None else add_skip(y, skip.to(dtype), x.to(dtype))).to(x.dtype)


def add_skip(y: Tensor, skip: Tensor | None, x: Tensor) -> Tensor:
    """The outputs with the D term of Hyena."""
    return y if skip is None else torch.addcmul(y, skip, x)


def fast_size(least: int) -> int:
    """The smallest FFT size >= least that is as fast a number as a power of two (measured with MKL)."""
    power = 1 << max(least - 1, 0).bit_length()
    if power < 128:
        return power
    return next(size for size in (power // 16 * part for part in (9, 10, 12, 15, 16)) if size >= least)


def _direct(x: Tensor, taps: Tensor, first: int, count: int) -> Tensor:
    lag = first + torch.arange(count, device=x.device)[:, None] - torch.arange(x.shape[1], device=x.device)
    K = taps.shape[1]
    weight = F.pad(taps, (0, 1)).T[lag.where((lag >= 0) & (lag < K), K)]  # (count, S, D)
    return (weight * x[:, None]).sum(2)


class _Convolution(torch.autograd.Function):
    """The outputs from ``first`` on, cut into tensors of ``counts`` outputs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        taps: Tensor,
        spectrum: Tensor | None,
        first: int,
        counts: tuple[int, ...],
        size: int,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, taps)
        ctx.set_materialize_grads(False)
        ctx.size, ctx.places = size, [slice(*ends) for ends in pairwise(accumulate(counts, initial=first))]
        outs = tuple(x.new_empty(x.shape[0], count, x.shape[2]) for count in counts)
        for channels, groups in _groups(x, size):
            weight = torch.fft.rfft(taps[channels], size) if spectrum is None else spectrum[channels]
            for rows in groups:
                y = _signal(_spectrum(x[rows, :, channels], 0, size).mul_(weight), size)
                for out, place in zip(outs, ctx.places, strict=True):
                    out[rows, :, channels] = y[:, place]
        return outs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, taps = ctx.saved_tensors
        size, (wants_x, wants_taps) = ctx.size, ctx.needs_input_grad[:2]
        given = [(place, d) for place, d in zip(ctx.places, cotangents, strict=True) if d is not None]
        if not given:
            return (None,) * 6
        if torch.is_grad_enabled():  # second derivatives are wanted: leave them to autograd
            y = _signal(_spectrum(x, 0, size) * torch.fft.rfft(taps, size), size)
            wanted = [tensor for tensor, wants in ((x, wants_x), (taps, wants_taps)) if wants]
            parts, factors = [y[:, place] for place, _ in given], [d for _, d in given]
            found = iter(torch.autograd.grad(parts, wanted, factors, create_graph=True))
            return *(next(found) if wants else None for wants in (wants_x, wants_taps)), None, None, None, None
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
        dtaps = torch.empty_like(taps, memory_format=torch.contiguous_format) if wants_taps else None
        for channels, groups in _groups(x, size):
            weight = torch.fft.rfft(taps[channels], size).conj_physical_()
            total = None
            for rows in groups:
                d_product, *more = (_spectrum(d[rows, :, channels], place.start, size) for place, d in given)
                for spectrum in more:
                    d_product += spectrum
                if dtaps is not None:
                    terms = _spectrum(x[rows, :, channels], 0, size).conj_physical_().mul_(d_product)
                    part = terms.sum(0) if len(terms) > 1 else terms[0]
                    total = part if total is None else total.add_(part)
                if dx is not None:
                    dx[rows, :, channels] = _signal(d_product.mul_(weight), size)[:, : x.shape[1]]
            if dtaps is not None and total is not None:
                dtaps[channels] = torch.fft.irfft(total, size)[:, : taps.shape[1]]
        return dx, dtaps, None, None, None, None


def _groups(x: Tensor, size: int) -> list[tuple[slice, list[slice]]]:
    """Slices of channels, and for each slices of rows, that are worked on together."""
    B, _, D = x.shape
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a compiler cuts for itself
        numbers = GROUP_ELEMENTS * torch.get_num_threads()
        channels = min(D, max(GROUP_CHANNELS, numbers // (B * size)))
        rows = min(B, max(1, numbers // (channels * size)))
    else:
        channels, rows = D, B
    return [(slice(d, d + channels), [slice(b, b + rows) for b in range(0, B, rows)]) for d in range(0, D, channels)]


def _spectrum(x: Tensor, first: int, size: int) -> Tensor:
    """(B, S, D), put at ``first`` in a signal of ``size`` -> (B, D, size // 2 + 1)."""
    x = x.transpose(1, 2)
    return torch.fft.rfft(F.pad(x, (first, 0)) if first else x, size)


def _signal(spectrum: Tensor, size: int) -> Tensor:
    """(B, D, size // 2 + 1) -> (B, size, D)."""
    return torch.fft.irfft(spectrum, size).transpose(1, 2)
