"""Arrays: .npy and .npz of numpy, idx, the format of MNIST, and CIFAR-10's own. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from longstream.sequences.data import Sequences
from longstream.sequences.spec import ReadSpec, Task, bare_name, check_file, head_of, one_line, outcomes, read_bytes

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CIFAR10_ROW = 1 + 3 * 32 * 32  # a label, and the red, green and blue of an image
RAGGED = (
    "it would have to be unpickled, which can run code; save sequences of different lengths one behind the other:"
    " np.savez(file, X=np.concatenate(sequences), lengths=[len(s) for s in sequences], y=y)"
)


def read_npz(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """Arrays by name: ``X``, and as there are ``lengths``, ``y``, ``groups``, ``channels`` (its names).

    X is (n, T), (n, T, C), (n, height, width, C), or with lengths (n,) one sequence behind the other, (sum T,) or
    (sum T, C). y is (n,), labels or a target, or (n, K), targets.
    """
    arrays = load_npz(path)
    values = _values(arrays["X"], arrays.get("lengths"), spec, path)
    known = {}
    if "y" in arrays and not spec.labels_file:
        y = arrays["y"]
        if "lengths" not in arrays and arrays["X"].ndim == 2 and y.ndim and 0 < len(y) < len(values):
            raise ValueError(
                f"{path}: X has {len(values)} rows and y {len(y)} outcomes; where sequences lie one behind the other,"
                " an array lengths (n,) must say how many rows each has"
            )
        known = outcomes(y, f"{path}: y", len(values), task)
    if "groups" in arrays:
        known["groups"] = arrays["groups"]
    channels = tuple(map(str, np.atleast_1d(arrays.get("channels", ())).tolist()))
    return Sequences(values, channels=channels, names=_names(path, len(values)), **known)


def read_npy(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """One array X, as in ``read_npz``; it says nothing else of the sequences."""
    values = _values(load_npy(path), None, spec, path)
    return Sequences(values, names=_names(path, len(values)))


def read_idx(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """Images (n, height, width) or rows (n, T); bytes become 0 to 1. Labels are those of the file beside."""
    array = load_idx(path)
    if array.ndim < 2:
        raise ValueError(f"{path} has one number a sequence, these are labels; give the file of images")
    if array.dtype == np.uint8:
        array = (np.arange(256, dtype=np.float32) / 255)[array]
    if array.ndim == 3:
        array = array[..., None]  # (n, height, width, 1)
    values = _values(array, None, spec, path)
    beside = None if spec.labels_file else _labels_beside(path)
    known = {} if beside is None else outcomes(load_idx(beside), str(beside), len(values), task)
    return Sequences(values, names=_names(path, len(values)), **known)


def read_cifar10(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """The images of a binary file of CIFAR-10 and their labels; bytes become 0 to 1."""
    images, labels = load_cifar10(path)
    values = _values((np.arange(256, dtype=np.float32) / 255)[images], None, spec, path)
    known = {} if spec.labels_file else outcomes(labels, f"{path}: labels", len(values), task)
    return Sequences(values, names=_names(path, len(values)), **known)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz that longstream reads, ``X`` among them."""
    with _opened(path, ".npz") as file:
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array, an .npy file")
        keys = ("X", "lengths", "y", "groups", "channels")
        spelled = {key: "x" if key == "X" and "X" not in file else key for key in keys}
        if spelled["X"] not in file:
            raise ValueError(f"it has no array X but {sorted(file)}")
        return {key: _load(file, spelled[key]) for key in keys if spelled[key] in file}


def load_npy(path: Path) -> np.ndarray:
    """The array of an .npy file."""
    with _opened(path, ".npy") as array:
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive, an .npz file")
        return array


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """What numpy makes of a file, pickles refused; within, errors are said of the file."""
    check_file(path)
    try:
        with open(path, "rb") as stream:  # ours to close, whatever numpy finds
            yield np.load(stream, allow_pickle=False)
    except Exception as error:  # numpy passes on those of zipfile, zlib, ast and tokenize
        raise ValueError(f"{path} is no {kind} that longstream reads: {_reason(error)}") from None


def load_idx(path: Path) -> np.ndarray:
    """The array of an idx file, also packed."""
    data = read_bytes(path)
    if not is_idx(data):
        raise ValueError(f"{path} is no idx file: it must begin with two zero bytes, a type and a number of dimensions")
    kind, ndim = np.dtype(IDX_TYPES[data[2]]), data[3]
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", min(ndim, (len(data) - 4) // 4), 4))
    wanted = 4 + 4 * ndim + int(np.prod(shape, dtype=object)) * kind.itemsize
    if len(shape) < ndim or len(data) != wanted:
        raise ValueError(f"{path} is damaged or cut short: shape {shape} makes {wanted} bytes, got {len(data)}")
    return np.frombuffer(data, kind, offset=4 + 4 * ndim).reshape(shape)


def looks_like_idx(path: Path) -> bool:
    """Whether a file's first bytes, and its size where it is not packed, are those of an idx file."""
    head = head_of(path, 20)
    if not is_idx(head) or len(head) < 4 + 4 * head[3]:
        return False
    sizes = np.frombuffer(head, ">u4", head[3], 4).astype(object)
    wanted = 4 + 4 * head[3] + int(np.prod(sizes)) * np.dtype(IDX_TYPES[head[2]]).itemsize
    return path.name.lower() != bare_name(path) or path.stat().st_size == wanted


def load_cifar10(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) int64 of a binary file of CIFAR-10, also packed."""
    data = read_bytes(path)
    if len(data) % CIFAR10_ROW:
        raise ValueError(
            f"{path} is no binary file of CIFAR-10, or cut short: its size must be a multiple of {CIFAR10_ROW} bytes,"
            f" got {len(data)}"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, CIFAR10_ROW)
    if (labels := rows[:, 0]).max() > 9:
        at = int(labels.argmax())
        raise ValueError(
            f"{path} is no binary file of CIFAR-10: labels must be in 0 ... 9, got {labels[at]} in row {at}"
        )
    return rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)


def is_idx(head: bytes) -> bool:
    """Whether these first bytes are those of an idx file."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in IDX_TYPES and 1 <= head[3] <= 4


def _load(file: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:
        raise ValueError(f"array {key}: {error}") from None


def _reason(error: BaseException) -> str:
    """numpy's error in our words where it speaks of pickles."""
    text = one_line(error)
    if "pickle" not in text.lower():
        return text
    if "object arrays" in text.lower():
        array = text.partition(": ")[0] if text.startswith("array ") else "it"
        return f"{array} is not plain numbers or words: {RAGGED}"
    return "it does not begin as numpy's files do; if it is a pickle, it is not unpickled, which can run code"


def _values(array: np.ndarray, lengths: np.ndarray | None, spec: ReadSpec, path: Path) -> list[np.ndarray]:
    """One array per sequence, (T, C) or (height, width, C), from an array in one of the layouts of ``read_npz``."""
    if array.dtype.kind not in "iufb":
        raise ValueError(f"{path}: X must be numbers, got {array.dtype}")
    if lengths is not None:
        return _cut(array, lengths, spec, path)
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"{path}: X must have shape (n, T), (n, T, C) or (n, height, width, C), got {array.shape}")
    if len(array) == 0:
        raise ValueError(f"{path}: X has no sequences, its shape is {array.shape}")
    if spec.as_grid and array.ndim == 2:
        raise ValueError(f"{path}: as_grid needs images, (n, height, width[, C]), got shape {array.shape}")
    if array.ndim == 2 or (spec.as_grid and array.ndim == 3):
        array = array[..., None]
    elif spec.layout == "channels-time":
        array = np.moveaxis(array, 1, -1)
    return list(array if spec.as_grid else array.reshape(len(array), -1, array.shape[-1]))


def _cut(array: np.ndarray, lengths: np.ndarray, spec: ReadSpec, path: Path) -> list[np.ndarray]:
    """Sequences of these lengths: from one behind the other, or from padded ones, (n, T, C)."""
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError(f"{path}: lengths must be whole numbers (n,), got {lengths.dtype} of shape {lengths.shape}")
    if array.ndim == 3:
        array = np.moveaxis(array, 1, -1) if spec.layout == "channels-time" else array
        if len(array) != len(lengths) or lengths.max(initial=0) > array.shape[1]:
            raise ValueError(
                f"{path}: X of shape {array.shape} does not fit {len(lengths)} lengths up to {lengths.max()}"
            )
        return [value[:length] for value, length in zip(array, lengths, strict=True)]
    if spec.layout == "channels-time" and array.ndim == 2:
        array = array.T
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or lengths.sum() != len(array):
        raise ValueError(f"{path}: the lengths make {lengths.sum()} frames, X has {len(array)} (shape {array.shape})")
    return np.split(array, np.cumsum(lengths)[:-1])


def _names(path: Path, count: int) -> tuple[str, ...]:
    return tuple(f"{path}:{row}" for row in range(count))


def _labels_beside(path: Path) -> Path | None:
    """MNIST's habit: train-labels-idx1-ubyte lies beside train-images-idx3-ubyte."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1")
    if name == path.name:
        return None
    for beside in (path.with_name(name), path.with_name(name + ".gz"), path.with_name(name.removesuffix(".gz"))):
        if beside.is_file():
            return beside
    return None
