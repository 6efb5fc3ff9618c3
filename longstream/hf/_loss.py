"""The loss of a causal language model, as transformers' Trainer wants it."""

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import fixed_cross_entropy


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """transformers' ForCausalLMLoss, except that float64 logits stay float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    target = shift_labels.reshape(-1).to(logits.device)
    return fixed_cross_entropy(logits.reshape(-1, vocab_size), target, num_items_in_batch, ignore_index)  # type: ignore[arg-type]
