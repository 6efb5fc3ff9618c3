"""The channel mixers of a block."""

from torch import Tensor, nn
from torch.nn import functional as F

from longstream.ops.swiglu import swiglu

MLPS = ("swiglu", "gelu", "bilinear")


class SwiGLU(nn.Module):
    """``y = W_down (SiLU(W_gate x) * W_up x)`` (Shazeer 2020, arXiv:2002.05202), without biases.

    Args:
        hidden_size:       D, of input and output.
        intermediate_size: width between.
        backend:           "auto"; "native", which has first derivatives only; or "torch", also called "reference".
    """

    def __init__(self, hidden_size: int, intermediate_size: int, backend: str = "auto"):
        super().__init__()
        self.backend = backend
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), backend=self.backend))


class GeluMLP(nn.Module):
    """``y = W_down GELU(W_up x + b_up) + b_down``, GELU by its tanh approximation (Hendrycks & Gimpel 2016,
    arXiv:1606.08415), as in HyenaDNA.

    Args:
        hidden_size:       D, of input and output.
        intermediate_size: width between.
    """

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class BilinearMLP(nn.Module):
    """``y = W_down (W_gate x * W_up x)`` (Shazeer 2020, arXiv:2002.05202), without biases: the GLU without an
    activation of the authors' HGRN and HGRN2 language models.

    Args:
        hidden_size:       D, of input and output.
        intermediate_size: width between.
    """

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


def make_mlp(kind: str, hidden_size: int, intermediate_size: int, backend: str = "auto") -> nn.Module:
    """A channel mixer by name: "swiglu" (`SwiGLU`); "gelu" (`GeluMLP`), "bilinear" (`BilinearMLP`), without backends.

    Raises:
        ValueError: another name.
    """
    if kind not in MLPS:
        raise ValueError(f"make_mlp: kind must be one of {MLPS}, got {kind!r}")
    if kind == "gelu":
        return GeluMLP(hidden_size, intermediate_size)
    if kind == "bilinear":
        return BilinearMLP(hidden_size, intermediate_size)
    return SwiGLU(hidden_size, intermediate_size, backend)
