"""What a model carries from token to token, as one object."""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longstream.layers.state import STATES, allow_weights_only, cat_states

_DAMAGES = (KeyError, IndexError, ValueError, TypeError, AttributeError)  # what reading a broken file may raise


@allow_weights_only
@dataclass(frozen=True)
class State:
    """The state of a `Backbone` or a `LanguageModel`; of constant size, however many tokens went in (but Hyena's exact
    one, which is as long as the text).

    Functional: a model never changes a state it was given, so an old one can be kept and returned to.

    Attributes:
        layers:      for each layer its mixer's named tuple of tensors, batch first, float32 or wider.
        position:    (B,) int64, tokens taken in by each row; pads do not count.
        fingerprint: of what decides a state's meaning: the configuration of the layers, and by it the shapes of their
                     weights. Another model refuses the state. What only stands before or after the layers, the size of
                     a frame or of a vocabulary, decides no number of a state, and is not in it.
    """

    layers: tuple[Any, ...]
    position: Tensor
    fingerprint: str

    @property
    def batch_size(self) -> int:
        """B, the number of rows."""
        return self.position.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def layer_nbytes(self) -> list[int]:
        """Bytes of the tensors of each layer; `nbytes` also has the positions."""
        return [sum(tensor.nbytes for tensor in layer) for layer in self.layers]

    def tensors(self) -> list[Tensor]:
        """Every tensor, layer by layer, position last."""
        return [tensor for layer in self.layers for tensor in layer] + [self.position]

    def with_tensors(self, tensors: list[Tensor]) -> "State":
        """The same state with other tensors, in the order of `tensors`."""
        rest = iter(tensors)
        layers = tuple(type(layer)(*(next(rest) for _ in layer)) for layer in self.layers)
        return replace(self, layers=layers, position=next(rest))

    def clone(self) -> "State":
        """A copy that shares no memory."""
        return self.with_tensors([tensor.clone() for tensor in self.tensors()])

    def detach(self) -> "State":
        """The same values cut off from the autograd graph."""
        return self.with_tensors([tensor.detach() for tensor in self.tensors()])

    def to(self, device: torch.device | str) -> "State":
        """The state on another device."""
        return self.with_tensors([tensor.to(device) for tensor in self.tensors()])

    def select(self, indices: Tensor | list[int]) -> "State":
        """The rows ``indices``, in that order, repeats allowed.

        Raises:
            ValueError: they are not row numbers, 0 <= i < batch_size (which is looked at on a CPU).
        """
        rows = torch.as_tensor(indices, device=self.position.device)
        if rows.dim() != 1 or rows.dtype == torch.bool or (len(rows) and rows.is_floating_point()):
            raise ValueError(f"State.select: indices must be row numbers, got {indices!r}")
        rows = rows.long()
        if rows.device.type == "cpu" and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.batch_size:
            raise ValueError(f"State.select: indices must lie in [0, {self.batch_size}), got {rows.tolist()}")
        return self.with_tensors([tensor.index_select(0, rows) for tensor in self.tensors()])

    def repeat_interleave(self, n: int) -> "State":
        """Each row n times in a row."""
        return self.with_tensors([tensor.repeat_interleave(n, dim=0) for tensor in self.tensors()])

    def fork(self, n: int) -> "State":
        """n copies of a state of one row, as one batch.

        Raises:
            ValueError: there is more than one row.
        """
        if self.batch_size != 1:
            raise ValueError(f"State.fork: needs a state of one row, got {self.batch_size}; select one first")
        return self.repeat_interleave(n)

    @staticmethod
    def cat(states: Sequence["State"]) -> "State":
        """One state of the rows of all, in order; they must be of one model.

        Raises:
            ValueError: there is none, or they are of different models.
        """
        if len({(state.fingerprint, len(state.layers)) for state in states}) != 1:
            found = sorted({state.fingerprint for state in states})
            raise ValueError(f"State.cat: states must be of one model, got fingerprints {found}")
        layers = tuple(cat_states(layer) for layer in zip(*(state.layers for state in states), strict=True))
        return State(layers, torch.cat([state.position for state in states]), states[0].fingerprint)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a safetensors file: beside first, then renamed, so that no half-written file ever has the name.

        Raises:
            FileExistsError: path exists and overwrite is False.    FileNotFoundError: its directory does not.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"State.save: no directory {path.parent}")
        if path.exists() and not overwrite:
            raise FileExistsError(f"State.save: {path} exists; pass overwrite=True to replace it")
        named, about = self._as_file()
        beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            save_file(named, beside, metadata=about)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "State":
        """Read what `save` wrote, onto the CPU.

        Raises:
            FileNotFoundError: no such file.    ValueError: not a state file, cut short, or altered.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"State.load: no file {path}")
        try:
            return _read_file(Path(path).read_bytes())
        except _DAMAGES as error:
            raise ValueError(f"State.load: {path} is damaged or not the file of a longstream State: {error}") from error

    def serialize(self) -> bytes:
        """The bytes of the file that `save` writes."""
        from safetensors.torch import save

        named, about = self._as_file()
        return save(named, metadata=about)

    @staticmethod
    def deserialize(data: bytes | bytearray | memoryview) -> "State":
        """From the bytes of `serialize` or of a file, onto the CPU.

        Raises:
            TypeError: not bytes.    ValueError: not those of a state, cut short, or altered.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"State.deserialize: data must be bytes, got {type(data).__name__}")
        try:
            return _read_file(bytes(data))
        except _DAMAGES as error:
            raise ValueError(
                f"State.deserialize: data are damaged or not those of a longstream State: {error}"
            ) from error

    def _as_file(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors by name, with memory of their own on the CPU, and what a file says about them."""
        named = {"position": self.position}
        for i, layer in enumerate(self.layers):
            named |= {f"layers.{i}.{name}": tensor for name, tensor in zip(layer._fields, layer, strict=True)}
        named = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in named.items()
        }
        about = {
            "format": "longstream.State",
            "fingerprint": self.fingerprint,
            "layers": json.dumps([{"type": type(layer).__name__, "fields": layer._fields} for layer in self.layers]),
        }
        return named, {**about, "sha256": _digest(named, about)}


def _digest(named: dict[str, Tensor], about: dict[str, Any]) -> str:
    """Of names, dtypes, shapes and bytes of all tensors, and of what is said about them."""
    digest = hashlib.sha256(json.dumps({key: about[key] for key in sorted(about) if key != "sha256"}).encode())
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_file(data: bytes) -> State:
    """The state in the bytes of a safetensors file; `_DAMAGES` for whatever is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        named = load(data)  # which looks at the header's size, and at what the header says of the bytes
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    size = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    if about.get("format") != "longstream.State":
        raise ValueError("it is a safetensors file of something else")
    if "sha256" not in about:
        raise ValueError("it has no checksum, as files of longstream before 0.1 have none")
    if _digest(named, about) != about["sha256"]:
        raise ValueError("its checksum is another: it was altered")
    layers = []
    for i, layer in enumerate(json.loads(about["layers"])):
        if layer["type"] not in STATES:
            raise ValueError(f"no state of the name {layer['type']} is known; import the package that defines it")
        layers.append(STATES[layer["type"]](*(named[f"layers.{i}.{field}"] for field in layer["fields"])))
    return State(tuple(layers), named["position"], about["fingerprint"])
