"""Labelled places of token sequences: what a model says there, and how often that is right."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longstream.tasks import IGNORED, Examples
from longstream.train.rundir import quiet_transformers

TOKENS_PER_PASS = 2**14
MOST_LOGITS = 2**24  # of one pass: 64 MiB in float32


class TokenEvaluation(NamedTuple):
    """What a model makes of some examples; sums, so that parts add up."""

    nats: float
    places: int  # labelled ones
    right: int  # of them
    examples: int
    whole: int  # examples with every labelled place right
    by_place: np.ndarray  # (T, 2) int64: how often each place was labelled, and how often right

    @property
    def loss(self) -> float:
        """Nats per labelled place."""
        return self.nats / self.places

    @property
    def accuracy(self) -> float:
        """The part of labelled places that is right."""
        return self.right / self.places

    @property
    def sequences(self) -> float:
        """The part of examples with every labelled place right."""
        return self.whole / self.examples


def labelled_logits(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, rows of the head) at the N labelled places of a batch, in reading order.

    The head reads these places alone: over a large vocabulary it is otherwise most of the work.

    Args:
        model:  a causal language model of longstream.hf or a baseline, or what wraps one to share gradients.
        ids:    (B, T) int.
        labels: (B, T) int; `IGNORED` where nothing is asked.
    """
    head = getattr(model, "module", model).get_output_embeddings()
    places = labels != IGNORED

    def gather(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][places][None],)  # (1, N, D)

    handle = head.register_forward_pre_hook(gather)
    try:
        return model(input_ids=ids, use_cache=False).logits[0]
    finally:
        handle.remove()


@torch.no_grad()
def evaluate_examples(model: Any, examples: Examples, *, rows: int = 0) -> TokenEvaluation:
    """What a model says at the labelled places: the likeliest token there is its answer.

    Args:
        model:    a causal language model of longstream.hf or a baseline.
        examples: of a `longstream.tasks.TokenTask`.
        rows:     examples in a forward pass; 0: as many as are quick and fit. It changes nothing but the time.
    Raises:
        ValueError: no place is labelled, rows < 0, or the model does not take so many tokens.
    """
    inputs, labels = examples
    asked = labels != IGNORED
    if not asked.any():
        raise ValueError(f"evaluate_examples: examples must have labelled places, got none in {len(inputs)} examples")
    if rows < 0:
        raise ValueError(f"evaluate_examples: rows must be >= 0, got {rows}")
    if not rows:
        widest = int(asked.sum(1).max()) * model.config.vocab_size  # logits of an example
        rows = max(1, min(TOKENS_PER_PASS // inputs.shape[1], MOST_LOGITS // max(widest, 1)))
    was_training = model.training
    model.eval()
    nats, right = 0.0, np.zeros(asked.shape, dtype=bool)
    with quiet_transformers():
        for start in range(0, len(inputs), rows):
            part = slice(start, start + rows)
            if not asked[part].any():
                continue
            ids, targets = (torch.from_numpy(x[part].astype(np.int64)).to(model.device) for x in (inputs, labels))
            logits = labelled_logits(model, ids, targets).float()
            wanted = targets[targets != IGNORED]
            nats += F.cross_entropy(logits, wanted, reduction="none").double().sum().item()
            right[part][asked[part]] = (logits.argmax(-1) == wanted).cpu().numpy()
    model.train(was_training)
    return TokenEvaluation(
        nats=nats,
        places=int(asked.sum()),
        right=int(right.sum()),
        examples=len(inputs),
        whole=int((right | ~asked).all(1).sum()),
        by_place=np.stack([asked.sum(0), right.sum(0)], axis=1),
    )
