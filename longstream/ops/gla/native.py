"""The recurrence by the C++ kernels of csrc/gla*.cpp, which see: forward, backward and step on a CPU."""

from typing import Any

import torch
from torch import Tensor

from longstream.ops import _native
from longstream.ops._check import wide


def gla(
    q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, initial_state: Tensor, bounds: list[int] | None
) -> tuple[Tensor, Tensor]:
    """See `longstream.ops.gla`; ``bounds`` are the checked cu_seqlens."""
    cu_seqlens = None if bounds is None else torch.tensor(bounds, dtype=torch.int64)
    inputs = (q, k, v, log_forget, initial_state)
    learns = _native.wants_gradient(*inputs) and not torch.compiler.is_exporting()  # a graph runs forward only
    spacing = _spacing(q.shape[3], v.shape[3]) if learns else 0
    out, last, _ = _native.call(torch.ops.longstream.gla.default, *inputs, cu_seqlens, spacing)
    return out, last


def _spacing(K: int, V: int) -> int:
    """Tokens from one kept state, K V numbers, to the next: kept states are to be no more than K + V a token."""
    spacing = 64
    while spacing * (K + V) < K * V:
        spacing *= 2
    return spacing


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_forget: Tensor,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    spacing: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide(q, k, v, log_forget, initial_state)
    B, T, H, V = v.shape
    kept = B * T // spacing if spacing else 0
    out, last = v.new_empty((B, T, H, V)), q.new_empty(initial_state.shape, dtype=dtype)
    return out, last, q.new_empty((kept, H, q.shape[3], V), dtype=dtype)


def _fake_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_forget: Tensor,
    initial_state: Tensor,
    cu_seqlens: Tensor | None,
    spacing: int,
    states: Tensor,
    dout: Tensor,
    dfinal: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, log_forget, initial_state))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *given, ctx.spacing = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*given, output[2])


def _backward(ctx: Any, dout: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *given, states = ctx.saved_tensors
    return *torch.ops.longstream.gla_backward(*given, ctx.spacing, states, dout, dlast), None, None


_native.register("gla", _fake, _fake_backward, _setup, _backward, more="reference")
