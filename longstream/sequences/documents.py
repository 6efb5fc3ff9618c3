"""Files that are not text as documents of bytes, for the task next-token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from longstream.sequences.arrays import load_idx, load_npy, load_npz
from longstream.sequences.columns import load_parquet, load_saved_dataset
from longstream.sequences.fasta import fasta_records
from longstream.sequences.read import kind_of
from longstream.sequences.spec import ReadSpec
from longstream.sequences.tables import read_cells
from longstream.sequences.wav import load_wav, mu_law


def read_token_documents(path: str | Path, spec: ReadSpec | None = None) -> list[tuple[str, bytes]] | None:
    """The documents in a file whose bytes as they stand are not what a model is to learn: (name, bytes) of each.

    FASTA: the upper-case letters of a record, line ends left out, runs of N kept. idx, .npy and .npz of uint8: the
    bytes of a sequence. WAV: 8-bit mu-law codes, several channels interleaved. Tables (CSV, Parquet, a saved dataset):
    the text of a row, in UTF-8, from ``spec.text_column``; without it the column "text" of the latter two.

    Returns:
        None where the file is none of these, and its bytes are one document; a CSV without ``text_column`` is.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has no text column, an empty document, or arrays of something else than uint8.
    """
    path, column = Path(path), "" if spec is None else spec.text_column
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    found = kind_of(path)
    kind = "" if found is None else found.name
    if kind == "FASTA":
        records = enumerate(fasta_records(path))
        return [(f"{path}:{name or number}", symbols) for number, (name, symbols) in records]
    if kind == "WAV":
        return [(str(path), mu_law(load_wav(path)[1]))]
    if kind in (".npz", ".npy", "idx"):
        return _array_documents(path, kind)
    if kind == "Parquet":
        return _texts(load_parquet(path).to_pandas(), path, column or "text")
    if kind == "dataset":
        return _texts(load_saved_dataset(path).table.to_pandas(), path, column or "text")
    if column and kind in ("CSV", "UCR text"):
        return _texts(read_cells(path, header=True), path, column)
    return None


def _texts(frame: Any, path: Path, column: str) -> list[tuple[str, bytes]]:
    """The rows of a column of text."""
    if column not in frame.columns:
        columns = ", ".join(repr(str(name)) for name in frame.columns)
        raise ValueError(
            f"{path} has no column {column!r}: name the one with the text by text_column; there are {columns}"
        )
    documents = []
    for row, text in enumerate(frame[column].tolist()):
        if not isinstance(text, str) or not text:
            raise ValueError(f"{path}: column {column!r} must hold text, got {text!r:.60} in row {row}")
        documents.append((f"{path}:{row}", text.encode("utf-8", "surrogatepass")))
    if not documents:
        raise ValueError(f"{path} has no rows")
    return documents


def _array_documents(path: Path, kind: str) -> list[tuple[str, bytes]]:
    """A document of bytes for each sequence of an array of uint8; for all of it where it is one-dimensional."""
    lengths = None
    if kind == ".npz":
        arrays = load_npz(path)
        array, lengths = arrays["X"], arrays.get("lengths")
    else:
        array = load_npy(path) if kind == ".npy" else load_idx(path)
    if array.dtype != np.uint8:
        raise ValueError(f"{path}: next-token reads arrays of bytes, uint8, got {array.dtype} of shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{path} has no bytes, its shape is {array.shape}")
    if lengths is not None:
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.sum() != len(array):
            raise ValueError(
                f"{path}: lengths must be >= 1 and make the {len(array)} entries of X, got {lengths!r:.60}"
            )
        rows = np.split(array, np.cumsum(lengths)[:-1])
    else:
        rows = [array] if array.ndim == 1 else list(array)
    return [(f"{path}:{row}" if len(rows) > 1 else str(path), part.tobytes()) for row, part in enumerate(rows)]
