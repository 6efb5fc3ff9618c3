"""From files to batches: read documents, split off a validation part, tokenize, cut into windows, pack.

Nothing is shuffled or sampled here: ``windows`` is a map-style dataset, and the Trainer's own sampler shuffles it and
shares it out among processes.
"""

import bz2
import logging
import lzma
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longstream.train.corpus import Document, builtin_documents, verify
from longstream.train.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that cross_entropy and transformers leave out


def read_documents(sources: Sequence[str | Path]) -> list[Document]:
    """Read the documents of a corpus, in the order given.

    Args:
        sources: file paths, each file one document whatever its bytes are (a .gz is not unpacked), or the word
                 "builtin" for the built-in corpus (a file of that name: "./builtin").
    """
    if not sources:
        raise ValueError("read_documents: no sources; give file paths or 'builtin'")
    documents = []
    for source in sources:
        if source == "builtin":
            gathered = builtin_documents()
            check = verify(gathered)
            logger.log(logging.WARNING if check.verified is False else logging.INFO, "%s", check.note)
            documents += gathered
        else:
            documents.append(_read_file(Path(source)))
    return documents


def split(documents: Sequence[Document], validation_fraction: float = 0.05) -> tuple[list[Document], list[Document]]:
    """Split into (train, validation) by position: the last bytes of the corpus are the validation part.

    The document on the border is cut in two, in front of a character if it is UTF-8 text.
    """
    total = sum(len(document.data) for document in documents)
    if not 0 < validation_fraction < 1:
        raise ValueError(f"split: validation_fraction must be between 0 and 1, got {validation_fraction}")
    train, validation = [], []
    left = total - round(total * validation_fraction)  # bytes that still go to training
    for name, data in documents:
        border = min(max(left, 0), len(data))
        if 0 < border < len(data):
            border = _character_start(data, border)
        train.append(Document(name, data[:border]))
        validation.append(Document(name, data[border:]))
        left -= len(data)
    train = [document for document in train if document.data]
    validation = [document for document in validation if document.data]
    for part, name in ((train, "training"), (validation, "validation")):
        if not part:
            raise ValueError(
                f"split: {total} bytes with validation_fraction={validation_fraction} leave nothing for {name}"
            )
    return train, validation


class TokenStream(NamedTuple):
    """Documents one after another, each behind a boundary token."""

    ids: np.ndarray  # (N,) int32
    num_bytes: int  # of the documents, which is what bits per byte divide by

    def bits_per_byte(self, loss: float) -> float:
        """From nats per token, averaged over this stream, to bits per byte of its text. Boundaries cost, too."""
        return loss / math.log(2) * len(self.ids) / self.num_bytes


def token_stream(documents: Sequence[Document], tokenizer: Tokenizer) -> TokenStream:
    """Tokenize documents into one stream."""
    ids = [tokenizer.encode_document(document) for document in documents]
    return TokenStream(np.concatenate(ids), sum(len(document.data) for document in documents))


class Windows(Dataset[Tensor]):
    """Map-style dataset of (T,) int64 windows; see ``windows``."""

    def __init__(self, rows: np.ndarray):
        self.rows = rows  # (number of windows, T)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.rows[index].astype(np.int64))


def windows(stream: TokenStream, seq_len: int) -> Windows:
    """Cut a stream into windows of exactly ``seq_len`` tokens, one behind the other; a shorter rest is dropped."""
    if seq_len < 2:
        raise ValueError(f"windows: seq_len must be >= 2, since a window's first token is not predicted, got {seq_len}")
    count = len(stream.ids) // seq_len
    if count == 0:
        raise ValueError(
            f"windows: one window takes seq_len={seq_len} tokens, got {len(stream.ids)} tokens"
            f" ({stream.num_bytes} bytes of text); give more text or a smaller seq_len"
        )
    return Windows(stream.ids[: count * seq_len].reshape(count, seq_len))


@dataclass(frozen=True)
class PackedCollator:
    """Packs windows into one row in which every window and every document is a sequence of its own.

    From B windows of T tokens:
        input_ids  (1, B*T) int64
        labels     (1, B*T) int64: input_ids (the model shifts them), but ignored at each window's first token, which
                   has nothing in front of it. A boundary inside a window keeps its label: a document's end is learned.
        cu_seqlens (S+1,) int32: where the S sequences begin, and B*T. One begins at each window and each boundary.
    """

    boundary_id: int

    def __call__(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        ids = torch.stack(list(batch))  # (B, T)
        labels = ids.clone()
        labels[:, 0] = IGNORED
        begins = ids == self.boundary_id
        begins[:, 0] = True
        return {
            "input_ids": ids.view(1, -1),
            "labels": labels.view(1, -1),
            "cu_seqlens": torch.cat([begins.flatten().nonzero().flatten(), torch.tensor([ids.numel()])]).int(),
        }


def reference_compressors(data: bytes) -> dict[str, float]:
    """Bits per byte of two general compressors at their strongest, to hold a model's figure against."""
    if not data:
        raise ValueError("reference_compressors: data is empty")
    compressed = {"bz2": bz2.compress(data, 9), "xz": lzma.compress(data, preset=9)}
    return {name: 8 * len(result) / len(data) for name, result in compressed.items()}


def _read_file(path: Path) -> Document:
    if path.is_dir():  # asked first: opening one fails in another way on each platform
        raise IsADirectoryError(f"read_documents: {path} is a directory; give its files")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"read_documents: no file {path}") from None
    except OSError as error:
        raise type(error)(f"read_documents: cannot read {path}: {error.strerror}") from None
    if not data:
        raise ValueError(f"read_documents: {path} is empty")
    return Document(str(path), data)


def _character_start(data: bytes, position: int) -> int:
    """The position, moved back to the start of its character where ``data`` is UTF-8 text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return position
    while data[position] & 0xC0 == 0x80:  # 10xxxxxx continues a character
        position -= 1
    return position
