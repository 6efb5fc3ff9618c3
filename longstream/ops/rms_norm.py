"""Root-mean-square normalization, and with it the output gate of HGRN. Private: layers have it by `RMSNorm`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops import _native
from longstream.ops._check import wide
from longstream.ops._dispatch import Backend, pick, runs_anywhere


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, gate: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """``y = weight * x / sqrt(mean(x^2) + eps)``, times ``SiLU(gate)`` if there is a gate.

    Zhang & Sennrich 2019, arXiv:1910.07467.

    Args:
        x:       (..., D) float.
        weight:  (D,) or None.  None means ones.
        eps:     added to the mean square.
        gate:    (..., D) or None.
        backend: "auto", "native", "torch", or "reference", which is "torch".
    Returns:
        y (..., D), dtype of x.
    Notes: computes in float32 (float64 if x is). "native" has first derivatives only.
    """
    return pick("rms_norm", _BACKENDS, backend, x)(x, weight, eps, gate)


def _plain(x: Tensor, weight: Tensor | None, eps: float, gate: Tensor | None) -> Tensor:
    dtype = wide(x)
    y = F.rms_norm(x.to(dtype), (x.shape[-1],), None if weight is None else weight.to(dtype), eps).to(x.dtype)
    return y if gate is None else y * F.silu(gate.to(y.dtype))


def _native_run(x: Tensor, weight: Tensor | None, eps: float, gate: Tensor | None) -> Tensor:
    dtype = wide(x)
    x_, weight, gate = (None if t is None else t.to(dtype).contiguous() for t in (x, weight, gate))
    return _native.call(torch.ops.longstream.rms_norm.default, x_, weight, gate, eps).to(x.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors
    dx, d_weight, d_gate = torch.ops.longstream.rms_norm_backward(dy.contiguous(), x, weight, gate, ctx.eps)
    return dx, None if weight is None else d_weight, None if gate is None else d_gate, None


def _fake(x: Tensor, weight: Any, gate: Any, eps: float) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(dy: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(x.new_empty(0) if t is None else torch.empty_like(t) for t in (weight, gate))


_native.register("rms_norm", _fake, _fake_backward, _setup_context, _backward)

_BACKENDS = {
    "native": Backend(_native_run, _native.why_not),
    "torch": Backend(_plain, runs_anywhere),
    "reference": Backend(_plain, runs_anywhere),
}
