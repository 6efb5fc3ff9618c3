"""The sum over taps as W shifted products over all of time, in plain torch."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops._check import wide


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor,
    activation: str | None,
    bounds: list[int] | None,
) -> tuple[Tensor, Tensor]:
    """See `longstream.ops.short_conv`; ``bounds`` are the checked cu_seqlens."""
    dtype = wide(x, weight, bias, initial_state)
    W = weight.shape[1]
    if bounds is None:
        stream = torch.cat([initial_state.to(dtype), x.to(dtype)], dim=1)  # (B, W - 1 + T, D)
        y = _taps(stream, weight.to(dtype), bias)
        final_state = stream[:, stream.shape[1] - (W - 1) :]
    else:
        # Give each packed sequence its own W - 1 inputs before it, and drop the sums that start among those.
        before = torch.arange(len(bounds) - 1, device=x.device).repeat_interleave(
            torch.tensor([b - a for a, b in pairwise(bounds)], device=x.device)
        )
        place = torch.arange(x.shape[1], device=x.device) + (before + 1) * (W - 1)  # of each token in the stream
        ends = torch.tensor(bounds[1:], device=x.device) + torch.arange(1, len(bounds), device=x.device) * (W - 1)
        taps = ends[:, None] + torch.arange(1 - W, 0, device=x.device)  # (N, W - 1): the last inputs of each sequence
        starts = torch.tensor(bounds[:-1], device=x.device) + torch.arange(len(bounds) - 1, device=x.device) * (W - 1)
        heads = (starts[:, None] + torch.arange(W - 1, device=x.device)).reshape(-1)
        stream = x.new_zeros(x.shape[1] + len(heads), x.shape[2], dtype=dtype)
        stream = stream.index_copy(0, heads, initial_state.to(dtype).reshape(len(heads), x.shape[2]))
        stream = stream.index_copy(0, place, x[0].to(dtype))
        y = _taps(stream[None], weight.to(dtype), bias)[:, place - (W - 1)]
        final_state = stream[taps]
    y = F.silu(y) if activation == "silu" else y
    return y.to(x.dtype), final_state


def _taps(stream: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, T + W - 1, D) -> (B, T, D): the sum over taps at every position that has W - 1 inputs before it."""
    W = weight.shape[1]
    T = stream.shape[1] - (W - 1)
    y = weight[:, W - 1] * stream[:, W - 1 :]
    if bias is not None:
        y = y + bias.to(y.dtype)
    for j in range(W - 1):
        y = torch.addcmul(y, weight[:, j], stream[:, j : j + T])
    return y
