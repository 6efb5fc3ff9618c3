"""transformers' Llama, Mamba and Mamba-2 as backbones of frames."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from longstream.baselines.configs import new_model, transformers_config
from longstream.layers._padding import run_unpadded
from longstream.ops._check import check_cu_seqlens, check_shapes


class TransformersBackbone(nn.Module):
    """A causal model of transformers on feature sequences, without its embeddings: (B, T, D) -> (B, T, D).

    It takes whole sequences: transformers' caches are no `State`, so there is neither a state nor a step. Pads and
    packed sequences are exact: each sequence is a row of its own, padded on the right, where a causal model does not
    look.

    Args:
        name:        "llama", "mamba" or "mamba2".
        hidden_size: D.
        num_layers:  blocks.
        options:     further fields of transformers' configuration.
    """

    causal = True

    def __init__(self, name: str, hidden_size: int, num_layers: int, **options: Any):
        super().__init__()
        from transformers import AutoModel

        self.name, self.hidden_size = name, hidden_size
        config = transformers_config(name, vocab_size=1, hidden_size=hidden_size, num_layers=num_layers, **options)
        self.model = new_model(AutoModel, config)
        self.model.set_input_embeddings(nn.Identity())  # frames are no ids

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
            x:          (B, T, D), any T >= 0.
            state:      None.
            mask:       (B, T), 1 for frames and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens: (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
        """
        who = f"TransformersBackbone({self.name!r})"
        check_shapes(who, {"D": self.hidden_size}, x=(x, "B T D"))
        if state is not None:
            raise ValueError(self._no_state("forward from a state"))
        if mask is not None:
            return run_unpadded(who, self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens(who, cu_seqlens, *x.shape[:2])
        if not x.shape[0] * x.shape[1]:
            return x, None
        if bounds is None:
            return self._run(x), None
        lengths = [b - a for a, b in pairwise(bounds)]
        if len(set(lengths)) == 1:
            return self._run(x.reshape(len(lengths), lengths[0], -1)).reshape(x.shape), None
        y = self._run(pad_sequence([part for part in x[0].split(lengths) if len(part)], batch_first=True))
        return torch.cat([row[:size] for row, size in zip(y, filter(None, lengths), strict=True)])[None], None

    def step(self, x_t: Tensor, state: Any = None) -> NoReturn:
        """Refused: there is no state."""
        raise RuntimeError(self._no_state("step"))

    def _run(self, rows: Tensor) -> Tensor:
        return self.model(inputs_embeds=rows, use_cache=False).last_hidden_state

    def _no_state(self, what: str) -> str:
        return (
            f"TransformersBackbone({self.name!r}): {what} needs a state, which this baseline does not have: give it "
            "whole sequences, or take gru, lstm or a model of longstream, which go from frame to frame"
        )
