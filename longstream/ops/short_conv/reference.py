"""The sum as a loop over time and taps, in the widest dtype it is given: the oracle of the other backends."""

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
    if bounds is not None:
        packed = [
            short_conv(x[:, left:right], weight, bias, initial_state[n : n + 1], activation, None)
            for n, (left, right) in enumerate(pairwise(bounds))
        ]
        return torch.cat([out for out, _ in packed], dim=1), torch.cat([state for _, state in packed])
    dtype = wide(x, weight, bias, initial_state)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)  # once: gradients add up in dtype too
    W = weight.shape[1]
    past = [*initial_state.to(dtype).unbind(1), *x.to(dtype).unbind(1)]  # past[t + W - 1] is x_t
    out = []
    for t in range(x.shape[1]):
        y = torch.zeros_like(x[:, t], dtype=dtype) if bias is None else bias.expand_as(x[:, t])
        for j in range(W):
            y = y + weight[:, j] * past[t + j]
        out.append(F.silu(y) if activation == "silu" else y)
    final_state = torch.stack(past[len(past) - (W - 1) :], dim=1) if W > 1 else initial_state.to(dtype)
    return (torch.stack(out, dim=1) if out else torch.zeros_like(x)).to(x.dtype), final_state
