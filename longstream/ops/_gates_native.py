"""The ``native`` backend of `forget_gate`: the kernels of csrc/gates_kernels.cpp as a torch op with gradients."""

from typing import Any

import torch
from torch import Tensor

from longstream.ops import _native
from longstream.ops._check import wide


def forget_gate(
    z: Tensor, bound: Tensor | None, complement: Tensor | None, candidate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log f and 1 - f, the second times SiLU(candidate) if there is one; both float32 or wider."""
    dtype = wide(z, bound, complement, candidate)
    arguments = [None if x is None else x.to(dtype).contiguous() for x in (z, bound, complement, candidate)]
    return _native.call(torch.ops.longstream.forget_gate.default, *arguments)


def _setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_log_forget: Tensor, d_input_gate: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    cotangents = d_log_forget.contiguous(), d_input_gate.contiguous()
    gradients = torch.ops.longstream.forget_gate_backward(*cotangents, *inputs)
    return tuple(None if x is None else gradient for x, gradient in zip(inputs, gradients, strict=True))


def _fake(z: Tensor, bound: Any, complement: Any, candidate: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(z)


def _fake_backward(
    d_log_forget: Tensor, d_input_gate: Tensor, z: Tensor, bound: Any, complement: Any, candidate: Any
) -> tuple[Tensor, ...]:
    of_bound = [z.new_empty(0 if bound is None else z.shape[-1]) for _ in range(2)]
    return torch.empty_like(z), *of_bound, z.new_empty(0) if candidate is None else torch.empty_like(z)


_native.register("forget_gate", _fake, _fake_backward, _setup_context, _backward)
