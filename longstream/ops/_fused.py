"""What the fused elementwise ops share: where they run, and how they are called at the least cost."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longstream.ops import _native


def why_not(x: Tensor) -> str | None:
    """``why_not`` of the native backend of an op whose plain torch form also runs under torch.func."""
    if torch._C._are_functorch_transforms_active():
        return "does not run under the transforms of torch.func"
    return _native.why_not(x)


def call(op: Callable[..., Any], *arguments: Tensor | float | None) -> Any:
    """Call a torch op; below autograd where no gradient is wanted, which saves most of the time of a small call."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def refuse_double_backward(op: str) -> None:
    """Called by a backward pass, which is recorded only where its own derivatives are asked for."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: backend 'native' has first derivatives only; use backend='torch' for more")
