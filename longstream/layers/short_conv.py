"""The parameters of a short convolution."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longstream.ops import short_conv


class ShortConv(nn.Module):
    """Depthwise causal convolution with learned taps; see `longstream.ops.short_conv`.

    Args:
        hidden_size: D, the channels.
        conv_size:   W >= 1, the taps.
        bias:        whether there is a learned (D,) bias.
        backend:     of the op.
    """

    def __init__(self, hidden_size: int, conv_size: int, *, bias: bool = False, backend: str = "auto"):
        super().__init__()
        if conv_size < 1:
            raise ValueError(f"ShortConv: conv_size must be >= 1, got {conv_size}")
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(hidden_size, conv_size))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +- W^-1/2, as torch.nn.Conv1d with one input channel a group."""
        limit = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -limit, limit)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -limit, limit)

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, cu_seqlens: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, D), state (B, W - 1, D) -> y (B, T, D), state."""
        return short_conv(x, self.weight, self.bias, state, cu_seqlens=cu_seqlens, backend=self.backend)
