"""Forget gates and their lower bounds, in forms that keep their digits where a gate saturates.

No subtraction from 1 is ever made: 1 - bound, 1 - forget and log(forget) are each formed by their own sum or product,
so that a gate within rounding of 0 or of 1 still has a right logarithm and a right complement.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops import _native
from longstream.ops._check import check_shapes, wide
from longstream.ops._dispatch import Backend, pick, register, runs_anywhere
from longstream.ops._gates_native import forget_gate as _native_gate


class LowerBound(NamedTuple):
    """A lower bound of the forget gate and, by its own sum, 1 minus it; both in [0, 1]."""

    bound: Tensor
    complement: Tensor

    def of_layer(self, layer: int) -> "LowerBound":
        """The (D,) bound of one layer from the (L, D) bounds of all."""
        return LowerBound(self.bound[layer], self.complement[layer])


def lower_bounds(gamma: Tensor, kind: str = "inclusive") -> LowerBound:
    """Lower bounds of the forget gates of all layers, rising with depth, from ``P = softmax(gamma, dim=0)``.

    HGRN (Qin et al. 2023, arXiv:2311.04823). Two cumulative sums are in use and differ once trained:
    "inclusive": ``bound_l = P_1 + ... + P_l`` (the authors' language models, flash-linear-attention);
    "exclusive": ``bound_l = P_0 + ... + P_{l-1}`` (the authors' LRA and ImageNet code). Either gives layer 0 no bound.

    Args:
        gamma: (L, D) float.    The parameter, shared by the layers; zeros or any constant give bound_l = l / L.
        kind:  "inclusive" or "exclusive".
    Returns:
        LowerBound of (L, D) tensors, float32 or wider; 1 - bound is a reversed cumulative sum. Layer 0: exactly (0, 1).
    Raises:
        ValueError: gamma is not (L, D), or an unknown kind.
    """
    check_shapes("lower_bounds", gamma=(gamma, "L D"))
    P = gamma.to(wide(gamma)).softmax(dim=0)
    zero = torch.zeros_like(P[:1])
    if kind == "inclusive":
        bound = torch.cat([zero, P[1:].cumsum(0)])
        later = torch.cat([P[1:].flip(0).cumsum(0).flip(0)[1:], zero])[: len(P) - 1]  # P_{l+1} + ... + P_{L-1}, l >= 1
        complement = torch.cat([zero + 1, P[:1] + later])
    elif kind == "exclusive":
        bound = torch.cat([zero, P.cumsum(0)[:-1]])
        complement = torch.cat([zero + 1, P.flip(0).cumsum(0).flip(0)[1:]])
    else:
        raise ValueError(f"lower_bounds: kind must be 'inclusive' or 'exclusive', got {kind!r}")
    # Rounding may carry a sum of probabilities past 1. Take the excess off the value, not off the gradient.
    return LowerBound(*(x - (x.detach() - 1).clamp(min=0) for x in (bound, complement)))


def forget_gate(
    z: Tensor, lower_bound: LowerBound | Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Forget gate ``f = bound + (1 - bound) sigmoid(z)``: returns ``log f`` and ``1 - f``, each accurate by itself.

    HGRN (Qin et al. 2023, arXiv:2311.04823). 1 - f = (1 - bound) sigmoid(-z), the key of HGRN2;
    log f = log1p(-(1 - f)) where f > 1/2, else log(f), and log(1 - bound) + logsigmoid(z) where f itself underflows.

    Args:
        z:           (..., D) float.                   Pre-activation of the gate.
        lower_bound: LowerBound of (D,), (D,) or None. None means 0; of a plain tensor 1 - bound is subtracted.
        backend:     "auto" or a name from ``available_backends("forget_gate")``. "reference" is another name of
                     "torch": there is no loop here. "native" has first derivatives only.
    Returns:
        log_forget (..., D), <= 0, natural log;  input_gate (..., D) in [0, 1]. Both float32 or wider.
    Raises:
        ValueError: the bound is not (D,).    TypeError: z is not floating point.
        RuntimeError: the named backend cannot run here; the message says why.
    """
    bound, complement = _bounds("forget_gate", z, lower_bound)
    return pick("forget_gate", _BACKENDS, backend, z)(z, bound, complement)


def gate_input(
    candidate: Tensor, z: Tensor, lower_bound: LowerBound | Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """HGRN's gates at once: ``log f`` and ``(1 - f) SiLU(candidate)``, f as in `forget_gate`; candidate is like z."""
    bound, complement = _bounds("gate_input", z, lower_bound)
    return pick("forget_gate", _BACKENDS, backend, z)(z, bound, complement, candidate)


def _bounds(op: str, z: Tensor, lower_bound: LowerBound | Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The bound and its complement, or two times None, after a look at all shapes."""
    if isinstance(lower_bound, Tensor):
        lower_bound = LowerBound(lower_bound, 1 - lower_bound)
    elif not isinstance(lower_bound, LowerBound | None):
        raise TypeError(f"{op}: lower_bound must be a LowerBound, a tensor or None, got {lower_bound!r}")
    bound, complement = lower_bound or (None, None)
    leading = [f"N{i}" for i in range(z.dim() - 1)] if isinstance(z, Tensor) else ["..."]
    check_shapes(op, z=(z, " ".join([*leading, "D"])), lower_bound=(bound, "D"), complement=(complement, "D"))
    return bound, complement


def _gate(
    z: Tensor, bound: Tensor | None, complement: Tensor | None, candidate: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The gates in plain torch, for any device."""
    z = z.to(wide(z))
    if bound is None or complement is None:
        log_forget, input_gate = F.logsigmoid(z), torch.sigmoid(-z)
    else:
        dtype = wide(z, bound, complement)
        log_forget, input_gate = _bounded(z, bound.to(dtype), complement.to(dtype))
    return log_forget, input_gate if candidate is None else input_gate * F.silu(candidate)


def _bounded(z: Tensor, bound: Tensor, complement: Tensor) -> tuple[Tensor, Tensor]:
    input_gate = complement * torch.sigmoid(-z)
    forget = bound + complement * torch.sigmoid(z)
    # A branch that is not taken must not divide by zero in the backward pass, so each gets a harmless argument there.
    is_open = input_gate < 0.5
    underflows = forget < torch.finfo(forget.dtype).tiny
    log_open = torch.log1p(-torch.where(is_open, input_gate, 0.0))
    log_closed = torch.where(is_open | underflows, 1.0, forget).log()
    log_tiny = torch.where(underflows, complement, 1.0).log() + F.logsigmoid(torch.where(underflows, z, 0.0))
    has_bound = underflows & (bound > 0)
    log_tiny = torch.where(has_bound, torch.logaddexp(log_tiny, torch.where(has_bound, bound, 1.0).log()), log_tiny)
    return torch.where(is_open, log_open, torch.where(underflows, log_tiny, log_closed)), input_gate


_BACKENDS = register(
    "forget_gate",
    {
        "native": Backend(_native_gate, _native.why_not),
        "torch": Backend(_gate, runs_anywhere),
        "reference": Backend(_gate, runs_anywhere),
    },
)
