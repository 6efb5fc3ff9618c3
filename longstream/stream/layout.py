"""How a model's `State` stands in the rows of the native step, bit for bit, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from longstream.models.state import State


class LayerLayout(Protocol):
    """How the state of one layer, a named tuple of tensors, stands in a row of S floats and its tape."""

    path: str  # of the layer in the model
    kind: type[Any]  # of its state

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """From the layer's state of n rows to rows (n, S) and tape (n, tape size), both zeros before.

        position: (n,), tokens that each row has taken in.

        Raises:
            ValueError: a tensor has another shape, or says something else of the position.
        """
        ...

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """Back: tensors with memory of their own."""
        ...


class Fields:
    """The layout of a state whose tensors stand in the row as they are.

    Args:
        path:   of the layer.
        kind:   a NamedTuple of tensors.
        fields: offset and shape, without the batch, of each; the offset of an empty one does not matter.
    """

    def __init__(self, path: str, kind: type[Any], *fields: tuple[int, tuple[int, ...]]):
        self.path, self.kind, self.fields = path, kind, fields

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """See `LayerLayout`."""
        for name, tensor, (offset, shape) in zip(layer._fields, layer, self.fields, strict=True):
            check_shape(self.path, name, tensor, (len(rows), *shape))
            put(tensor, rows, offset)

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """See `LayerLayout`."""
        return self.kind(*(take(rows, offset, shape) for offset, shape in self.fields))


class Ring:
    """The layout of attention's keys and values: that of position t at t mod (window_size - 1).

    Args:
        path:   of the layer.
        kind:   `AttentionState`.
        offset: of the keys; the values follow.
        shape:  (window_size - 1, num_kv_heads, head_dim) of each.
    """

    def __init__(self, path: str, kind: type[Any], offset: int, shape: tuple[int, int, int]):
        self.path, self.kind, self.offset, self.shape = path, kind, offset, shape

    def write(self, layer: Any, rows: Tensor, tape: Tensor, position: Tensor) -> None:
        """See `LayerLayout`."""
        past, size = self.shape[0], self._size
        for name, tensor in (("k", layer.k), ("v", layer.v)):
            check_shape(self.path, name, tensor, (len(rows), *self.shape))
        check_shape(self.path, "length", layer.length, (len(rows),))
        if not torch.equal(layer.length, position.clamp(max=past)):
            wanted = position.clamp(max=past).tolist()
            raise ValueError(
                f"State: layer {self.path}: length must be {wanted}, the positions up to window_size - 1 = {past}, got"
                f" {layer.length.tolist()}"
            )
        if not past:
            return
        # Slot s of the ring holds what stands (s - position) mod past after the oldest.
        places = (torch.arange(past) - position[:, None]) % past
        for i, tensor in enumerate((layer.k, layer.v)):
            put(tensor.take_along_dim(places[..., None, None], 1), rows, self.offset + i * size)

    def read(self, rows: Tensor, tape: Tensor, position: Tensor) -> Any:
        """See `LayerLayout`."""
        past, size = self.shape[0], self._size
        k, v = (take(rows, self.offset + i * size, self.shape) for i in range(2))
        if past:
            places = (torch.arange(past) + position[:, None]) % past
            k, v = (tensor.take_along_dim(places[..., None, None], 1) for tensor in (k, v))
        return self.kind(k, v, position.clamp(max=past))

    @property
    def _size(self) -> int:
        past, heads, width = self.shape
        return past * heads * width


def to_rows(
    state: State, layers: Sequence[LayerLayout], fingerprint: str, state_size: int, tape_size: int
) -> tuple[Tensor, Tensor]:
    """The rows (B, state_size) and tapes (B, tape_size) of a state.

    Raises:
        TypeError: not a State, or a layer's state of another kind.
        ValueError: a state of another model, device, dtype or shape, or with NaN or infinity in a tensor.
    """
    if not isinstance(state, State):
        raise TypeError(f"State: state must be a State, got {type(state).__name__}")
    if state.fingerprint != fingerprint:
        raise ValueError(
            f"State: the state belongs to another model: expected fingerprint {fingerprint}, got {state.fingerprint}"
        )
    if len(state.layers) != len(layers):
        raise ValueError(f"State: state must have {len(layers)} layers, got {len(state.layers)}")
    position = state.position
    if position.dim() != 1 or position.dtype != torch.int64 or position.device.type != "cpu" or (position < 0).any():
        raise ValueError(
            f"State: position must be int64 numbers >= 0 of shape (B,) on the CPU, got {position.dtype}"
            f" {tuple(position.shape)} on {position.device}"
        )
    rows, tape = torch.zeros(len(position), state_size), torch.zeros(len(position), tape_size)
    for layer, layout in zip(state.layers, layers, strict=True):
        if not isinstance(layer, layout.kind):
            raise TypeError(
                f"State: layer {layout.path}: must be of {layout.kind.__name__}, got {type(layer).__name__}"
            )
        for name, tensor in zip(layer._fields, layer, strict=True):
            _check_numbers(layout.path, name, tensor)
        layout.write(layer, rows, tape, position)
    return rows, tape


def from_rows(rows: Tensor, tape: Tensor, position: Tensor, layers: Sequence[LayerLayout], fingerprint: str) -> State:
    """The state of rows (B, S), tapes (B, tape size) and positions (B,), in memory of its own."""
    return State(tuple(layout.read(rows, tape, position) for layout in layers), position.clone(), fingerprint)


def put(tensor: Tensor, rows: Tensor, offset: int) -> None:
    """Write a tensor (n, ...) into rows (n, S) from ``offset`` on."""
    flat = tensor.detach().flatten(1)
    rows[:, offset : offset + flat.shape[1]].copy_(flat)


def take(rows: Tensor, offset: int, shape: Sequence[int]) -> Tensor:
    """The tensor (n, *shape) that stands in rows (n, S) from ``offset`` on, in memory of its own."""
    size = torch.Size(shape).numel()
    return rows[:, offset : offset + size].clone(memory_format=torch.contiguous_format).view(len(rows), *shape)


def check_shape(path: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor of a layer's state that has another shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"State: layer {path}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _check_numbers(path: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
        got = f"one on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"State: layer {path}: {name} must be a tensor on the CPU, got {got}; see State.to")
    if tensor.is_floating_point() and tensor.dtype != torch.float32:
        raise ValueError(f"State: layer {path}: {name} must be float32, got {tensor.dtype}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"State: layer {path}: {name} must be finite, got NaN or infinity")
