"""Argument errors in one voice: who, which argument, expected, got."""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn


def check_shapes(
    op: str, sizes: dict[str, int] | None = None, /, **arguments: tuple[Tensor | None, str]
) -> dict[str, int]:
    """Check ``name=(tensor, "B T H K")`` in order; a letter means the same size everywhere. Returns sizes by letter.

    ``sizes`` fixes letters beforehand. A tensor that is None is skipped.
    """
    sizes = dict(sizes or {})
    first: Tensor | None = None
    for name, (tensor, pattern) in arguments.items():
        if tensor is None:
            continue
        letters = pattern.split()
        if not isinstance(tensor, Tensor):
            expected = _with_sizes(letters, sizes)
            raise TypeError(f"{op}: {name} must be a tensor of shape ({expected}), got {type(tensor).__name__}")
        before = dict(sizes)
        shape = tuple(tensor.shape)
        agrees = len(shape) == len(letters) and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True)
        )
        if not agrees:
            raise ValueError(f"{op}: {name} must have shape ({_with_sizes(letters, before)}), got {shape}")
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, got {tensor.dtype}")
        if first is None:
            first = tensor
        elif tensor.device != first.device:
            raise ValueError(f"{op}: {name} must be on {first.device} like the other arguments, got {tensor.device}")
    return sizes


def _with_sizes(letters: list[str], sizes: dict[str, int]) -> str:
    """``"B=2, T"``: the letters, with the sizes that are known."""
    return ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters)


def check_cu_seqlens(op: str, cu_seqlens: Tensor | Sequence[int] | None, batch: int, tokens: int) -> list[int] | None:
    """Return the boundaries of the packed sequences as a list of ints, or None when nothing is packed."""
    if cu_seqlens is None:
        return None
    expected = f"{op}: cu_seqlens must be a 1-D integer tensor or a sequence of integers"
    if isinstance(cu_seqlens, Tensor):
        if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.dtype == torch.bool:
            raise ValueError(f"{expected}, got {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}")
        bounds = cu_seqlens.tolist()
    else:
        try:
            bounds = [operator.index(bound) for bound in cu_seqlens]
        except TypeError:
            raise ValueError(f"{expected}, got {cu_seqlens!r}") from None
    if batch != 1:
        raise ValueError(f"{op}: cu_seqlens needs one packed row, batch size 1, got batch size {batch}")
    ordered = all(left <= right for left, right in pairwise(bounds))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != tokens or not ordered:
        raise ValueError(f"{op}: cu_seqlens must rise from 0 to T={tokens}, got {_shorten(bounds)}")
    return bounds


def weight_of(projection: nn.Module) -> Tensor:
    """A tensor on the device of a projection, in the dtype that it computes in: its weight, where it has one.

    What wraps a projection (an adapter, a quantized layer) may have none, or a method of that name.
    """
    weight = getattr(projection, "weight", None)
    if isinstance(weight, Tensor):
        return weight
    tensors = [*projection.parameters(), *projection.buffers()]
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def check_like_weight(who: str, name: str, x: Tensor, projection: nn.Module) -> None:
    """Refuse an input on another device than a layer's weights, or, outside autocast, of another dtype."""
    weight = weight_of(projection)
    if x.device != weight.device:
        raise ValueError(f"{who}: {name} must be on {weight.device} like the weights, got {x.device}")
    if x.dtype != weight.dtype and weight.is_floating_point() and not _autocasts(x.device):
        raise TypeError(f"{who}: {name} must be {weight.dtype} like the weights, got {x.dtype}")


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def prepare_state(op: str, state: Tensor | None, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The initial state of a call on ``like``: as given, after a look at its device, or zeros."""
    if state is None:
        return like.new_zeros(shape, dtype=dtype)
    if state.device != like.device:
        raise ValueError(f"{op}: initial_state must be on {like.device} like the inputs, got {state.device}")
    return state


def _shorten(values: list[int]) -> str:
    return str(values) if len(values) <= 12 else f"{values[:5]} ... {values[-5:]} ({len(values)} values)"


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, where it is on: states and sums stay wide. (Entering it costs more than a small step.)"""
    return torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext()


def wide(*tensors: Tensor | None) -> torch.dtype:
    """The accumulation dtype of a call: float64 if any argument is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
