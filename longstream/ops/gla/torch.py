"""The recurrence as matrix products over chunks, in plain torch.

Within a chunk, ``o_t = sum_{s <= t} (sum_i q_ti k_si D_tsi) v_s`` with the decay D_tsi of key i from s to t, the
product of the gates f_ri over s < r <= t. Splitting D at one reference point for a whole chunk needs exp of large
positive numbers. Here the chunk is halved again and again instead: for rows t in a right half and columns s in the
left half before it, the decay splits at the middle into two factors, each a product of gates and so between 0 and 1.
With the factors kept inside q and k, one level costs one multiplication of half the rows by the left half's total
decay and of half the columns by the right half's. After the last level the same products are what the state needs: q
decayed from the chunk's start, k decayed to its end, and the decay of the whole chunk. No logarithm of a product is
ever formed, so a gate of exactly 0 needs no special case, and no difference of cumulative sums, so slow gates lose no
digits.

The backward pass is written out: it walks the same levels, every gradient is a direct sum of products (nothing is
divided by a gate), and of the forward pass it keeps the inputs and one state for each group of chunks.

More than 300 lines, so that both passes over the levels are read side by side.
"""

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longstream.ops._check import no_autocast, wide
from longstream.ops._walk import is_symbolic, walk

# Measured at T = 4096, K = V = 64 and 128: chunks of 32 and 128 tokens take 5 to 15 % longer, groups of a quarter or
# four times the size (elements of q; with what is made of them they should fit the second-level cache) 10 to 30 %.
CHUNK = 64
GROUP_ELEMENTS = 2**17


def gla(
    q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, initial_state: Tensor, bounds: list[int] | None
) -> tuple[Tensor, Tensor]:
    """See `longstream.ops.gla`; ``bounds`` are the checked cu_seqlens."""
    dtype = wide(q, k, v, log_forget, initial_state)
    B, T = q.shape[:2]
    if bounds is None and T == 1:  # a decoding step: the equation itself
        S, out = _token(initial_state.to(dtype), tuple(x[:, 0].to(dtype) for x in (q, k, v, log_forget)))
        return out[:, None].to(v.dtype), S
    if bounds is None and is_symbolic(B, T):  # in a graph for any number of tokens: no plan of chunks is right for all
        out, S = walk(_token, initial_state.to(dtype), tuple(x.to(dtype) for x in (q, k, v, log_forget)))
        return out.to(v.dtype), S
    lengths = [T] * B if bounds is None else [right - left for left, right in pairwise(bounds)]
    order, groups = _plan(lengths, q.shape[2:], v.shape[3], q.device)
    inputs = (q, k, v, log_forget, initial_state.to(dtype)[order])
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    out, last = _ChunkedGLA.apply(*inputs, groups, keep)
    return out, torch.empty_like(last).index_copy(0, order, last)


def _token(S: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The equation: q, k, log_forget (B, H, K) and v (B, H, V) of a token, and the state before it."""
    q, k, v, log_forget = inputs
    S = log_forget[..., None].exp() * S + k[..., None] * v[..., None, :]
    return S, (q[..., None, :] @ S)[..., 0, :]


class _Group(NamedTuple):
    """Some steps of the recurrence over chunks that are worked on together.

    Sequences are sorted, longest first, and cut into chunks. The chunks j of all sequences that have one stand together
    (step j), so that a step is one slice.
    """

    counts: tuple[int, ...]  # how many sequences take part in each step
    tokens: Tensor  # (chunks, C) which of the B * T tokens stands where; a pad is one past the last
    total: int  # B * T
    pads: bool  # whether there are any in the call


def _plan(lengths: list[int], heads: tuple[int, ...], V: int, device: torch.device) -> tuple[Tensor, list[_Group]]:
    """The order of the sequences, longest first, and the groups, first to last."""
    (H, K), total = heads, sum(lengths)
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    longest = lengths[order[0]] if order else 0
    C = min(CHUNK, 1 << max(longest - 1, 0).bit_length())
    counts, active = [], len(order)
    for j in range(-(-longest // C)):
        while lengths[order[active - 1]] <= j * C:
            active -= 1
        counts.append(active)

    def ints(values: Iterable[int]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.long, device=device)

    step = torch.arange(len(counts), device=device).repeat_interleave(ints(counts), output_size=sum(counts))
    sequence = torch.arange(sum(counts), device=device) - ints(accumulate(counts, initial=0))[step]
    position = step[:, None] * C + torch.arange(C, device=device)  # (chunks, C), in its sequence
    starts = list(accumulate(lengths, initial=0))
    token = ints(starts[n] for n in order)[sequence, None] + position
    tokens = torch.where(position < ints(lengths[n] for n in order)[sequence, None], token, total)

    # A group keeps one state, K * V numbers, for the backward pass: few beside its tokens, K + V numbers each.
    groups, first, begin, at = [], 0, 0, 0
    for j, count in enumerate(counts):
        at += count
        enough = (at - begin) * H * C * K >= GROUP_ELEMENTS and (j + 1 - first) * C * (K + V) >= K * V
        if enough or j + 1 == len(counts):
            pads = sum(counts) * C > total
            groups.append(_Group(tuple(counts[first : j + 1]), tokens[begin:at], total, pads))
            first, begin = j + 1, at
    return ints(order), groups


class _Levels(NamedTuple):
    """What the halving leaves: see the module docstring. n = chunks * H."""

    q: Tensor  # (n, C, K) q decayed from the chunk's start: q_t * prod_{r <= t} f_r
    k: Tensor  # (n, C, K) k decayed to the chunk's end: k_s * prod_{r > s} f_r
    total: Tensor  # (n, K) decay of the chunk
    scores: Tensor  # (n, C, C) lower triangular: what o_t takes of v_s
    saved: list[tuple[Tensor, Tensor, Tensor]]  # per level: q of right halves, k of left halves, decay of all halves


def _halve(q: Tensor, k: Tensor, forget: Tensor, keep: bool) -> _Levels:
    n, C, K = q.shape
    scores = q.new_zeros(n, C, C)
    scores.diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
    q, k, total, saved = q * forget, k.clone(), forget, []
    m = 1
    while m < C:
        pairs = C // (2 * m)  # in each chunk
        q_right = q.view(n * pairs, 2, m, K)[:, 1]
        k_left = k.view(n * pairs, 2, m, K)[:, 0]
        halves = total.view(n * pairs, 2, K)
        if keep:
            saved.append((q_right.clone(), k_left.clone(), halves))
        block = (q_right * k_left).sum(-1, keepdim=True) if m == 1 else q_right @ k_left.transpose(1, 2)
        _blocks(scores, m).copy_(block.view(n, pairs, m, m))
        q_right *= halves[:, :1]
        k_left *= halves[:, 1:]
        total = halves[:, 0] * halves[:, 1]
        m *= 2
    return _Levels(q, k, total.view(n, K), scores, saved)


def _blocks(scores: Tensor, m: int) -> Tensor:
    """View (n, C / 2m, m, m) of the blocks whose rows are a right half of m tokens and columns the left half."""
    n, C, _ = scores.shape
    view = scores.view(n, C // (2 * m), 2, m, C // (2 * m), 2, m)[:, :, 1, :, :, 0, :]
    return view.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _rows(group: _Group, H: int) -> Tensor:
    """(chunks * H * C,) row of each place of a group in a (B * T * H, .) matrix; pads are past the last."""
    rows = group.tokens[:, None, :] * H + torch.arange(H, device=group.tokens.device)[:, None]
    return rows.clamp_(max=group.total * H).flatten()


def _take(x: Tensor, rows: Tensor, group: _Group, dtype: torch.dtype) -> Tensor:
    """Gather (chunks * H, C, .) from x (B, T, H, .); pads are 0."""
    flat = x.reshape(group.total * x.shape[2], x.shape[3])
    if group.pads:
        taken = flat.index_select(0, rows.clamp(max=len(flat) - 1)).to(dtype)
        taken.masked_fill_((rows == len(flat))[:, None], 0)
    else:
        taken = flat.index_select(0, rows).to(dtype)
    return taken.view(group.tokens.shape[0] * x.shape[2], group.tokens.shape[1], x.shape[3])


def _matrix(x: Tensor, groups: list[_Group]) -> Tensor:
    """A new matrix for `_put` of something shaped like x (B, T, H, .); if there are pads, one more row takes them."""
    pads = any(group.pads for group in groups)
    return x.new_empty(x.shape[0] * x.shape[1] * x.shape[2] + pads, x.shape[3])


def _put(parts: Tensor, rows: Tensor, into: Tensor) -> None:
    into.index_copy_(0, rows, parts.view(len(rows), into.shape[1]).to(into.dtype))


def _like(matrix: Tensor, x: Tensor) -> Tensor:
    """The matrix of `_put` in the shape of x, and no view: users may change what an autograd function returns."""
    rows = x.shape[0] * x.shape[1] * x.shape[2]
    return torch.ops.aten._unsafe_view(matrix if len(matrix) == rows else matrix[:rows].clone(), x.shape)


class _ChunkedGLA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_forget: Tensor,
        initial_state: Tensor,
        groups: list[_Group],
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        state = initial_state.clone()  # (N, H, K, V), longest sequence first
        out, boundaries = _matrix(v, groups), []
        for group in groups:
            if keep:
                boundaries.append(state[: group.counts[0]].clone())
            rows = _rows(group, q.shape[2])
            q_, k_, v_, forget = _inputs(q, k, v, log_forget, rows, group, initial_state.dtype)
            levels = _halve(q_, k_, forget, keep=False)
            starts = _states(levels, v_, state, group.counts)
            _put(torch.baddbmm(levels.scores @ v_, levels.q, starts), rows, out)
        ctx.save_for_backward(q, k, v, log_forget, *boundaries)
        ctx.groups = groups
        return _like(out, v), state

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise RuntimeError("gla: backend 'torch' has first derivatives only; use backend='reference' for more")
        q, k, v, log_forget, *boundaries = ctx.saved_tensors
        with no_autocast(q.device):
            gradients = _backward((q, k, v, log_forget), ctx.groups, boundaries, *cotangents)
        return *gradients, None, None


def _inputs(
    q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, rows: Tensor, group: _Group, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and forget of a group, (chunks * H, C, .) each; on a pad q, k and v are 0 and forget is 1."""
    q, k, v, log_forget = (_take(x, rows, group, dtype) for x in (q, k, v, log_forget))
    return q, k, v, log_forget.exp_()


def _states(levels: _Levels, v: Tensor, state: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Walk the chunks of a group: moves ``state`` (N, H, K, V) on in place; returns the state at each chunk's start."""
    _, H, K, V = state.shape
    added = levels.k.transpose(1, 2) @ v  # (n, K, V)
    starts = torch.empty_like(added)
    at = 0
    for count in counts:
        here = slice(at, at + count * H)
        now = state[:count]
        starts[here].view(count, H, K, V).copy_(now)
        now *= levels.total[here].view(count, H, K, 1)
        now += added[here].view(count, H, K, V)
        at += count * H
    return starts


def _backward(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    groups: list[_Group],
    boundaries: list[Tensor],
    dout: Tensor,
    dlast: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, log_forget and initial_state."""
    dtype = dlast.dtype
    H, K, V = dlast.shape[1:]
    grads = [_matrix(x, groups) for x in inputs]
    dstate = dlast.clone()
    for group, boundary in zip(reversed(groups), reversed(boundaries), strict=True):
        rows = _rows(group, H)
        q, k, v, forget = _inputs(*inputs, rows, group, dtype)
        levels = _halve(q, k, forget, keep=True)
        starts = _states(levels, v, boundary.clone(), group.counts)
        do = _take(dout, rows, group, dtype)

        # The recurrence over chunks, backwards: dends is the gradient of the state at each chunk's end.
        through_out = levels.q.transpose(1, 2) @ do
        dends = torch.empty_like(starts)
        at = len(starts)
        for count in reversed(group.counts):
            here = slice(at - count * H, at)
            now = dstate[:count]
            dends[here].view(count, H, K, V).copy_(now)
            now *= levels.total[here].view(count, H, K, 1)
            now += through_out[here].view(count, H, K, V)
            at -= count * H

        dv = torch.baddbmm(levels.scores.transpose(1, 2) @ do, levels.k, dends)
        dscores = do @ v.transpose(1, 2)
        dq = do @ starts.transpose(1, 2)
        dk = v @ dends.transpose(1, 2)
        dforget = _halve_backward(levels, dq, dk, (dends * starts).sum(-1), dscores)
        dforget.addcmul_(dq, q)
        diagonal = dscores.diagonal(dim1=1, dim2=2)[..., None]
        dq.mul_(forget).addcmul_(diagonal, k)
        dk.addcmul_(diagonal, q)
        for grad, part in zip(grads, (dq, dk, dv, dforget.mul_(forget)), strict=True):
            _put(part, rows, grad)
    return *(_like(grad, x) for grad, x in zip(grads, inputs, strict=True)), dstate


def _halve_backward(levels: _Levels, dq: Tensor, dk: Tensor, dtotal: Tensor, dscores: Tensor) -> Tensor:
    """The levels of `_halve`, last to first.

    dq and dk enter as the gradients of its decayed q and k and leave, changed in place, as those of q * forget and k.
    Returns the gradient of forget through the decays, (n, C, K); the part through q * forget is not in it.
    """
    n, C, K = dq.shape
    m = C // 2
    for q_right, k_left, halves in reversed(levels.saved):
        pairs = C // (2 * m)
        dq_right = dq.view(n * pairs, 2, m, K)[:, 1]
        dk_left = dk.view(n * pairs, 2, m, K)[:, 0]
        dblock = _blocks(dscores, m).reshape(n * pairs, m, m)
        dhalves = dtotal.view(n * pairs, 1, K) * halves.flip(1)
        dhalves[:, 0] += (dq_right * q_right).sum(1)
        dhalves[:, 1] += (dk_left * k_left).sum(1)
        dq_right *= halves[:, :1]
        dk_left *= halves[:, 1:]
        if m == 1:  # as matrix products these would be a vector times one number each
            dq_right.addcmul_(dblock, k_left)
            dk_left.addcmul_(dblock, q_right)
        else:
            dq_right += dblock @ k_left
            dk_left += dblock.transpose(1, 2) @ q_right
        dtotal = dhalves
        m //= 2
    return dtotal.view(n, C, K)
