"""Models for a task: a backbone with something before and after it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.models.backbone import Backbone, check_goes_on
from longstream.models.config import ModelConfig
from longstream.models.state import State
from longstream.ops._check import wide


class LanguageModel(nn.Module):
    """Embeddings, `Backbone` and a linear head over the vocabulary, tied to the embeddings or not.

    Where config.vocab_multiple makes the embeddings longer than the vocabulary, the logits are as long; `generate`
    never draws what is beyond vocab_size.

    Args:
        config: with vocab_size.
    Raises:
        ValueError: config.vocab_size is None.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("LanguageModel: config.vocab_size must be given, got None")
        self.config = config
        self.vocab_size = config.vocab_size
        self.embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.embed_dropout)
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.embeddings.apply(self.backbone.init_weights)
        self.lm_head.apply(self.backbone.init_weights)
        if config.tie_embeddings:
            self.lm_head.weight = self.embeddings.weight

    @classmethod
    def of_parts(
        cls, config: ModelConfig, embeddings: nn.Module, dropout: nn.Module, backbone: Backbone, lm_head: nn.Module
    ) -> "LanguageModel":
        """A model of modules that exist already, which it shares with whoever else has them."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model.config, model.vocab_size, model.training = config, config.vocab_size, backbone.training  # type: ignore[assignment]
        parts = {"embeddings": embeddings, "dropout": dropout, "backbone": backbone, "lm_head": lm_head}
        for name, part in parts.items():
            model.add_module(name, part)
        return model

    @property
    def causal(self) -> bool:
        """Whether it goes from token to token."""
        return self.backbone.causal

    def init_state(self, batch_size: int, **kwargs: Any) -> State:
        """The state before the first token, for a batch of ``batch_size`` rows."""
        return self.backbone.init_state(batch_size, **kwargs)

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, State]:
        """ids (B, T) int -> logits (B, T, config.padded_vocab_size) and the state; those at t are for t + 1.

        state, mask and cu_seqlens as in `Backbone.forward`; logits on pads are 0.

        Raises:
            ValueError: ids are not (B, T), or out of range; and what `Backbone.forward` raises.
        """
        check_ids("LanguageModel", ids, self.vocab_size)
        x = self.dropout(self.embeddings(ids.long()))
        y, last = self.backbone(x, state, mask=mask, cu_seqlens=cu_seqlens)
        return self.lm_head(y), last

    def step(self, ids_t: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One token a row: ids_t (B,) -> logits (B, config.padded_vocab_size) and the state after it.

        Raises:
            RuntimeError: a layer is not causal.
        """
        check_goes_on("LanguageModel.step", self)
        if not isinstance(ids_t, Tensor) or ids_t.dim() != 1:
            got = tuple(ids_t.shape) if isinstance(ids_t, Tensor) else type(ids_t).__name__
            raise ValueError(f"LanguageModel.step: ids_t must have shape (B,), got {got}")
        logits, last = self.forward(ids_t[:, None], state)
        return logits[:, 0], last


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a token, of logits[:, t] against labels[:, t + 1]; labels of -100 do not count."""
    shifted = F.pad(labels.long(), (0, 1), value=-100)[:, 1:]  # labels move, so that no logits are copied
    return F.cross_entropy(logits.flatten(0, 1).to(wide(logits)), shifted.flatten())


def check_ids(name: str, ids: Tensor, vocab_size: int, argument: str = "ids") -> None:
    """Refuse ids that are not a (B, T) integer tensor with values in [0, vocab_size)."""
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"{name}: {argument} must be an integer tensor of shape (B, T), got {got}")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return  # looking at values would stall the device or break the graph
    low, high = (int(bound) for bound in ids.long().aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name}: {argument} must lie in [0, {vocab_size}), got {low if low < 0 else high}")
