"""What transformers passes to a model's forward, read into longstream's terms."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longstream.hf.cache import RecurrentCache
from longstream.models import State


def read_packing(name: str, cu_seqlens: Any, kwargs: dict[str, Any]) -> Any:
    """The boundaries of packed sequences, in our word or in transformers'; what else is in kwargs is refused."""
    theirs = kwargs.pop("cu_seq_lens_q", None)
    cu_seqlens = theirs if cu_seqlens is None else cu_seqlens
    if cu_seqlens is not None:  # DataCollatorWithFlattening says the same in these words too
        for key in ("cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", "seq_idx"):
            kwargs.pop(key, None)
    unknown = sorted(key for key, value in kwargs.items() if value is not None)
    if "position_ids" in unknown:
        raise TypeError(f"{name}: position_ids means nothing here; for packed sequences give cu_seqlens")
    if unknown:
        raise TypeError(f"{name}: unknown arguments {unknown}")
    return cu_seqlens


def as_cache(name: str, past_key_values: RecurrentCache | State | None) -> RecurrentCache:
    """The cache that was given, or a new one around the state that was given."""
    if past_key_values is None or isinstance(past_key_values, State):
        return RecurrentCache(past_key_values)
    if not isinstance(past_key_values, RecurrentCache):
        got = type(past_key_values).__name__
        raise TypeError(f"{name}: past_key_values must be a longstream.hf.RecurrentCache, a State or None, got {got}")
    return past_key_values


def mask_of_new(name: str, attention_mask: Tensor | None, x: Tensor, past: int) -> Tensor | None:
    """The columns of the mask that belong to x (B, T, D)."""
    if attention_mask is None:
        return None
    B, T = x.shape[:2]
    if attention_mask.dim() != 2 or attention_mask.shape[0] != B or attention_mask.shape[1] not in (T, past + T):
        expected = f"({B}, {T})" + (f" or ({B}, {past + T})" if past else "")
        raise ValueError(f"{name}: attention_mask must have shape {expected}, got {tuple(attention_mask.shape)}")
    return attention_mask[:, attention_mask.shape[1] - T :]


def without_firsts(labels: Tensor, cu_seqlens: Tensor | Sequence[int] | None) -> Tensor:
    """No target across a boundary: the logits before it are of another sequence."""
    if cu_seqlens is None:
        return labels
    firsts = torch.as_tensor(cu_seqlens, device=labels.device)[1:-1].long()
    return labels.index_fill(1, firsts[firsts < labels.shape[1]], -100)


def longest(cu_seqlens: Tensor | Sequence[int]) -> int:
    """Tokens of the longest packed sequence."""
    return int(torch.as_tensor(cu_seqlens).diff().max())
