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
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        out, last, _ = torch.ops.longstream.gla(*inputs, cu_seqlens, _spacing(q.shape[3], v.shape[3]))
    elif torch.compiler.is_compiling():
        out, last, _ = torch.ops.longstream.gla(*inputs, cu_seqlens, 0)
    else:
        with torch._C._AutoDispatchBelowAutograd():  # a decoding step would spend its time in autograd's registration
            out, last, _ = torch.ops.longstream.gla(*inputs, cu_seqlens, 0)
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
    if torch.is_grad_enabled():
        raise RuntimeError("gla: backend 'native' has first derivatives only; use backend='reference' for more")
    *given, states = ctx.saved_tensors
    return *torch.ops.longstream.gla_backward(*given, ctx.spacing, states, dout, dlast), None, None


if _native.MISSING is None:
    torch.library.register_fake("longstream::gla", _fake)
    torch.library.register_fake("longstream::gla_backward", _fake_backward)
    torch.library.register_autograd("longstream::gla", _backward, setup_context=_setup)
