"""transformers' Vision Transformer as a backbone of frames: patches of an image in reading order, seen all at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from longstream.baselines.configs import HEAD, near
from longstream.layers._padding import run_unpadded
from longstream.ops._check import check_cu_seqlens, check_shapes


class ViTBackbone(nn.Module):
    """The blocks of ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) with learned positions: (B, T, D) -> (B, T, D).

    What makes patches into vectors is in front of it and the head behind, as with all backbones; there is no class
    token: the vectors are averaged, or whatever the model around it does. It looks both ways and has no state.

    Args:
        hidden_size:       D.
        num_layers:        blocks.
        seq_len:           most patches of an image, each with a position of its own.
        intermediate_size: of the MLP; None is 4 D.
        dropout:           on what attention and MLP add.
        initializer_range: standard deviation of linear weights and positions.
    """

    causal = False

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        *,
        seq_len: int,
        intermediate_size: int | None = None,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
    ):
        super().__init__()
        from transformers import ViTConfig
        from transformers.models.vit.modeling_vit import ViTLayer

        config = ViTConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // near(hidden_size, HEAD // 2),
            intermediate_size=intermediate_size or 4 * hidden_size,
            hidden_dropout_prob=dropout,
            initializer_range=initializer_range,
        )
        config._attn_implementation = "sdpa"
        self.hidden_size, self.seq_len = hidden_size, seq_len
        self.positions = nn.Parameter(torch.empty(seq_len, hidden_size))
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        nn.init.normal_(self.positions, std=initializer_range)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def init_state(self, batch_size: int, **kwargs: Any) -> NoReturn:
        """Refused: there is no state."""
        raise RuntimeError(self._no_state("init_state"))

    def forward(
        self,
        x: Tensor,
        state: None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, None]:
        """x (B, T, D) -> normalized y (B, T, D), and no state.

        Args:
            x:          (B, T, D), T <= seq_len.
            state:      None.
            mask:       (B, T), 1 for patches and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens: (N + 1,) boundaries of N images packed in one row (B = 1). Not with mask.
        Raises:
            ValueError: shapes disagree, an image has more patches than seq_len, or a state is given.
        """
        check_shapes("ViTBackbone", {"D": self.hidden_size}, x=(x, "B T D"))
        if state is not None:
            raise ValueError(self._no_state("forward from a state"))
        if mask is not None:
            return run_unpadded("ViTBackbone", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens("ViTBackbone", cu_seqlens, *x.shape[:2])
        if bounds is None:
            return self._run(x), None
        lengths = [b - a for a, b in pairwise(bounds)]
        if lengths and len(set(lengths)) == 1:
            return self._run(x.reshape(len(lengths), lengths[0], -1)).reshape(x.shape), None
        return torch.cat([self._run(image) for image in x.split(lengths, dim=1)], dim=1), None

    def step(self, x_t: Tensor, state: Any = None) -> NoReturn:
        """Refused: there is no state."""
        raise RuntimeError(self._no_state("step"))

    def _run(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.seq_len:
            raise ValueError(f"ViTBackbone: x must have at most seq_len={self.seq_len} patches, got {x.shape[1]}")
        if not x.numel():
            return x
        hidden = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)

    def _no_state(self, what: str) -> str:
        return f"ViTBackbone: {what} needs a state, which it does not have: it looks both ways, at whole images"
