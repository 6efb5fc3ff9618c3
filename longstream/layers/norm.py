"""Normalization over the last dimension."""

from torch import Tensor, nn

from longstream.ops.rms_norm import rms_norm

NORMS = ("rms", "layer", "rms_no_weight")


class RMSNorm(nn.RMSNorm):
    """``y = weight * x / sqrt(mean(x^2) + eps)`` over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    Args:
        hidden_size: D, the size of the last dimension.
        eps:         added to the mean square.
        weight:      whether there is a learned (D,) weight; False is the authors' SimpleRMSNorm.
        backend:     "auto"; "native", which has first derivatives only; or "torch", also called "reference".
    Notes: computes in float32 (float64 if x is); y has the dtype of x.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6, *, weight: bool = True, backend: str = "auto"):
        super().__init__(hidden_size, eps=eps, elementwise_affine=weight)
        self.backend = backend

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., D), times ``SiLU(gate)`` if there is a gate, which is like x."""
        if x.shape[-1:] != self.normalized_shape:
            raise ValueError(f"RMSNorm: x must have shape (..., D={self.normalized_shape[0]}), got {tuple(x.shape)}")
        return rms_norm(x, self.weight, self.eps or 0.0, gate, backend=self.backend)


def make_norm(kind: str, hidden_size: int, eps: float, backend: str = "auto") -> nn.Module:
    """A norm by name: "rms" (`RMSNorm`), "layer" (`torch.nn.LayerNorm`, which has no backends) or "rms_no_weight".

    Raises:
        ValueError: another name.
    """
    if kind not in NORMS:
        raise ValueError(f"make_norm: kind must be one of {NORMS}, got {kind!r}")
    if kind == "layer":
        return nn.LayerNorm(hidden_size, eps=eps)
    return RMSNorm(hidden_size, eps, weight=kind == "rms", backend=backend)
