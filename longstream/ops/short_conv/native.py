"""The sum over taps on a CPU, in csrc/short_conv_kernels.cpp: one walk over time forward and one back."""

from typing import Any

import torch
from torch import Tensor

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
    out, final_state = _native.call(op, *tensors, activation == "silu", bounds or [])
    return out.to(x.dtype), final_state


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


_native.register("short_conv", _fake_forward, _fake_backward, _keep, _backward)
