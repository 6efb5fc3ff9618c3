"""The gate of the SwiGLU channel mixer. Private: layers have it by `SwiGLU`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops import _native
from longstream.ops._check import wide
from longstream.ops._dispatch import Backend, pick, runs_anywhere


def swiglu(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """``y = SiLU(gate) * up`` (Shazeer 2020, arXiv:2002.05202), element by element.

    Args:
        gate, up: of one shape, float.
        backend:  "auto", "native", "torch", or "reference", which is "torch".
    Returns:
        y, of their shape and dtype.
    Notes: "native" computes in float32 or wider and has first derivatives only.
    """
    return pick("swiglu", _BACKENDS, backend, gate)(gate, up)


def _plain(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _native_run(gate: Tensor, up: Tensor) -> Tensor:
    dtype = wide(gate, up)
    gate_, up_ = (t.to(dtype).contiguous() for t in (gate, up))
    return _native.call(torch.ops.longstream.swiglu.default, gate_, up_).to(torch.promote_types(gate.dtype, up.dtype))


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.longstream.swiglu_backward(dy.contiguous(), *ctx.saved_tensors)


def _fake(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty_like(gate)


def _fake_backward(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(gate), torch.empty_like(gate)


_native.register("swiglu", _fake, _fake_backward, _setup_context, _backward)

_BACKENDS = {
    "native": Backend(_native_run, _native.why_not),
    "torch": Backend(_plain, runs_anywhere),
    "reference": Backend(_plain, runs_anywhere),
}
