"""Tensors in files, one at a time: nothing that is read is held, and what is written goes out as it is made.

Only torch's own files need a loader that could run code; theirs is told to take tensors and nothing else.
"""

import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_DTYPES = {  # by safetensors' names; the widest first, as they lie in a file, so that all are aligned
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Tensors(Protocol):
    """Named tensors, read or made when they are asked for."""

    def names(self) -> list[str]:
        """All of them."""
        ...

    def meta(self, name: str) -> Tensor:
        """Shape and dtype: a tensor on the meta device."""
        ...

    def get(self, name: str) -> Tensor:
        """The tensor itself, on the CPU."""
        ...


class Row(NamedTuple):
    """How one tensor is made of others; ``make`` also works on the meta device."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor]


class Made:
    """What a table of `Row`s makes of other tensors."""

    def __init__(self, tensors: Tensors, table: Mapping[str, Row]):
        self._tensors, self._table = tensors, table

    def names(self) -> list[str]:
        """See `Tensors`."""
        return list(self._table)

    def meta(self, name: str) -> Tensor:
        """See `Tensors`."""
        sources, make = self._table[name]
        return make(*map(self._tensors.meta, sources)).to("meta")

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        sources, make = self._table[name]
        return make(*map(self._tensors.get, sources))


class Rounded:
    """The same tensors in another dtype, but for those that ``keeps`` names."""

    def __init__(self, tensors: Tensors, dtype: torch.dtype | None, keeps: Callable[[str], bool]):
        self._tensors, self._dtype, self._keeps = tensors, dtype, keeps

    def names(self) -> list[str]:
        """See `Tensors`."""
        return self._tensors.names()

    def meta(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._round(name, self._tensors.meta(name))

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._round(name, self._tensors.get(name))

    def _round(self, name: str, tensor: Tensor) -> Tensor:
        if self._dtype is None or self._keeps(name) or not tensor.is_floating_point():
            return tensor
        return tensor.to(self._dtype)


class Held:
    """Tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._held = tensors

    def names(self) -> list[str]:
        """See `Tensors`."""
        return list(self._held)

    def meta(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._held[name].to("meta")

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._held[name]


class Below:
    """The tensors whose names begin with a prefix, without it."""

    def __init__(self, tensors: Tensors, prefix: str):
        self._tensors, self._prefix = tensors, prefix

    def names(self) -> list[str]:
        """See `Tensors`."""
        return [name.removeprefix(self._prefix) for name in self._tensors.names() if name.startswith(self._prefix)]

    def meta(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._tensors.meta(self._prefix + name)

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._tensors.get(self._prefix + name)


class SafetensorsFiles:
    """The tensors of one file of safetensors, or of the shards of one checkpoint.

    A file is opened for each tensor and closed again: as long as one is open, all that was read of it stays mapped.
    """

    def __init__(self, paths: Sequence[Path]):
        self._metas: dict[str, Tensor] = {}
        self._paths: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        for path in paths:
            with open_safetensors(path) as file:
                self.metadata |= file.metadata() or {}
                for name in file.keys():  # noqa: SIM118  a file is no dictionary
                    if name in self._paths:
                        raise ValueError(f"convert: {path} has {name}, which {self._paths[name].name} has too")
                    part = file.get_slice(name)
                    kind = _DTYPES.get(part.get_dtype())
                    if kind is None:
                        raise ValueError(f"convert: {path}: {name} is of {part.get_dtype()}, which is not known here")
                    self._metas[name] = torch.empty(part.get_shape(), dtype=kind, device="meta")
                    self._paths[name] = path

    def names(self) -> list[str]:
        """See `Tensors`."""
        return list(self._metas)

    def meta(self, name: str) -> Tensor:
        """See `Tensors`."""
        return self._metas[name]

    def get(self, name: str) -> Tensor:
        """See `Tensors`."""
        with open_safetensors(self._paths[name]) as file:
            return file.get_tensor(name)


def open_safetensors(path: Path) -> Any:
    """`safetensors.safe_open`, whose error says which file it is."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"convert: {path} is cut short, damaged or not of safetensors: {error}") from error


def npz_file(path: Path) -> Held:
    """The arrays of a NumPy file; object arrays, which are pickles, are refused."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            return Held({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except (zipfile.BadZipFile, ValueError, TypeError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"convert: {path} is damaged, or not a NumPy file of plain arrays: {error}") from error


def torch_files(paths: Sequence[Path]) -> Held:
    """The tensors of torch's own files, pytorch_model.bin or a checkpoint of Lightning, left on the disk until read.

    Raises:
        ValueError: a file holds anything but tensors and plain values, or is damaged. It is not unpickled then.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        loaded = _load_torch(path)
        loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
        if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
            raise ValueError(f"convert: {path} must hold a dictionary of tensors, or one under 'state_dict'")
        found |= loaded
    return Held(found)


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by other writers: they are read or refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever a damaged or a hostile file makes of the loader
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no more is said"]
        found = [line for line in lines if "nsupported" in line]  # the first line advises to unpickle it all the same
        raise ValueError(
            f"convert: {path} is damaged or holds more than tensors, and only tensors are taken from a pickle"
            f" ({type(error).__name__}: {(found or lines)[0]}). Where you trust it: torch.save"
            "({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, FILE) makes a file that is read here"
        ) from error


def write_safetensors(folder: Path, tensors: Tensors, *, shard_bytes: int, stem: str = "model") -> list[Path]:
    """Write ``stem``.safetensors, or its shards and their index, a tensor at a time.

    The format is a length of 8 bytes, a header in JSON of names, dtypes, shapes and places, and the tensors' bytes.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name in tensors.names():
        nbytes = tensors.meta(name).nbytes
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    if len(shards) == 1:
        files = [folder / f"{stem}.safetensors"]
    else:
        files = [folder / f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        write_file(file, tensors, names, {"format": "pt"})
    if len(shards) > 1:
        total = sum(tensors.meta(name).nbytes for names in shards for name in names)
        weight_map = {name: file.name for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def write_file(path: Path, tensors: Tensors, names: Iterable[str], metadata: dict[str, str]) -> None:
    """Write one file of safetensors, a tensor at a time."""
    metas = {name: tensors.meta(name) for name in names}
    order = sorted(metas, key=lambda name: (list(_NAMES).index(metas[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in order:
        start, end = end, end + metas[name].nbytes
        header[name] = {
            "dtype": _NAMES[metas[name].dtype],
            "shape": list(metas[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors.get(name)
            if tensor.shape != metas[name].shape or tensor.dtype != metas[name].dtype:
                raise ValueError(f"convert: {name} changed while it was read")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_npz(path: Path, tensors: Tensors) -> None:
    """Write a NumPy file of all tensors, which it holds in memory."""
    with path.open("wb") as file:
        np.savez(file, **{name: tensors.get(name).contiguous().numpy() for name in tensors.names()})  # type: ignore[arg-type]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits; of NaNs too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def largest_difference(one: Tensor, other: Tensor, piece: int = 1 << 20) -> float:
    """Of two tensors of one shape, in float64, a piece at a time; infinite where one of two numbers is NaN."""
    found = 0.0
    for a, b in zip(one.reshape(-1).split(piece), other.reshape(-1).split(piece), strict=True):
        if a.numel():
            found = max(found, float((a.double() - b.double()).abs().nan_to_num(nan=math.inf).max()))
    return found
