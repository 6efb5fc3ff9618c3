"""Truncated backpropagation for text: windows go through in chunks, the state carried and cut off from the graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from longstream.hf import RecurrentCache
from longstream.hf.modeling import LongstreamForCausalLM
from longstream.models import State


def why_no_chunks(model: Any) -> str | None:
    """None for a model whose state can be carried from chunk to chunk, else the reason in words."""
    if isinstance(model, LongstreamForCausalLM):
        return None
    return f"a {type(model).__name__} has no recurrent state to carry from one chunk to the next"


def backward_in_chunks(
    model: Any,
    batch: dict[str, Tensor],
    chunk: int,
    items: Any,
    forward_context: Callable[[], AbstractContextManager[Any]],
    *,
    seq_len: int,
) -> Tensor:
    """The summed loss over ``items``, its gradient added up chunk by chunk; memory is that of a chunk.

    Args:
        model:   a causal language model of `longstream.hf`.
        batch:   of `batches.Collator`: packed windows of ``seq_len`` tokens.
        chunk:   tokens of a window that go through at once.
        items:   the count that the summed loss is divided by.
    Returns:
        The loss, without a graph. Where chunk >= seq_len it and the gradient are those of the whole batch.
    """
    rows = {key: batch[key].view(-1, seq_len) for key in ("input_ids", "labels", "shift_labels")}
    begins = torch.zeros(batch["input_ids"].shape[1], dtype=torch.bool, device=batch["input_ids"].device)
    begins[batch["cu_seqlens"][:-1].long()] = True
    begins = begins.view(-1, seq_len)  # where a sequence begins: each row, and each document inside of one
    losses, carried = [], None
    for start in range(0, seq_len, chunk):
        piece = {key: value[:, start : start + chunk] for key, value in rows.items()}
        state, bounds, lasts = _segments(model, carried, begins[:, start : start + chunk])
        with forward_context():
            output = model(
                **{key: value.reshape(1, -1) for key, value in piece.items()},
                cu_seqlens=bounds,
                past_key_values=RecurrentCache(state),
                use_cache=True,
                num_items_in_batch=items,
            )
        output.loss.backward()
        losses.append(output.loss.detach())
        carried = output.past_key_values.state.detach().select(lasts)
    return torch.stack(losses).sum()


def first_chunk(batch: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
    """The first ``chunk`` tokens of a packed batch."""
    cu_seqlens = batch["cu_seqlens"]
    size = min(chunk, batch["input_ids"].shape[1])
    kept = {key: batch[key][:, :size] for key in ("input_ids", "labels", "shift_labels")}
    return {**kept, "cu_seqlens": torch.cat([cu_seqlens[cu_seqlens < size], cu_seqlens.new_tensor([size])])}


def _segments(model: Any, carried: State | None, begins: Tensor) -> tuple[State | None, Tensor, Tensor]:
    """For rows (B, T) of a chunk, cut where a sequence begins: the state each part starts from, the bounds of the parts
    and the number of each row's last one. ``carried`` is the state of the B rows so far, None at their beginning.
    """
    rows, width = begins.shape
    cut = begins.clone()
    cut[:, 0] = True
    starts = cut.flatten().nonzero()[:, 0]
    bounds = torch.cat([starts, starts.new_tensor([rows * width])]).int()
    lasts = cut.sum(1).cumsum(0) - 1
    if carried is None:
        return None, bounds, lasts
    fresh = begins.flatten()[starts]
    origins = torch.where(fresh, rows, starts // width)  # row number `rows` is a state before the first token
    if bool(fresh.any()):
        tensors = carried.tensors()
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
        before = model.model.backbone.init_state(1, device=begins.device, dtype=dtype)
        carried = State.cat([carried, before])
    return carried.select(origins), bounds, lasts
