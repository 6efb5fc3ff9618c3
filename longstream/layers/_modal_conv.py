"""Running modal filters over whole sequences: blocks of time at once, the states of the modes from block to block."""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops._walk import is_symbolic, walk

BLOCK = 32  # tokens; the tables of a larger block cost more than it saves, measured for D 256 and M 16 and 64
GROUP_ELEMENTS = 1 << 23  # numbers worked on at once


def powers(base: Tensor, count: int) -> Tensor:
    """base^0 .. base^(count - 1), in a new dimension before the last."""
    table, last = torch.ones_like(base)[..., None, :], base[..., None, :]
    while table.shape[-2] < count:  # last is base^(how many there are)
        table = torch.cat([table, table * last], -2)
        last = last * last
    return table[..., :count, :]


def as_complex(pairs: Tensor) -> Tensor:
    """(..., 2) real -> (...) complex."""
    return torch.view_as_complex(pairs.contiguous())


def as_real(numbers: Tensor) -> Tensor:
    """(..., M) complex -> (..., 2 M), each real part before its imaginary part."""
    return torch.view_as_real(numbers.resolve_conj()).flatten(-2)


def run_step(x: Tensor, poles: Tensor, residues: Tensor, direct: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token, x (B, D) and state (B, D, M, 2)."""
    state = torch.view_as_real(as_complex(state) * as_complex(poles) + x[..., None])
    conjugate = residues * residues.new_tensor([1, -1])  # Re(R s) = Re R Re s - Im R Im s
    return torch.addcmul((state * conjugate).sum((-2, -1)), direct, x), state


def walk_tokens(x: Tensor, poles: Tensor, residues: Tensor, direct: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens x (B, T, D) one by one, for a graph that is to take any number of them, without complex numbers."""
    re, im = (part.clone() for part in poles.unbind(-1))  # what a walked step sees shares no memory
    conjugate = residues * residues.new_tensor([1, -1])

    def token(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        a, b = state.unbind(-1)
        state = torch.stack([re * a - im * b + inputs[0][..., None], re * b + im * a], -1)
        return state, (state * conjugate).sum((-2, -1)) + direct * inputs[0]

    if is_symbolic(x.shape[1]) or x.shape[1] != 1:
        return walk(token, state, (x,))
    state, y = token(state, (x[:, 0],))
    return y[:, None], state


class _Tables(NamedTuple):
    """What a block of C tokens needs; computed in float64, for powers lose a digit where |pole| is near 1."""

    decay: Tensor  # (D, C + 1, M) complex: pole^0 .. pole^C
    into: Tensor  # (D, C, 2 M): what each token adds to the state at the block's end
    within: Tensor  # (D, C, C): what each token adds to the outputs of the block
    out: Tensor  # (D, 2 M, C): what the state at the block's start adds to its outputs


def _tables(poles: Tensor, residues: Tensor, direct: Tensor, C: int) -> _Tables:
    dtype = poles.dtype
    decay = powers(as_complex(poles.double()), C + 1)
    conjugate = as_complex(residues.double()).conj()[:, None]
    taps = (as_real(decay[:, :C]) @ as_real(conjugate).mT)[..., 0]  # (D, C)
    taps = torch.cat([taps[:, :1] + direct[:, None], taps[:, 1:]], 1).to(dtype)
    within = F.pad(taps, (C - 1, 0)).unfold(1, C, 1).flip(1)
    out = as_real(decay[:, 1:].conj() * conjugate).mT.to(dtype)
    decay = torch.view_as_complex(torch.view_as_real(decay).to(dtype))
    return _Tables(decay, as_real(decay[:, :C].flip(1)), within, out)


class _Plan(NamedTuple):
    """Sequences, longest first, cut into blocks. Blocks j of all sequences that have one stand together: step j."""

    order: Tensor  # (N,) the sequences, longest first
    counts: list[int]  # how many sequences take part in each step
    tokens: Tensor  # (blocks, C) which token stands where; one past the last where there is none
    sizes: list[int]  # tokens in each block


def _plan(lengths: list[int], C: int, device: torch.device) -> _Plan:
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    blocks = [-(-lengths[n] // C) for n in order]
    counts, active = [], len(order)
    for j in range(blocks[0] if blocks else 0):
        while blocks[active - 1] <= j:
            active -= 1
        counts.append(active)

    ints = partial(torch.tensor, dtype=torch.long)
    step = torch.arange(len(counts)).repeat_interleave(ints(counts), output_size=sum(counts))
    sequence = torch.arange(sum(counts)) - ints([0, *accumulate(counts)])[step]
    starts = [0, *accumulate(lengths)]
    sizes = [min(lengths[n] - j * C, C) for j, count in enumerate(counts) for n in order[:count]]
    first, place = ints([starts[n] for n in order])[sequence] + step * C, torch.arange(C)
    tokens = torch.where(place < ints(sizes)[:, None], first[:, None] + place, starts[-1])
    return _Plan(ints(order).to(device), counts, tokens.to(device), sizes)


def run_blocks(
    x: Tensor, poles: Tensor, residues: Tensor, direct: Tensor, state: Tensor, lengths: list[int]
) -> tuple[Tensor, Tensor]:
    """Sequences of these lengths, one after the other in x (tokens, D), with state (N, D, M, 2)."""
    (total, D), M = x.shape, poles.shape[1]
    longest = max([1, *lengths])  # not default=, which torch.compile does not always trace
    C = min(BLOCK, 1 << (longest - 1).bit_length())
    plan, tables = _plan(lengths, C, x.device), _tables(poles, residues, direct, C)
    x = torch.cat([x, x.new_zeros(1, D)])  # the last row is what stands where there is no token
    now, decay = as_complex(state[plan.order].transpose(0, 1)), tables.decay[:, C:]  # (D, sequences or 1, M)
    outs, finals = [x.new_zeros(0, D)], []
    at = 0
    for first, last in _groups(plan.counts, D * (C + 2 * M)):
        here = slice(at, at + sum(plan.counts[first:last]))
        tokens, sizes = plan.tokens[here], plan.sizes[here]
        inputs = x[tokens].permute(2, 0, 1)  # (D, blocks, C)
        added = inputs @ tables.into
        if shorts := [i for i, size in enumerate(sizes) if size < C]:
            # The state after a block that is not full: its tokens moved to the block's end.
            short = torch.tensor(shorts, device=x.device)
            held = torch.tensor([sizes[i] for i in shorts], device=x.device)
            place = torch.arange(C, device=x.device) - (C - held[:, None])
            moved = tokens[short].gather(1, place.clamp(min=0)).masked_fill(place < 0, total)
            added = added.index_copy(1, short, x[moved].permute(2, 0, 1) @ tables.into)
        added = torch.view_as_complex(added.view(D, -1, M, 2))
        starts, counts = [], plan.counts[first:last]
        begin = 0
        for step, count in zip(added.split(counts, 1), counts, strict=True):
            size, begin = sizes[begin : begin + count], begin + count
            if count < now.shape[1]:
                now, ended = now.split([count, now.shape[1] - count], 1)
                finals.append(ended)
            starts.append(now)
            now = torch.addcmul(step, decay if min(size) == C else tables.decay[:, size], now)
        out = torch.baddbmm(inputs @ tables.within, as_real(torch.cat(starts, 1)), tables.out)
        outs.append(out.permute(1, 2, 0).reshape(-1, D))
        at = here.stop
    final = torch.view_as_real(torch.cat([now, *reversed(finals)], 1)).transpose(0, 1)
    place = torch.empty(total + 1, dtype=torch.long, device=x.device)  # of each token among the outputs
    place[plan.tokens.flatten()] = torch.arange(plan.tokens.numel(), device=x.device)
    return torch.cat(outs)[place[:total]], final.new_empty(final.shape).index_copy(0, plan.order, final)


def _groups(counts: list[int], elements: int) -> Iterator[tuple[int, int]]:
    """Runs of steps whose blocks fit in GROUP_ELEMENTS numbers together, at ``elements`` a block."""
    first, held = 0, 0
    for j, count in enumerate(counts):
        held += count
        if held * elements >= GROUP_ELEMENTS or j + 1 == len(counts):
            yield first, j + 1
            first, held = j + 1, 0
