"""What a reader is told about the files, and what the readers share."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from longstream.sequences.data import Sequences, as_labels

Task = Literal["", "next-token", "classify", "regress", "forecast", "tokens"]


@dataclass(frozen=True, kw_only=True)
class ReadSpec:
    """How files become sequences. What a kind of file has no use for is refused, not ignored.

    Args:
        rows:            of a table: "frames", a row is a frame; "sequences", a row is a sequence (UCR's layout);
                         "auto": frames in .csv and .parquet, sequences in .txt, .tsv and where cells hold lists.
        sequence_column: of frames: rows with the same entry are one sequence; "": each file is one.
        label_column:    the class. "": a column "label" where cells hold lists, the first one where rows are
                         sequences, none where they are frames.
        target_columns:  the numbers to predict of a sequence.
        group_column:    the subject, recording ... of a sequence.
        channels:        the columns or channels to use, in this order; (): all of them, in a table of frames all
                         columns that nothing else names.
        labels_file:     where labels are when not in the file: for WAV and FASTA a CSV, the names in its first
                         column; for .npy, .npz and idx a row or entry a sequence, in order.
        label_from:      for WAV and FASTA: "folder", the label is the name of the file's folder; "file", its own.
        as_grid:         images stay (height, width, channels), for the 2-D mixers; else pixels in reading order.
        layout:          of arrays and lists: "time-channels", (n, T, C), or "channels-time", (n, C, T).
        text_column:     of tables, for next-token: the column with the text.
    """

    rows: Literal["auto", "frames", "sequences"] = "auto"
    sequence_column: str = ""
    label_column: str = ""
    target_columns: tuple[str, ...] = ()
    group_column: str = ""
    channels: tuple[str, ...] = ()
    labels_file: str = ""
    label_from: Literal["", "folder", "file"] = ""
    as_grid: bool = False
    layout: Literal["time-channels", "channels-time"] = "time-channels"
    text_column: str = ""

    def __post_init__(self) -> None:
        hints = get_type_hints(ReadSpec)
        for name in ("rows", "label_from", "layout"):
            if getattr(self, name) not in get_args(hints[name]):
                choices = ", ".join(repr(choice) for choice in get_args(hints[name]))
                raise ValueError(f"ReadSpec.{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("target_columns", "channels"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"ReadSpec.{name} must be a list of names, got the string {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        if self.labels_file and self.label_from:
            raise ValueError("ReadSpec: labels come from labels_file or from label_from, got both")

    def refuse_unused(self, kind: str, used: set[str]) -> None:
        """Raise if something was asked for that this kind of file has no use for."""
        default = ReadSpec()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in used | {"text_column"} and value != getattr(default, field.name):
                raise ValueError(f"ReadSpec.{field.name} says nothing of {kind} files, got {value!r}")


@contextmanager
def extra(purpose: str) -> Iterator[None]:
    """Around the import of an optional package: says how to install it."""
    try:
        yield
    except ImportError as error:
        message = f"{purpose} needs a package that is not installed ({error}): pip install 'longstream[data]'"
        raise ModuleNotFoundError(message, name=error.name) from None


def outcomes(y: Any, where: str, n: int, task: Task = "", names: Sequence[str] | None = None) -> dict[str, Any]:
    """What an array of outcomes says of ``n`` sequences, as fields of ``Sequences``: labels, targets or both.

    The task decides. Without one, numbers are targets, and whole numbers and words are labels.

    Args:
        y:     (n,) of any kind, or (n, K) numbers.
        where: the file and array, for messages.
        names: of the K targets.
    """
    y = np.asarray(y)
    if y.dtype == object:
        raise ValueError(f"{where} must be numbers or words, got Python objects; save it with a dtype of its own")
    if y.ndim == 0 or y.ndim > 2 or len(y) != n:
        raise ValueError(f"{where}: there must be one outcome a sequence, {n}, got an array of shape {y.shape}")
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    found: dict[str, Any] = {}
    numbers = y.dtype.kind in "iufb"
    if task == "forecast":
        return found
    if task == "regress" and not numbers:
        raise ValueError(f"{where} must be numbers for the task regress, got {y.dtype}")
    if task == "classify" and y.ndim == 2:
        raise ValueError(f"{where} must have one label a sequence for the task classify, got shape {y.shape}")
    whole = not numbers or (np.isfinite(y) & (y == np.round(y))).all() if y.ndim == 1 else False
    if task == "classify" or (task != "regress" and whole):
        found["labels"] = as_labels(y, f"labels in {where}")
    if numbers and task != "classify":
        found["targets"] = y.astype(np.float32)
        found["target_names"] = tuple(names or ())
    return found


def choose_channels(data: Sequences, chosen: tuple[str, ...]) -> Sequences:
    """Only these channels, in this order; () is all of them."""
    if not chosen:
        return data
    for name in chosen:
        if name not in data.channels:
            raise ValueError(f"ReadSpec.channels must be of {list(data.channels)}, got {name!r}")
    order = [data.channels.index(name) for name in chosen]
    return replace(data, values=[value[..., order] for value in data.values], channels=chosen)


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if its name ends in .gz, .bz2 or .xz.

    Raises:
        FileNotFoundError: there is none.    ValueError: it is empty, a folder, or damaged.
    """
    check_file(path)
    try:
        with _open(path) as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be read, it is damaged or cut short: {error}") from None


def head_of(path: Path, size: int = 4) -> bytes:
    """The first bytes of a file, unpacked as by ``read_bytes``; fewer where it is damaged or short."""
    try:
        with _open(path) as stream:
            return stream.read(size)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return b""


def _open(path: Path) -> Any:
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(path.suffix.lower(), open)(path, "rb")


def check_file(path: Path) -> None:
    """Raise unless this is a file with something in it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give its files")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")


def one_line(error: BaseException) -> str:
    """What a library says is wrong, without line breaks; the kind of error where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def bare_name(path: Path) -> str:
    """The file's name in lower case, without a suffix of packing: "genome.fa" of "Genome.fa.gz"."""
    name = path.name.lower()
    for packed in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(packed)
    return name
