"""Pieces of a sequence model that are plain functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longstream.ops._check import check_shapes
from longstream.sequences.config import SequenceConfig


def refuse_values(config: SequenceConfig, values: Tensor, missing: Tensor, mask: Tensor | None) -> None:
    """Raise for what a model was not trained to take: infinite values, and missing ones in a channel without indicator.

    Values on pads may be anything.
    """
    for what, found in (("infinite", values.isinf()), ("missing (NaN)", missing)):
        if mask is not None:
            found = found & (mask != 0)[..., None]
        if not bool(found.any()):
            continue
        places = found.flatten(0, -2).any(0).nonzero()[:, 0].tolist()
        known = [] if what == "infinite" else config.indicators
        if names := [config.channels[i] for i in places if i not in known]:
            trained = "" if what == "infinite" else "; none were missing there in training, so fill them in first"
            raise ValueError(f"SequenceModel: values must not be {what} in the channels {names}{trained}")


def pool(hidden: Tensor, mask: Tensor | None, before: Tensor | None, pooling: str) -> Tensor:
    """The sum ("mean") of the vectors of all frames from the start, or the last of them ("last"), float32 or wider.

    Args:
        hidden: (B, T, D), 0 on pads; grids (B, height, width, D).
        mask:   (B, T), or None.
        before: (B, D), what earlier pieces gave, or None.
    """
    hidden = wide(hidden)
    if pooling == "mean":
        total = hidden.flatten(1, -2).sum(1)
        return total if before is None else total + before
    if not hidden.shape[1]:
        return hidden.new_zeros(hidden.shape[0], hidden.shape[-1]) if before is None else before
    if mask is None:
        return hidden[:, -1]
    places = torch.arange(hidden.shape[1], device=hidden.device)
    place = torch.where(mask != 0, places, -1).amax(1)
    chosen = hidden[torch.arange(len(hidden), device=hidden.device), place.clamp(min=0)]
    return chosen if before is None else torch.where((place >= 0)[:, None], chosen, before)


def count_frames(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) frames of hidden (B, T, D), or pixels of (B, height, width, D); pads are not counted."""
    if mask is not None:
        return (mask != 0).sum(1)
    return torch.full(hidden.shape[:1], math.prod(hidden.shape[1:-1]), device=hidden.device)


def weighted_mean(errors: Tensor, observed: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of the errors (B, ...) that are observed, rows weighted by weights (B,); 0 where there are none."""
    share = observed.to(errors.dtype)
    if weights is not None:
        check_shapes("SequenceModel", {"B": len(errors)}, weights=(weights, "B"))
        share = share * weights.to(errors.dtype).view(-1, *[1] * (errors.dim() - 1))
    return (errors * share).sum() / share.sum().clamp(min=torch.finfo(errors.dtype).tiny)


def wide(x: Tensor) -> Tensor:
    """The same in float32 or wider."""
    return x if x.dtype == torch.float64 else x.float()
