"""The recurrence as a loop, in the widest dtype it is given: the oracle of the other backends."""

from itertools import pairwise

import torch
from torch import Tensor

from longstream.ops._check import wide


def gated_scan(
    x: Tensor,
    log_forget: Tensor,
    initial_state: Tensor,
    theta: Tensor | None,
    reverse: bool,
    bounds: list[int] | None,
) -> tuple[Tensor, Tensor]:
    """See `longstream.ops.gated_scan`; ``bounds`` are the checked cu_seqlens."""
    if bounds is not None:
        packed = [
            gated_scan(x[:, left:right], log_forget[:, left:right], initial_state[n : n + 1], theta, reverse, None)
            for n, (left, right) in enumerate(pairwise(bounds))
        ]
        return torch.cat([out for out, _ in packed], dim=1), torch.cat([state for _, state in packed])
    dtype = wide(x, log_forget, initial_state, theta)
    h = initial_state.to(dtype, copy=True)  # (B, D), or (B, 2, D) with theta
    tokens = list(zip(x.to(dtype).unbind(1), log_forget.to(dtype).exp().unbind(1), strict=True))
    turn = None if theta is None else (theta.to(dtype).cos(), theta.to(dtype).sin())
    out = []
    for x_t, forget_t in reversed(tokens) if reverse else tokens:
        if turn is not None:
            h, forget_t = _turned(h, *turn), forget_t[:, None]
        h = forget_t * h + x_t
        out.append(h)
    if reverse:
        out.reverse()
    return (torch.stack(out, dim=1) if out else torch.zeros_like(x)).to(x.dtype), h


def _turned(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """exp(i theta) h for pairs h (B, 2, D)."""
    re, im = h.unbind(-2)
    return torch.stack([cos * re - sin * im, sin * re + cos * im], dim=-2)
