"""A recurrence at a length that a graph does not know yet: one node that walks from token to token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_symbolic(*sizes: Any) -> bool:
    """Whether one of these sizes stands for any number, as where a model is exported with dynamic dimensions."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def walk(
    step: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]], state: Tensor, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """``state, out_t = step(state, inputs_t)`` over dim 1 of the inputs: the outs (B, T, ...) and the last state.

    T >= 1. The state that a step returns is new, and out_t may be that state.
    """
    from torch._higher_order_ops.scan import scan  # only whoever exports needs it

    def own_memory(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        state, out = step(state, inputs)
        return state.contiguous(), out.clone()

    last, outs = scan(own_memory, state.contiguous(), tuple(x.movedim(1, 0).contiguous() for x in inputs))
    return outs.movedim(0, 1), last
