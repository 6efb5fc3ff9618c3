"""The sum over taps on a CPU, in csrc/short_conv_kernels.cpp: one walk over time forward and one back."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from longstream.ops import _native
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
    tensors = [None if t is None else t.to(dtype).contiguous() for t in (x, weight.t(), bias, initial_state)]
    op = torch.ops.longstream.short_conv.default
    if torch.compiler.is_compiling() or _wants_gradient(tensors):
        out, final_state = op(*tensors, activation == "silu", bounds or [])
    else:
        with torch._C._AutoDispatchBelowAutograd():  # measured at T = 1: 6 us for 13
            out, final_state = op(*tensors, activation == "silu", bounds or [])
    return out.to(x.dtype), final_state


def _wants_gradient(tensors: list[Tensor | None]) -> bool:
    if forward_ad._current_level >= 0:
        raise RuntimeError(f"short_conv: {_ONLY_FIRST}")
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


_ONLY_FIRST = "backend 'native' has first derivatives only, backward; use backend='torch' for others"


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor, silu: bool, bounds: list[int]
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), initial_state.new_empty(initial_state.shape)


def _fake_backward(
    dout: Tensor,
    dfinal_state: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor,
    silu: bool,
    bounds: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = x.new_empty(0 if bias is None else bias.shape[0])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, initial_state.new_empty(initial_state.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.bounds = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor, dfinal_state: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_state = ctx.saved_tensors
    dx, dweight, dbias, dinitial_state = torch.ops.longstream.short_conv_backward(
        dout.contiguous(), dfinal_state.contiguous(), x, weight, bias, initial_state, ctx.silu, ctx.bounds
    )
    return dx, dweight, None if bias is None else dbias, dinitial_state, None, None


def _refuse(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(f"short_conv: {_ONLY_FIRST}")


if _native.MISSING is None:
    torch.library.register_fake("longstream::short_conv", _fake_forward)
    torch.library.register_fake("longstream::short_conv_backward", _fake_backward)
    torch.library.register_autograd("longstream::short_conv", _backward, setup_context=_keep)
    torch.library.register_autograd("longstream::short_conv_backward", _refuse)
