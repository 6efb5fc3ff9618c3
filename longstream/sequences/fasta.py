"""FASTA: records of DNA or RNA, also gzipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from longstream.sequences.data import Sequences
from longstream.sequences.spec import ReadSpec, Task, read_bytes

BASES = "ACGT"
AMBIGUOUS = b"NRYSWKMBDHVX-.*"  # IUPAC's codes of more than one base, gaps: nothing is known of them here
SYMBOLS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ*-."
UPPER = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LINE_ENDS = b"\r\n \t"


def fasta_records(path: Path) -> Iterator[tuple[str, bytes]]:
    """The records of a file: the first word of the header, and the symbols in upper case without line ends.

    Raises:
        ValueError: no FASTA, a record without symbols, or one with something else than letters, ``*``, ``-``, ``.``.
    """
    data = read_bytes(path)
    start = data.find(b">")
    if start < 0 or data[:start].strip():
        raise ValueError(f"{path} is no FASTA: it must begin with '>', got {data[:20]!r}")
    while start < len(data):
        end = data.find(b"\n>", start)
        end = len(data) if end < 0 else end + 1
        line = data.find(b"\n", start, end)
        line = end if line < 0 else line
        words = data[start + 1 : line].decode("utf-8", "replace").split()
        name = words[0] if words else ""
        symbols = data[line:end].translate(UPPER, LINE_ENDS)
        if not symbols:
            raise ValueError(f"{path}: record {name!r} has no symbols")
        if strange := symbols.translate(None, SYMBOLS):
            raise ValueError(f"{path}: record {name!r} must hold letters, '*', '-' and '.', got {strange[:1]!r}")
        yield name, symbols
        start = end


def read_fasta(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """Channels A, C, G, T, each 0 or 1 (U is T); N and the other codes of several bases are missing in all four."""
    values, names = [], []
    for number, (name, symbols) in enumerate(fasta_records(path)):
        if proteins := symbols.translate(None, b"ACGTU" + AMBIGUOUS):
            raise ValueError(
                f"{path}: record {name!r} is no DNA or RNA: {proteins[:1].decode()!r} stands for no base; other"
                " letters are read for next-token only"
            )
        values.append(one_hot(symbols))
        names.append(f"{path}:{name or number}")
    return Sequences(values, channels=tuple(BASES), names=tuple(names))


def one_hot(symbols: bytes) -> np.ndarray:
    """(T, 4) float32 of A, C, G, T; NaN in rows of anything else."""
    table = np.full((256, len(BASES)), np.nan, np.float32)
    for number, base in enumerate(b"ACGT"):
        table[base] = np.eye(len(BASES), dtype=np.float32)[number]
    table[ord("U")] = table[ord("T")]
    return table[np.frombuffer(symbols, np.uint8)]
