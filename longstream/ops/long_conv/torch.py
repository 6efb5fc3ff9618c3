"""The convolution and its state by tiles, in plain torch but for the sums themselves, which come as an argument.

An output has three parts: what the runs of the state have prepared for it (pending), the inputs of a run directly where
the output lies beyond what the run has prepared, and the inputs since the last full block, the new ones among them.
All rows of a call go through it together, at whatever lengths they are: `_window` moves each by its own offset.

More than 300 lines, because a state and the sums that it saves are one matter.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops._check import wide
from longstream.ops._walk import is_symbolic
from longstream.ops.long_conv.fft import TORCH, Sums, add_skip, convolve_any
from longstream.ops.long_conv.filters import LongConvFilters, near_taps
from longstream.ops.long_conv.state import BLOCK, LongConvState, cat_rows, runs


def long_conv(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    skip: Tensor | None,
    state: LongConvState | None,
    lengths: list[int],
    bounds: list[int] | None,
    sums: Sums = TORCH,
) -> tuple[Tensor, LongConvState]:
    """See `longstream.ops.long_conv`; ``lengths`` are the state's, ``bounds`` the checked cu_seqlens."""
    taps = filters.taps if isinstance(filters, LongConvFilters) else filters
    dtype = wide(x, taps, skip, None if state is None else state.recent)
    x_, skip = x.to(dtype), None if skip is None else skip.to(dtype)
    if state is not None and state.recent.dtype != dtype:
        state = state.to(dtype)
    if bounds is None:
        out, final = _run(x_, [x.shape[1]] * x.shape[0], filters, skip, state, lengths, sums)
        return out.to(x.dtype), final
    buckets = _Buckets(bounds, x.device)
    outs, states = [], []
    for rows, tokens in zip(buckets.rows, buckets.take(x_), strict=True):
        counts, before = [bounds[n + 1] - bounds[n] for n in rows], [lengths[n] for n in rows]
        selected = None if state is None else state.select(rows)
        out, final = _run(tokens, counts, filters, skip, selected, before, sums)
        outs.append(out)
        states.append(final)
    return buckets.put(outs).to(x.dtype), cat_rows(states, [n for rows in buckets.rows for n in rows])


def long_conv_two_sided(
    x: Tensor,
    filters: Tensor,
    filters_reverse: Tensor,
    skip: Tensor | None,
    bounds: list[int] | None,
    sums: Sums = TORCH,
) -> Tensor:
    """See `longstream.ops.long_conv_two_sided`; ``bounds`` are the checked cu_seqlens."""
    if bounds is None and is_symbolic(*x.shape[:2]):
        return convolve_any(x, filters, skip) + convolve_any(x.flip(1), filters_reverse).flip(1)
    dtype = wide(x, filters, filters_reverse, skip)
    longest = x.shape[1] if bounds is None else max(right - left for left, right in pairwise(bounds))
    after, before = (taps[:, :longest].to(dtype) for taps in (filters, filters_reverse))
    # One filter of the lags -(L' - 1) .. L - 1, lag 0 at L' - 1.
    L, zero = after.shape[1], before.shape[1] - 1
    both = F.pad(before.flip(1), (0, L - 1)) + F.pad(after, (zero, 0))
    skip = None if skip is None else skip.to(dtype)

    def run(tokens: Tensor) -> Tensor:
        return sums.convolve(tokens, both, zero, tokens.shape[1], skip, 0)

    if bounds is None:
        return run(x.to(dtype)).to(x.dtype)
    buckets = _Buckets(bounds, x.device)
    return buckets.put([run(tokens) for tokens in buckets.take(x.to(dtype))]).to(x.dtype)


class _Buckets:
    """Packed sequences as padded rows: those of one bucket differ in length by less than a factor of two."""

    def __init__(self, bounds: list[int], device: torch.device):
        buckets: dict[int, list[int]] = {}
        for n, (left, right) in enumerate(pairwise(bounds)):
            # Up to a block together: they are cheap. Those of no tokens, whose states stay, apart.
            key = max((right - left - 1).bit_length(), BLOCK.bit_length() - 1) if right > left else 0
            buckets.setdefault(key, []).append(n)
        self.rows = [buckets[key] for key in sorted(buckets)]
        self.places: list[tuple[Tensor, Tensor]] = []  # (rows, tokens) each: which token stands there, and if any
        self.where = torch.empty(bounds[-1], dtype=torch.long, device=device)  # of each token in all buckets
        at = 0
        for rows in self.rows:
            starts, ends = (torch.tensor([bounds[n + end] for n in rows], device=device) for end in (0, 1))
            token = starts[:, None] + torch.arange(int((ends - starts).max()), device=device)
            real = token < ends[:, None]
            self.places.append((token, real))
            self.where[token[real]] = torch.arange(at, at + token.numel(), device=device).view_as(token)[real]
            at += token.numel()

    def take(self, x: Tensor) -> list[Tensor]:
        """x (1, T, D) -> for each bucket (rows, tokens, D), zeros at the pads."""
        return [_gather(x[0], token, real) for token, real in self.places]

    def put(self, parts: list[Tensor]) -> Tensor:
        """The way back."""
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, self.where)[None]


def _run(
    x: Tensor,
    counts: list[int],
    filters: Tensor | LongConvFilters,
    skip: Tensor | None,
    state: LongConvState | None,
    lengths: list[int],
    sums: Sums,
) -> tuple[Tensor, LongConvState]:
    """Row i of x (B, T, D) has counts[i] tokens, all or none of them any, and zeros after them."""
    B, T, D = x.shape
    if state is None:
        state = LongConvState.zeros(B, D, device=x.device, dtype=x.dtype)
    if B == 0 or T == 0:
        return x, state
    pending = None
    if T == 1:
        out, stream = _step(x, filters, skip, state, lengths)
    elif _is_one_run(lengths, counts, filters):
        # What these tokens contribute to the next T outputs is the tail of the same convolution: no FFT more.
        (out, pending), stream = sums.convolve_with_tail(x, filters, skip), x
    else:
        out, stream = _pass(x, counts, filters, skip, state, lengths, sums)
    return out, _advance(state, stream, filters, lengths, counts, pending, sums)


def _is_one_run(lengths: list[int], counts: list[int], filters: Tensor | LongConvFilters) -> bool:
    """Whether all rows begin here and become one run each, and the tail needs no larger FFT."""
    T, taps = counts[0], filters.taps if isinstance(filters, LongConvFilters) else filters
    return not any(lengths) and counts.count(T) == len(counts) and T >= BLOCK and not T & (T - 1) and taps.shape[1] <= T


def _pass(
    x: Tensor,
    counts: list[int],
    filters: Tensor | LongConvFilters,
    skip: Tensor | None,
    state: LongConvState,
    lengths: list[int],
    sums: Sums,
) -> tuple[Tensor, Tensor]:
    """The outputs (B, T, D), and all inputs since each row's last full block."""
    T, held = x.shape[1], [length % BLOCK for length in lengths]
    stream = _stream(x, state.recent, held)
    out = sums.convolve(stream, filters, min(held), max(held) + T - min(held), skip, min(held))
    out = _window(out, [r - min(held) for r in held], T)
    for m in range(state.num_levels):
        rows = [i for i, length in enumerate(lengths) if length // BLOCK >> m & 1]
        if not rows:
            continue
        size = BLOCK << m
        since = [lengths[i] % size for i in rows]  # tokens since the run's end: those of all smaller runs
        inputs, pending = (_rows(tensor, rows) for tensor in state.level(m))
        part = _window(pending, since, T)
        beyond = max(s + counts[i] for s, i in zip(since, rows, strict=True)) - size
        if beyond > 0:
            part = part + _window(sums.convolve(inputs, filters, 2 * size, beyond), [s - size for s in since], T)
        out = _add_rows(out, part, rows)
    return out, stream


def _step(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    skip: Tensor | None,
    state: LongConvState,
    lengths: list[int],
) -> tuple[Tensor, Tensor]:
    """`_pass` for one token a row: the recent inputs and the first taps, multiplied and added up."""
    near = filters.near(x.dtype) if isinstance(filters, LongConvFilters) else near_taps(filters, x.dtype)
    length, held = lengths[0], [length % BLOCK for length in lengths]
    stream = _stream(x, state.recent, held)
    if lengths.count(length) == len(lengths):
        out = (stream * near[BLOCK - stream.shape[1] :]).sum(1)
        for m, _ in runs(length // BLOCK):
            out = out + state[3 + 2 * m].select(1, length % (BLOCK << m))
        return add_skip(out[:, None], skip, x), stream
    at = torch.tensor(lengths, device=x.device)
    tap = torch.arange(BLOCK - 1, BLOCK - 1 + stream.shape[1], device=x.device) - (at % BLOCK)[:, None]
    out = (stream * near[tap.clamp_(max=BLOCK - 1)]).sum(1)  # the stream is zero where that is not the tap
    for m in range(state.num_levels):
        rows = [i for i, length in enumerate(lengths) if length // BLOCK >> m & 1]
        if rows:
            index = torch.tensor(rows, device=x.device)
            out = out.index_add(0, index, state.level(m)[1][index, at[index] % (BLOCK << m)])
    return add_skip(out[:, None], skip, x), stream


def _stream(x: Tensor, recent: Tensor, held: list[int]) -> Tensor:
    """The ``held`` recent inputs of each row and the new ones right after them, then zeros."""
    if held.count(held[0]) == len(held):
        return torch.cat([recent[:, : held[0]], x], dim=1) if held[0] else x
    most = max(held)
    after = torch.arange(most, device=x.device) >= torch.tensor(held, device=x.device)[:, None]
    recent = recent[:, :most].masked_fill(after[..., None], 0)
    return _window(x, [-r for r in held], most + x.shape[1]) + F.pad(recent, (0, 0, 0, x.shape[1]))


def _advance(
    state: LongConvState,
    stream: Tensor,
    filters: Tensor | LongConvFilters,
    lengths: list[int],
    counts: list[int],
    pending: Tensor | None,
    sums: Sums,
) -> LongConvState:
    """The state after ``counts`` more tokens; stream (B, ., D): all inputs since each row's last full block.

    pending: of the one run there will be, if it is known.
    """
    before = [length // BLOCK for length in lengths]
    after = [(length + count) // BLOCK for length, count in zip(lengths, counts, strict=True)]
    added = counts[0] if counts.count(counts[0]) == len(counts) else torch.tensor(counts, device=state.length.device)
    recent = _window(stream, [(n2 - n) * BLOCK for n, n2 in zip(before, after, strict=True)], BLOCK)
    if before == after:
        return LongConvState(state.length + added, recent, *state[2:])
    levels: list[Tensor] = []
    for m in range(max(after).bit_length()):
        levels += _level(m, state, stream, filters, before, after, pending, sums)
    return LongConvState(state.length + added, recent, *levels)


def _level(
    m: int,
    state: LongConvState,
    stream: Tensor,
    filters: Tensor | LongConvFilters,
    before: list[int],
    after: list[int],
    pending: Tensor | None,
    sums: Sums,
) -> tuple[Tensor, Tensor]:
    """inputs_m and pending_m when rows go from ``before`` to ``after`` blocks."""
    B, _, D = stream.shape
    blocks, size = 1 << m, BLOCK << m
    kept: list[int] = []
    fresh: list[int] = []  # runs of new blocks only
    merged: dict[int, list[int]] = {}  # runs that begin with older, smaller ones, by blocks before
    for i, (n, n2) in enumerate(zip(before, after, strict=True)):
        start = n2 >> (m + 1) << (m + 1)
        if n2 & blocks:
            (kept if n >= start + blocks else fresh if n <= start else merged.setdefault(n, [])).append(i)
    if not fresh and not merged and not kept:
        return stream.new_zeros(B, 0, D), stream.new_zeros(B, 0, D)
    old = state.level(m)
    if not fresh and not merged and kept == [i for i, n in enumerate(before) if n & blocks]:
        return old
    parts, rows = [], [*fresh]
    if fresh:
        starts = [((after[i] >> (m + 1) << (m + 1)) - before[i]) * BLOCK for i in fresh]
        parts.append(_window(_rows(stream, fresh), starts, size))
    for n, those in merged.items():
        smaller = [_rows(state.level(k)[0], those) for k, _ in runs(n) if k < m]
        parts.append(torch.cat([*smaller, _rows(stream, those)[:, : size - n % blocks * BLOCK]], dim=1))
        rows += those
    inputs = torch.cat(parts) if parts else stream.new_zeros(0, size, D)
    if pending is None:
        pending = sums.convolve(inputs, filters, size, size)
    if kept:
        inputs, pending = (
            torch.cat([new, _rows(tensor, kept)]) for new, tensor in zip((inputs, pending), old, strict=True)
        )
        rows += kept
    if rows == list(range(B)):
        return inputs, pending
    index = torch.tensor(rows, device=stream.device, dtype=torch.long)
    inputs, pending = (stream.new_zeros(B, size, D).index_copy(0, index, tensor) for tensor in (inputs, pending))
    return inputs, pending


def _window(x: Tensor, starts: list[int], size: int) -> Tensor:
    """Row i: x[i, starts[i] : starts[i] + size], with zeros where that is outside of x (B, S, D)."""
    B, S, _ = x.shape
    start = starts[0]
    if starts.count(start) == B:
        left, right = max(0, -start), max(0, start + size - S)
        x = x[:, max(0, start) : max(0, start + size)]
        return F.pad(x, (0, 0, left, right)) if left or right else x
    at = torch.tensor(starts, device=x.device)[:, None] + torch.arange(size, device=x.device)
    row = S * torch.arange(B, device=x.device)[:, None]
    return _gather(x.flatten(0, 1), row + at, (at >= 0) & (at < S))


def _gather(x: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """x (N, D) -> (*index.shape, D), zeros where not real."""
    if not len(x):
        return x.new_zeros(*index.shape, x.shape[1])
    taken = x.index_select(0, index.clamp(0, len(x) - 1).flatten())
    return taken.masked_fill(~real.view(-1, 1), 0).view(*index.shape, x.shape[1])


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    if len(rows) == len(x):
        return x
    return x.index_select(0, torch.tensor(rows, device=x.device))


def _add_rows(x: Tensor, part: Tensor, rows: list[int]) -> Tensor:
    """x with part added to its rows ``rows``."""
    return x + part if len(rows) == len(x) else x.index_add(0, torch.tensor(rows, device=x.device), part)
