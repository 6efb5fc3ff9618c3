"""Which text a passage of bytes is from: of Python's own packages, or of a user's file of labeled texts."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, SPLITS, Examples, Split, TokenTask, generator
from longstream.tasks.files import read_texts, split_rows
from longstream.tasks.sources import check_python, library_files, read_source

logger = logging.getLogger("longstream")

# The largest packages of the standard library that every Python from 3.10 on has in three files or more.
PACKAGES = (
    "asyncio",
    "concurrent",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}  # of a package's bytes, roughly: files are not divided
BYTES = 256
PAD = BYTES  # the labels' tokens follow it


@dataclass(frozen=True, kw_only=True)
class Passages(TokenTask):
    """Classification of text byte by byte, after Long Range Arena's Text task (Tay et al. 2020, arXiv:2011.04006).

    Which of ten packages of the standard library a passage of Python source is from. It begins anywhere in the
    package's files, one behind the other; all packages are as frequent. Files are held out whole: a file is in
    one split. Passages of a split may overlap, those of two splits cannot; what files have in common, as a licence,
    comes in both: in one passage of 1,000 at 1,024 bytes, in seven at 200.

    The package is asked at the last byte, as token 257 + its number in ``PACKAGES``; 256 is the pad.

    Args:
        seq_len: bytes of a passage. Longer texts of a user's file are cut off behind them, shorter ones padded, and
                 the label is asked at the last byte that is left.
        source:  a file of labeled texts (see `longstream.tasks.files.read_texts`), of which a tenth is held out for
                 validation and a tenth for the test; a folder with such files for train, validation or valid or val,
                 and test (without a file for validation that is a tenth of train); or the unpacked folder of the IMDB
                 reviews. "": the standard library.
    """

    name: ClassVar[str] = "passages"

    seq_len: int = 1024
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.seq_len <= 1_000_000:
            raise ValueError(f"Passages: seq_len must be in 1 ... 1000000, got {self.seq_len}")
        if not self.source and self.seq_len > 4096:  # the least text of a package in a split is some 9,000 bytes
            raise ValueError(f"Passages: seq_len must be <= 4096 for the standard library, got {self.seq_len}")

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels stand for, in the order of their tokens."""
        return _classes(self.source) if self.source else PACKAGES

    @property
    def vocab_size(self) -> int:
        """Bytes, the pad and a token for each class."""
        return PAD + 1 + len(self.classes)

    @property
    def length(self) -> int:
        """Bytes of a passage."""
        return self.seq_len

    @property
    def chance(self) -> float:
        """That of one class among all."""
        return 1 / len(self.classes)

    def size(self, split: Split = "train") -> int | None:
        """The texts of a user's file; None for the standard library, whose passages begin anywhere."""
        return len(_rows(self.source, split)) if self.source else None

    def make(self, count: int, seed: int, split: Split = "train") -> Examples:
        """Passages as the class says; of a user's file different ones, in an order of the seed."""
        random = generator(self.name, seed, split)
        if count < 1:
            raise ValueError(f"passages: count must be >= 1, got {count}")
        return self._texts(count, random, split) if self.source else self._library(count, random, split)

    def _library(self, count: int, random: np.random.Generator, split: Split) -> Examples:
        texts = library_texts()[split]
        lengths = np.array([len(text) for text in texts])
        if lengths.min() < self.seq_len:
            shortest = PACKAGES[int(lengths.argmin())]
            raise ValueError(
                f"passages: seq_len must be <= {lengths.min()}, the {split} text of {shortest}, got {self.seq_len}"
            )
        label = random.integers(0, len(texts), count)
        start = random.integers(0, lengths[label] - self.seq_len + 1)
        start += (np.cumsum(lengths) - lengths)[label]
        inputs = np.concatenate(texts)[start[:, None] + np.arange(self.seq_len)].astype(np.int64)
        labels = np.full((count, self.seq_len), IGNORED, np.int64)
        labels[:, -1] = PAD + 1 + label
        return Examples(inputs, labels)

    def _texts(self, count: int, random: np.random.Generator, split: Split) -> Examples:
        rows = _rows(self.source, split)
        if count > len(rows):
            raise ValueError(f"passages: count must be <= {len(rows)}, the {split} texts of {self.source}, got {count}")
        number = {label: PAD + 1 + at for at, label in enumerate(self.classes)}
        inputs = np.full((count, self.seq_len), PAD, np.int64)
        labels = np.full((count, self.seq_len), IGNORED, np.int64)
        for at, row in enumerate(random.permutation(len(rows))[:count]):
            text, label = rows[row]
            if label not in number:
                raise ValueError(
                    f"passages: the {split} texts of {self.source} have the label {label!r}, train has not"
                )
            data = np.frombuffer(text.encode()[: self.seq_len], np.uint8)
            inputs[at, : len(data)] = data
            labels[at, len(data) - 1] = number[label]
        return Examples(inputs, labels)


@lru_cache(1)
def library_texts() -> dict[Split, list[np.ndarray]]:
    """The bytes of each package by split, files one behind the other.

    The largest file is for training; each next one goes to the split that lacks most of its share.

    Raises:
        FileNotFoundError: this Python comes without some of the packages.
    """
    files: dict[str, list[tuple[str, bytes]]] = {package: [] for package in PACKAGES}
    for module, file in library_files():
        if (package := module.partition(".")[0]) in files:
            files[package].append((module, read_source(file)))
    texts: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
    digest = hashlib.sha256()
    for package, found in files.items():
        if len(found) < len(SPLITS):
            raise FileNotFoundError(
                f"passages: this Python comes without the package {package}: install the complete standard library"
            )
        total = sum(len(data) for _, data in found)
        parts: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
        for _, data in sorted(found, key=lambda item: (-len(item[1]), item[0])):
            lacking = {split: 1 - sum(map(len, parts[split])) / (SHARES[split] * total) for split in SPLITS}
            parts[max(SPLITS, key=lambda split: lacking[split])].append(data)
        for split in SPLITS:
            text = b"\n".join(parts[split])
            texts[split].append(np.frombuffer(text, np.uint8))
            digest.update(text + b"\0")
    recorded, note = check_python("passages", digest.hexdigest())
    logger.log(logging.WARNING if recorded is False else logging.INFO, note)
    return texts


@lru_cache(6)
def _rows(source: str, split: Split) -> list[tuple[str, str]]:
    return split_rows(Path(source), split, read_texts)


@lru_cache(4)
def _classes(source: str) -> tuple[str, ...]:
    """The labels of a user's texts, in their order; those of train, so that nothing is learned from the test's."""
    return tuple(sorted({label for _, label in _rows(source, "train")}))
