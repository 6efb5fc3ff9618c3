"""The compiled library of csrc/: loads it once, or says in words why it is not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = Path(__file__).resolve().parents[1] / "longstream_kernels.so"
OPS = ("forget_gate", "gated_scan", "gla", "long_conv", "multiply_adds", "read_numbers", "rms_norm", "short_conv")
OPS += ("stream_bind", "stream_check", "stream_layout", "stream_step", "stream_workspace", "swiglu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load() -> str | None:
    if not LIBRARY.exists():
        return "not compiled: install longstream again where torch >= 2.10 and a C++17 compiler (g++, clang++) are"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    if absent := [name for name in OPS if not hasattr(torch.ops.longstream, name)]:
        return f"{LIBRARY.name} is not of this version, without {', '.join(absent)}: install longstream again"
    return None


MISSING = _load()  # None when the library is loaded, else why it is not


def why_not(x: Tensor) -> str | None:
    """``why_not`` of the native backend of every op."""
    if x.device.type != "cpu":
        return f"needs CPU tensors, got {x.device.type}"
    if x.dtype not in DTYPES:
        return f"needs float32, float64, bfloat16 or float16, got {x.dtype}"
    if torch._C._are_functorch_transforms_active():
        return "does not run under the transforms of torch.func"
    if forward_ad._current_level >= 0:
        return "has no derivatives in forward mode"
    return MISSING


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """Call an op of the library: below autograd where no gradient is wanted, 6 us instead of 13 for a small call."""
    if torch.compiler.is_compiling() or wants_gradient(*arguments):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def wants_gradient(*arguments: Any) -> bool:
    """Whether a call on these is to be recorded; what is no tensor does not count."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)


def register(
    name: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., Any],
    *,
    more: str = "torch",
    who: str | None = None,
) -> None:
    """Tell torch.library the shapes and the gradients of an op and of its ``_backward``.

    The second has no gradients: whoever asks is told of the backend ``more``.
    """

    def refuse(ctx: Any, *gradients: Tensor | None) -> None:
        raise RuntimeError(f"{who or name}: backend 'native' has first derivatives only; use backend={more!r} for more")

    if MISSING is None:
        torch.library.register_fake(f"longstream::{name}", fake)
        torch.library.register_fake(f"longstream::{name}_backward", fake_backward)
        torch.library.register_autograd(f"longstream::{name}", backward, setup_context=setup_context)
        torch.library.register_autograd(f"longstream::{name}_backward", refuse)


def native_kernels() -> str:
    """The instruction set that the native kernels use here ("base", "avx2", "avx512"), or why there are none."""
    return MISSING or torch.ops.longstream.isa()
