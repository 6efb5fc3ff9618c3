"""Padding as packing: the pads are taken out, the rest runs as packed sequences, and outputs at pads are 0."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def run_unpadded(
    name: str, run: Callable[..., tuple[Tensor, Any]], x: Tensor, state: Any, mask: Tensor, **kwargs: Any
) -> tuple[Tensor, Any]:
    """``run(x, state, cu_seqlens=..., **kwargs)`` on the tokens of x (B, T, ...) where mask (B, T) is 1.

    The result is as if the pads were not there: left, right or between, outputs and carried state alike.
    """
    if not isinstance(mask, Tensor) or mask.shape != x.shape[:2]:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{name}: mask must have shape (B={x.shape[0]}, T={x.shape[1]}), got {got}")
    if kwargs.get("cu_seqlens") is not None:
        raise ValueError(f"{name}: mask and cu_seqlens exclude each other; packed sequences have no pads")
    kept = mask != 0
    if not bool((kept == mask).all()):
        raise ValueError(f"{name}: mask must hold only 0 (pad) and 1 (token), got other values")
    if bool(kept.all()):
        return run(x, state, **kwargs)
    places = kept.reshape(-1).nonzero()[:, 0]
    bounds = [0, *kept.sum(1).cumsum(0).tolist()]
    y, state = run(x.flatten(0, 1)[places][None], state, **{**kwargs, "cu_seqlens": bounds})
    return repad(y, mask), state


def repad(y: Tensor, mask: Tensor) -> Tensor:
    """Packed y (1, N, ...) at the N places of a (B, T, ...) tensor where mask is 1, with 0 elsewhere."""
    places = (mask != 0).reshape(-1).nonzero()[:, 0]
    return y.new_zeros(mask.numel(), *y.shape[2:]).index_copy(0, places, y[0]).unflatten(0, mask.shape)
