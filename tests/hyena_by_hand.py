"""Hyena layers for the tests, and their equations as sums over all pairs of tokens."""

from typing import Any

import torch

from longstream.layers import Hyena
from longstream.layers.modal import ModalFilter

D = 12
SMALL: dict[str, Any] = {"max_seq_len": 300, "filter_width": 8, "positional_width": 5}


def make(hidden_size: int = D, dtype: torch.dtype = torch.float64, **choices: Any) -> Hyena:
    return Hyena(hidden_size, **{**SMALL, **choices}).to(dtype).eval()


def random_modal(stages: int, channels: int, modes: int = 4, dtype: torch.dtype = torch.float64) -> ModalFilter:
    radius, angle = 0.7 + 0.3 * torch.rand(stages, channels, modes), 3 * torch.rand(stages, channels, modes)
    poles = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    tensors = poles, torch.randn(stages, channels, modes, 2), torch.randn(stages, channels)
    return ModalFilter(*(t.to(dtype) for t in tensors))


def by_hand(layer: Hyena, x: torch.Tensor, taps: torch.Tensor | None = None) -> torch.Tensor:
    """The equations of the layer for x (B, T, D), every convolution a sum over all pairs of tokens."""
    B, T, D = x.shape
    N, H, W = layer.order, layer.num_heads, layer.short_conv_size
    p = x @ layer.in_proj.weight.T + layer.in_proj.bias
    p = torch.cat([p.new_zeros(B, W - 1, p.shape[2]), p], 1)
    assert layer.short_conv.bias is not None
    assert layer.filter.skip is not None
    c = sum((p[:, j : j + T] * layer.short_conv.weight[:, j] for j in range(W)), start=layer.short_conv.bias)
    parts = c.reshape(B, T, H, N + 1, D // H)
    gates, v = [parts[:, :, :, i] for i in range(N)], parts[:, :, :, N]  # (B, T, H, D / H)
    h = layer.filter(T) if taps is None else taps
    skip = layer.filter.by_stage(layer.filter.skip)
    lag = torch.arange(T)[:, None] - torch.arange(T)  # (t, s)
    for i in range(N - 1):
        g = v * gates[N - 1 - i]
        v = torch.einsum("cts,bshc->bthc", h[i][:, lag.clamp(min=0)] * (lag >= 0), g) + skip[i] * g
        if layer.filter_reverse is not None:
            after = layer.filter_reverse(T)[i][:, (-lag).clamp(min=0)] * (lag <= 0)
            v = v + torch.einsum("cts,bshc->bthc", after, g)
    y = (v * gates[0]).reshape(B, T, D)
    y = y if layer.activation is None else layer.activation(y)
    return y @ layer.out_proj.weight.T + layer.out_proj.bias
