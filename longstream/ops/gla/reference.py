"""The recurrence as a loop, in the widest dtype it is given: the oracle of the other backends."""

from itertools import pairwise

import torch
from torch import Tensor

from longstream.ops._check import wide


def gla(
    q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, initial_state: Tensor, bounds: list[int] | None
) -> tuple[Tensor, Tensor]:
    """See `longstream.ops.gla`; ``bounds`` are the checked cu_seqlens."""
    if bounds is not None:
        rows = [slice(left, right) for left, right in pairwise(bounds)]
        packed = [
            gla(q[:, row], k[:, row], v[:, row], log_forget[:, row], initial_state[n : n + 1], None)
            for n, row in enumerate(rows)
        ]
        return torch.cat([out for out, _ in packed], dim=1), torch.cat([state for _, state in packed])
    dtype = wide(q, k, v, log_forget, initial_state)
    q_, k_, v_, forget = q.to(dtype), k.to(dtype), v.to(dtype), log_forget.to(dtype).exp()
    S = initial_state.to(dtype)  # (B, H, K, V)
    out = []
    for t in range(q.shape[1]):
        S = forget[:, t, :, :, None] * S + k_[:, t, :, :, None] * v_[:, t, :, None, :]
        out.append((q_[:, t, :, :, None] * S).sum(dim=-2))  # (B, H, V)
    return (torch.stack(out, dim=1) if out else torch.zeros_like(v_)).to(v.dtype), S
