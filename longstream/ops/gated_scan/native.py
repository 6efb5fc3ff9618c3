"""The recurrence on a CPU, in csrc/gated_scan_kernels.cpp: one walk over time forward and one back."""

from typing import Any

import torch
from torch import Tensor

from longstream.ops import _native
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
    dtype = wide(x, log_forget, initial_state, theta)
    tensors = [None if t is None else t.to(dtype).contiguous() for t in (x, log_forget, initial_state, theta)]
    out, final_state = _native.call(torch.ops.longstream.gated_scan.default, *tensors, reverse, bounds or [])
    return out.to(x.dtype), final_state


def _fake_forward(
    x: Tensor, log_forget: Tensor, initial_state: Tensor, theta: Tensor | None, reverse: bool, bounds: list[int]
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), initial_state.new_empty(initial_state.shape)


def _fake_backward(
    dout: Tensor,
    dfinal_state: Tensor,
    log_forget: Tensor,
    initial_state: Tensor,
    theta: Tensor | None,
    out: Tensor,
    reverse: bool,
    bounds: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtheta = out.new_empty(0 if theta is None else theta.shape[0])
    dlog_forget, dinitial_state = log_forget.new_empty(log_forget.shape), initial_state.new_empty(initial_state.shape)
    return out.new_empty(out.shape), dlog_forget, dinitial_state, dtheta


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, log_forget, initial_state, theta, ctx.reverse, ctx.bounds = inputs
    ctx.save_for_backward(log_forget, initial_state, theta, output[0])


def _backward(ctx: Any, dout: Tensor, dfinal_state: Tensor) -> tuple[Tensor | None, ...]:
    log_forget, initial_state, theta, out = ctx.saved_tensors
    gradients = torch.ops.longstream.gated_scan_backward(
        dout.contiguous(), dfinal_state.contiguous(), log_forget, initial_state, theta, out, ctx.reverse, ctx.bounds
    )
    dx, dlog_forget, dinitial_state, dtheta = gradients
    return dx, dlog_forget, dinitial_state, None if theta is None else dtheta, None, None


_native.register("gated_scan", _fake_forward, _fake_backward, _keep, _backward)
