"""The recurrence over chunks at once, in plain torch.

T tokens are cut into about sqrt(T) chunks of about sqrt(T) tokens. First every chunk is walked from a zero state, all
chunks side by side, only to see where it ends; then the states at the chunks' starts are carried from chunk to chunk,
``start_{j+1} = decay_j start_j + end_j``; then all chunks are walked again, each from its start, which gives the
outputs. Every output comes from additions and multiplications by gates alone: nothing is divided by a product of gates,
and gates of 0 and 1 need no special case. A chunk's decay is the exp of a sum of logs and not a product of gates, each
of which float32 rounds, and it turns by a multiple of theta taken in float64: over ten thousand equal steps near 1 the
rounded steps would lose three digits.

The backward pass is the transposed recurrence, the same walk the other way over the gradients of the outputs. Its own
transpose is the first one again, so derivatives of any order come from one autograd function.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import inf, isqrt
from typing import Any

import torch
from torch import Tensor

from longstream.ops._check import wide
from longstream.ops._walk import is_symbolic, walk

# So many tokens are one walk. Measured with D = 256, chunks take over past 24 tokens in one row and past 48 in eight.
ONE_WALK = 32

# Gradients of factors are formed for so many factors at a time: at T = 16384, D = 512 with theta this saves a quarter
# of the whole call, forward and backward, as every intermediate result of all at once would be new memory.
BLOCK = 2**18

Number = tuple[Tensor, ...]  # one per channel: (real,) or (real, imaginary)


def gated_scan(
    x: Tensor,
    log_forget: Tensor,
    initial_state: Tensor,
    theta: Tensor | None,
    reverse: bool,
    bounds: list[int] | None,
) -> tuple[Tensor, Tensor]:
    """See `longstream.ops.gated_scan`; ``bounds`` are the checked cu_seqlens."""
    dtype = wide(x, log_forget, initial_state, theta)
    inputs, log_forget, state = x.to(dtype), log_forget.to(dtype), initial_state.to(dtype)
    theta = None if theta is None else theta.to(dtype)
    if bounds is None:
        out, last = _rows(inputs, log_forget, theta, state, reverse)
        return out.to(x.dtype), last

    # Packed: the first token of each sequence takes the initial state in and forgets what is before it in the row.
    full = [(n, left, right - 1) for n, (left, right) in enumerate(pairwise(bounds)) if left < right]
    sequence, first, last = torch.tensor(full, dtype=torch.long, device=x.device).view(-1, 3).unbind(1)
    if reverse:
        first, last = last, first
    begun = _step(inputs[:, first], log_forget[:, first], theta, state[None, sequence])
    inputs = inputs.index_copy(1, first, begun)
    out, _ = _rows(inputs, log_forget.index_fill(1, first, -inf), theta, torch.zeros_like(state[:1]), reverse)
    return out.to(x.dtype), state.index_copy(0, sequence, out[0, last])


def _rows(x: Tensor, log_forget: Tensor, theta: Tensor | None, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """One sequence in each row; all arguments of one dtype."""
    T = x.shape[1]
    if is_symbolic(T):
        return _rows_of_any_length(x, log_forget, theta, state, reverse)
    if T == 0:
        return x.clone(), state.clone()
    if T == 1:
        out = _step(x, log_forget, theta, state.unsqueeze(1))
        return out, out.squeeze(1).clone()  # its own memory: whoever changes out in place must not change the state
    C = _chunk_length(T)
    with torch.no_grad():  # the gradient of a gate goes through `forget`; this is the same number, known better
        decay = log_forget[:, : T // C * C].unflatten(1, (-1, C)).sum(2).exp() if T > C else None
    if theta is not None:
        return _Scan.apply(x, log_forget.exp(), decay, theta, state, C, reverse, False)
    out, last = _Scan.apply(x[:, :, None], log_forget.exp(), decay, None, state[:, None], C, reverse, False)
    return out.squeeze(2), last.squeeze(1)


def _rows_of_any_length(
    x: Tensor, log_forget: Tensor, theta: Tensor | None, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """`_rows` for a graph that is to take any number of tokens: no cut into chunks is right for all."""

    def step(h: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x_t, log_forget_t = inputs
        h = _step(x_t, log_forget_t, theta, h)
        return h, h

    inputs = (x.flip(1), log_forget.flip(1)) if reverse else (x, log_forget)
    out, last = walk(step, state, inputs)
    return out.flip(1) if reverse else out, last


def _step(x: Tensor, log_forget: Tensor, theta: Tensor | None, state: Tensor) -> Tensor:
    """The equation itself: x and state (..., D), or (..., 2, D) with theta; log_forget (..., D)."""
    forget = log_forget.exp()
    if theta is None:
        return torch.addcmul(x, forget, state)
    # In float64: a float32 sine is off by as much at every step, which after 20,000 slow ones is 1e-4 of the state.
    exact = theta if theta.device.type == "mps" else theta.double()
    factor = forget * exact.cos(), forget * exact.sin()
    h = _add_product(x.to(exact).unbind(-2), factor, state.to(exact).unbind(-2))
    return torch.stack(h, dim=-2).to(x.dtype)


def _chunk_length(T: int) -> int:
    """About sqrt(T / 2), because a chunk is walked twice; up to twice that if then no token is left over."""
    if T <= ONE_WALK:
        return T
    C = isqrt(T // 2)
    return next((c for c in range(C, 2 * C) if T % c == 0), C)


class _Scan(torch.autograd.Function):
    """`_scan`, differentiable in x, forget, theta and start."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        _, forget, decay, theta, start, *ctx.how = arguments
        out, last = _scan(*arguments)
        ctx.save_for_backward(forget, decay, theta, start, out)
        return out, last

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        forget, decay, theta, start, out = ctx.saved_tensors
        C, reverse, transposed = ctx.how
        dout, dlast = cotangents
        run = _Scan.apply if torch.is_grad_enabled() else _scan
        dx, dstart = run(dout, forget, decay, theta, dlast, C, reverse, not transposed)

        h, begin, g = (dx, dlast, out) if transposed else (out, start, dx)
        dforget, dtheta = _factor_gradients(h, begin, g, forget, theta, reverse)
        return dx, dforget, None, dtheta, dstart, None, None, None


def _factor_gradients(
    h: Tensor, start: Tensor, g: Tensor, forget: Tensor, theta: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor | None]:
    """Of forget and theta, from h of the recurrence and g of its transpose: for a_t it is g_t conj(h_{t-1})."""
    first, later, earlier = slice(1), slice(1, None), slice(-1)
    if reverse:
        first, later, earlier = slice(-1, None), slice(-1), slice(1, None)
    tokens = max(1, BLOCK // max(1, h[:, 0, 0].numel()))
    blocks = [(g[:, first], start[:, None], forget[:, first])]
    rest = g[:, later].split(tokens, 1), h[:, earlier].split(tokens, 1), forget[:, later].split(tokens, 1)
    blocks = [*zip(*rest, strict=True), *blocks] if reverse else [*blocks, *zip(*rest, strict=True)]
    if theta is None:
        return torch.cat([(now * before)[:, :, 0] for now, before, _ in blocks], dim=1), None
    cos, sin = theta.cos(), theta.sin()
    dforget, by_cos, by_sin = [], torch.zeros_like(theta), torch.zeros_like(theta)
    for now, before, f in blocks:
        (now_re, now_im), (re, im) = now.unbind(2), before.unbind(2)
        along = torch.addcmul(now_re * re, now_im, im)
        across = torch.addcmul(now_im * re, now_re, im, value=-1)
        dforget.append(torch.addcmul(along * cos, across, sin))
        by_cos, by_sin = by_cos + (f * across).sum((0, 1)), by_sin - (f * along).sum((0, 1))
    return torch.cat(dforget, dim=1), by_cos * cos + by_sin * sin


def _scan(
    x: Tensor,
    forget: Tensor,
    decay: Tensor | None,
    theta: Tensor | None,
    start: Tensor,
    C: int,
    reverse: bool,
    transposed: bool,
) -> tuple[Tensor, Tensor]:
    """The recurrence from h_0 = start, or its transpose from r_{T+1} = start; reverse swaps past and future in both.

    Recurrence: ``h_t = a_t h_{t-1} + x_t``, a_t = forget_t exp(i theta). Returns h and h_T.
    Transposed: ``g_t = r_{t+1} + x_t``, ``r_t = conj(a_t) g_t``. Returns g and r_1.

    x (B, T, 1 or 2, D), forget (B, T, D), start (B, 1 or 2, D); decay (B, T // C, D) is the product of forget over each
    chunk of C tokens.
    """
    B, T, parts, D = x.shape
    to_past = reverse != transposed
    whole = T // C * C
    factor = _turn(forget, theta, 1, transposed)
    decays = None if decay is None else _turn(decay, theta, C, transposed)
    pieces = [(0, whole, C, decays), (whole, T, T - whole, None)][: 1 + (whole < T)]  # what is left over is one chunk
    outs, state = [], start.unbind(1)
    for begin, end, length, chunk_decays in pieces[::-1] if to_past else pieces:
        xs, factors = (
            _by_position(tuple(part[:, begin:end] for part in number), length, to_past)
            for number in (x.unbind(2), factor)
        )
        hs, state = _chunks(xs, factors, chunk_decays, state, to_past, transposed)
        in_order = [part for h in (hs[::-1] if to_past else hs) for part in h]
        outs.append(torch.stack(in_order, dim=2).view(B, end - begin, parts, D))
    out = outs[0] if len(outs) == 1 else torch.cat(outs[::-1] if to_past else outs, dim=1)
    return out, torch.stack(state, dim=1)


def _turn(forget: Tensor, theta: Tensor | None, steps: int, conjugate: bool) -> Number:
    """``forget exp(i steps theta)``, or its conjugate."""
    if theta is None:
        return (forget,)
    # The angle of many steps needs more digits than float32 has; where there is no float64, a chunk's are few enough.
    angle = steps * (theta if theta.device.type == "mps" else theta.double())
    cos, sin = angle.cos().to(forget.dtype), angle.sin().to(forget.dtype)
    return forget * cos, forget * (-sin if conjugate else sin)


def _by_position(number: Number, C: int, to_past: bool) -> list[Number]:
    """Of (B, chunks * C, D) numbers, those at each position of a chunk, (B, chunks, D), in the order of the walk."""
    numbers = list(zip(*(part.unflatten(1, (-1, C)).unbind(2) for part in number), strict=True))
    return numbers[::-1] if to_past else numbers


def _chunks(
    xs: list[Number], factors: list[Number], decays: Number | None, start: Number, to_past: bool, transposed: bool
) -> tuple[list[Number], Number]:
    """Walk chunks that follow one another side by side; returns the outputs at each position and what is handed on."""
    starts = tuple(part[:, None] for part in start)
    if decays is not None:
        ends = zeros = tuple(torch.zeros_like(part) for part in xs[0])
        for ends in _walk(xs, factors, zeros, transposed):  # noqa: B007
            pass
        chunks = ends[0].shape[1]
        carried = _walk(_by_position(ends, chunks, to_past), _by_position(decays, chunks, to_past), starts, False)
        states = [starts, *carried][:chunks]
        starts = tuple(torch.cat(parts, dim=1) for parts in zip(*(states[::-1] if to_past else states), strict=True))
    *outs, ends = _walk(xs, factors, starts, transposed)
    return outs, tuple(part[:, 0 if to_past else -1] for part in ends)


def _walk(xs: list[Number], factors: list[Number], h: Number, transposed: bool) -> Iterator[Number]:
    """Step by step the outputs, then what is handed on."""
    for x, factor in zip(xs, [None, *factors[:-1]] if transposed else factors, strict=True):
        h = _add_product(x, factor, h)
        yield h
    yield _add_product((h[0].new_zeros(()),) * len(h), factors[-1], h) if transposed else h


def _add_product(x: Number, factor: Number | None, h: Number) -> Number:
    """x + factor * h; no factor means 1."""
    if factor is None:
        return tuple(a + b for a, b in zip(x, h, strict=True))
    re = torch.addcmul(x[0], factor[0], h[0])
    if len(x) == 1:
        return (re,)
    im = torch.addcmul(x[1], factor[0], h[1])
    return torch.addcmul(re, factor[1], h[1], value=-1), torch.addcmul(im, factor[1], h[0])
