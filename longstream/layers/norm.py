"""Normalization over the last dimension."""

from torch import Tensor, nn
from torch.nn import functional as F

from longstream.ops._check import wide

NORMS = ("rms", "layer", "rms_no_weight")


class RMSNorm(nn.RMSNorm):
    """``y = weight * x / sqrt(mean(x^2) + eps)`` over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        hidden_size: D, the size of the last dimension.
        eps:         added to the mean square.
        weight:      whether there is a learned (D,) weight; False is the authors' SimpleRMSNorm.
    Notes: computes in float32 (float64 if x is); y has the dtype of x.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6, *, weight: bool = True):
        super().__init__(hidden_size, eps=eps, elementwise_affine=weight)

    def forward(self, x: Tensor) -> Tensor:
        dtype = wide(x)
        weight = None if self.weight is None else self.weight.to(dtype)
        return F.rms_norm(x.to(dtype), self.normalized_shape, weight, self.eps).to(x.dtype)


def make_norm(kind: str, hidden_size: int, eps: float) -> nn.Module:
    """A norm by name: "rms" (`RMSNorm`), "layer" (`torch.nn.LayerNorm`) or "rms_no_weight".

    Raises:
        ValueError: another name.
    """
    if kind not in NORMS:
        raise ValueError(f"make_norm: kind must be one of {NORMS}, got {kind!r}")
    if kind == "layer":
        return nn.LayerNorm(hidden_size, eps=eps)
    return RMSNorm(hidden_size, eps, weight=kind == "rms")
