"""The sums by csrc/long_conv.cpp, on the CPU; the state is that of the "torch" backend."""

from typing import Any

import torch
from torch import Tensor

from longstream.ops import _native
from longstream.ops.long_conv import torch as tiles
from longstream.ops.long_conv.fft import Sums, cut
from longstream.ops.long_conv.filters import LongConvFilters
from longstream.ops.long_conv.state import LongConvState

# A transform is of 2 * leaf * 4^levels real numbers, levels >= 2. These leaves leave no gap of more than 4 to 3.
LEAVES = (1, 2, 3, 5, 6, 10)
# Up to so many pairs of an input and an output the sum itself is faster.
DIRECT_PAIRS = 4096


def long_conv(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    skip: Tensor | None,
    state: LongConvState | None,
    lengths: list[int],
    bounds: list[int] | None,
) -> tuple[Tensor, LongConvState]:
    """See `longstream.ops.long_conv`."""
    return tiles.long_conv(x, filters, skip, state, lengths, bounds, NATIVE)


def long_conv_two_sided(
    x: Tensor, filters: Tensor, filters_reverse: Tensor, skip: Tensor | None, bounds: list[int] | None
) -> Tensor:
    """See `longstream.ops.long_conv_two_sided`."""
    return tiles.long_conv_two_sided(x, filters, filters_reverse, skip, bounds, NATIVE)


def convolve(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    first: int,
    count: int,
    skip: Tensor | None = None,
    skip_at: int = 0,
) -> Tensor:
    """As `longstream.ops.long_conv.fft.convolve`."""
    return _sums(x, filters, first, count, 0, skip, skip_at)[0]


def convolve_with_tail(
    x: Tensor, filters: Tensor | LongConvFilters, skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `longstream.ops.long_conv.fft.convolve_with_tail`."""
    return _sums(x, filters, 0, x.shape[1], x.shape[1], skip, 0)


NATIVE = Sums(convolve, convolve_with_tail)


def _sums(
    x: Tensor, filters: Tensor | LongConvFilters, first: int, count: int, tail: int, skip: Tensor | None, skip_at: int
) -> tuple[Tensor, Tensor]:
    """The outputs from ``first`` on: ``count`` with skip, and ``tail`` without."""
    taps = filters.taps if isinstance(filters, LongConvFilters) else filters
    part = cut(x.shape[1], taps.shape[1], first, count + tail)
    if part is None or x.numel() == 0:
        B, _, D = x.shape
        return x.new_zeros(B, count, D), x.new_zeros(B, tail, D)
    begin, end, left, right, first, _ = part
    few = (end - begin) * part.outputs <= DIRECT_PAIRS
    leaf, levels = (0, 0) if few else _size(part.least)
    x = x if end - begin == x.shape[1] else x[:, begin:end]
    taps = (taps if right - left == taps.shape[1] else taps[:, left:right]).to(x.dtype)
    spectrum = None
    if isinstance(filters, LongConvFilters) and leaf:
        spectrum = _kept(filters, taps, left, right, leaf, levels)
    op, numbers = torch.ops.longstream.long_conv.default, (first, count, tail, skip_at - begin, leaf, levels)
    return _native.call(op, x, taps, spectrum, skip, *numbers)


def _size(least: int) -> tuple[int, int]:
    """The leaf and levels of the smallest transform of ``least`` real numbers or more."""
    sizes = []
    for leaf in LEAVES:
        levels = 2
        while 2 * leaf << 2 * levels < least:
            levels += 1
        sizes.append((leaf << 2 * levels, leaf, levels))
    return min(sizes)[1:]


def _kept(filters: LongConvFilters, taps: Tensor, left: int, right: int, leaf: int, levels: int) -> Tensor | None:
    """The transform of these taps, kept as complex numbers: that is how `LongConvFilters` counts."""
    isa = torch.ops.longstream.isa()
    lanes = {"base": 16, "avx2": 32, "avx512": 64}[isa] // taps.element_size()
    kept = filters.keep(
        ("native", isa, left, right, leaf, levels, taps.dtype),
        -(-len(taps) // lanes) * lanes * leaf << 2 * levels,
        lambda: torch.ops.longstream.long_conv_spectrum(taps, leaf, levels).view(taps.dtype.to_complex()),
    )
    return None if kept is None else kept.view(taps.dtype)


def _fake(
    x: Tensor,
    taps: Tensor,
    spectrum: Tensor | None,
    skip: Tensor | None,
    first: int,
    count: int,
    tail: int,
    *_: int,
) -> tuple[Tensor, Tensor]:
    B, D = x.shape[0], x.shape[2]
    return x.new_empty(B, count, D), x.new_empty(B, tail, D)


def _fake_backward(
    x: Tensor, taps: Tensor, skip: Tensor | None, d_out: Tensor | None, d_tail: Tensor | None, *numbers: int
) -> tuple[Tensor, Tensor, Tensor]:
    wants_x, wants_taps, wants_skip = numbers[-3:]
    B, S, D = x.shape
    d_x = x.new_empty(B if wants_x else 0, S, D)
    d_taps = taps.new_empty(taps.shape) if wants_taps else taps.new_empty(0, *taps.shape)
    return d_x, d_taps, x.new_empty(D) if wants_skip else x.new_empty(0, D)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, taps, _, skip, *numbers = inputs
    ctx.save_for_backward(x, taps, skip)
    ctx.set_materialize_grads(False)
    ctx.numbers = numbers


def _backward(ctx: Any, d_out: Tensor | None, d_tail: Tensor | None) -> tuple[Tensor | None, ...]:
    x, taps, skip = ctx.saved_tensors
    wants_x, wants_taps, _, wants_skip = ctx.needs_input_grad[:4]
    if d_out is None and d_tail is None:
        return (None,) * 10
    d_x, d_taps, d_skip = torch.ops.longstream.long_conv_backward(
        x, taps, skip, d_out, d_tail, *ctx.numbers, wants_x, wants_taps, wants_skip
    )
    found = d_x if wants_x else None, d_taps if wants_taps else None, None, d_skip if wants_skip else None
    return *found, *(None,) * 6


_native.register("long_conv", _fake, _fake_backward, _keep, _backward, who="long_conv, long_conv_two_sided")
