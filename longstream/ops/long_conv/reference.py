"""The sums as they are written, in the widest dtype given: the oracle of the other backends. O(T^2) time."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops._check import wide
from longstream.ops.long_conv.filters import LongConvFilters
from longstream.ops.long_conv.state import BLOCK, LongConvState, cat_rows, runs


def long_conv(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    skip: Tensor | None,
    state: LongConvState | None,
    lengths: list[int],
    bounds: list[int] | None,
) -> tuple[Tensor, LongConvState]:
    """See `longstream.ops.long_conv`; ``lengths`` are the state's, ``bounds`` the checked cu_seqlens."""
    taps = filters.taps if isinstance(filters, LongConvFilters) else filters
    dtype = wide(x, taps, skip, None if state is None else state.recent)
    taps, skip, x_ = taps.to(dtype), None if skip is None else skip.to(dtype), x.to(dtype)
    if state is None:
        state = LongConvState.zeros(len(lengths), x.shape[2], device=x.device, dtype=dtype)
    sequences = x_.unbind(0) if bounds is None else [x_[0, left:right] for left, right in pairwise(bounds)]
    done = [
        _sequence(tokens, taps, skip, state.to(dtype).select([row]), lengths[row])
        for row, tokens in enumerate(sequences)
    ]
    if not done:
        return torch.zeros_like(x), state
    outs, states = zip(*done, strict=True)
    out = torch.stack(outs) if bounds is None else torch.cat(outs)[None]
    return out.to(x.dtype), cat_rows(states)


def _sequence(
    x: Tensor, filters: Tensor, skip: Tensor | None, state: LongConvState, length: int
) -> tuple[Tensor, LongConvState]:
    """x (T, D) of one sequence, ``length`` tokens of which are in the state (B = 1)."""
    T, D = x.shape
    if T == 0:
        return x, state
    blocks, after = length // BLOCK, (length + T) // BLOCK
    stream = torch.cat([state.recent[0, : length - blocks * BLOCK], x])  # the tokens from blocks * BLOCK on
    out = _sums(filters, stream, blocks * BLOCK, range(length, length + T))
    if skip is not None:
        out = out + skip * x
    history = []
    for m, first in runs(blocks):
        inputs, pending = (tensor[0] for tensor in state.level(m))
        size, end = BLOCK << m, first * BLOCK + (BLOCK << m)
        covered = max(0, min(end + size, length + T) - length)  # how many of the new outputs the run has prepared
        beyond = _sums(filters, inputs, end - size, range(length + covered, length + T))
        out = out + torch.cat([pending[length - end : length - end + covered], beyond])
        history.append(inputs)
    tokens = torch.cat([*history, stream])  # all there ever were
    levels = [x.new_zeros(1, 0, D)] * (2 * after.bit_length())
    for m, first in runs(after):
        if (m, first) in runs(blocks):
            inputs, pending = (tensor[0] for tensor in state.level(m))
        else:
            size, start = BLOCK << m, first * BLOCK
            inputs = tokens[start : start + size]
            pending = _sums(filters, inputs, start, range(start + size, start + 2 * size))
        levels[2 * m : 2 * m + 2] = inputs[None], pending[None]
    recent = tokens[after * BLOCK :]
    recent = F.pad(recent, (0, 0, 0, BLOCK - len(recent)))
    return out, LongConvState(state.length + T, recent[None], *levels)


def _sums(filters: Tensor, inputs: Tensor, start: int, at: range) -> Tensor:
    """(len(at), D): what inputs (S, D), the first of which is token ``start``, contribute to the outputs ``at``."""
    D, L = filters.shape
    out = [inputs.new_zeros(0, D)]
    for t in at:
        # Token start + s meets the tap of lag t - start - s, from the oldest that has one to the newest not after t.
        oldest, newest = max(0, t - start - L + 1), min(len(inputs), t - start + 1)
        met = inputs[oldest:newest]
        taps = filters[:, t - start - newest + 1 : t - start - oldest + 1].flip(1).T
        out.append((taps * met).sum(0, keepdim=True))
    return torch.cat(out)


def long_conv_two_sided(
    x: Tensor, filters: Tensor, filters_reverse: Tensor, skip: Tensor | None, bounds: list[int] | None
) -> Tensor:
    """See `longstream.ops.long_conv_two_sided`; ``bounds`` are the checked cu_seqlens."""
    dtype = wide(x, filters, filters_reverse, skip)
    after, before, x_ = filters.to(dtype), filters_reverse.to(dtype), x.to(dtype)
    sequences = x_.unbind(0) if bounds is None else [x_[0, left:right] for left, right in pairwise(bounds)]
    outs = []
    for tokens in sequences:
        back = range(len(tokens))
        out = _sums(after, tokens, 0, back) + _sums(before, tokens.flip(0), 0, back).flip(0)
        outs.append(out if skip is None else out + skip.to(dtype) * tokens)
    return (torch.stack(outs) if bounds is None else torch.cat(outs)[None]).to(x.dtype)
