"""Exact bits per byte of whole documents: the state is carried from chunk to chunk, so every token has its context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from longstream.baselines.language import context_limit, continue_from, keep_rows
from longstream.train.corpus import Document
from longstream.train.data import IGNORED
from longstream.train.rundir import quiet_transformers
from longstream.train.tokenizer import Tokenizer

CHUNK = 512  # columns of a pass while there are rows enough to fill it
MOST_LOGITS = 2**25  # of one pass: 128 MiB in float32


class Evaluation(NamedTuple):
    """What a model makes of some documents; sums, so that parts add up."""

    nats: float
    tokens: int  # predicted ones: every token of a document and the boundary that closes it
    bytes: int  # of the documents; boundaries stand for none

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes if self.bytes else math.inf


@torch.no_grad()
def evaluate_documents(
    model: Any, tokenizer: Tokenizer, documents: Sequence[Document], *, tokens_per_pass: int = 8192
) -> Evaluation:
    """Predict every byte of every document from all that stand before it in that document.

    A document is started by the boundary token, and the boundary that closes it is predicted too: its nats count, it
    has no bytes. How documents are batched and cut changes nothing but the time. Of a model with a longest sequence,
    Hyena or Llama, each token past the first such sequence is predicted from at least the half of one before it.

    Args:
        model:           a causal language model of longstream.hf or a baseline.
        tokenizer:       the tokenizer it was trained with.
        documents:       any number, of any lengths.
        tokens_per_pass: bound on rows times columns of a forward pass; less for large vocabularies.
    """
    closing = [tokenizer.boundary_id]
    sequences = [np.concatenate([tokenizer.encode_document(document), closing]) for document in documents]
    pieces = [piece for s in sequences for piece in _pieces(s, context_limit(model))]
    pieces.sort(key=lambda piece: len(piece.ids), reverse=True)
    tokens_per_pass = max(1, min(tokens_per_pass, MOST_LOGITS // tokenizer.vocab_size))
    was_training = model.training
    model.eval()
    with quiet_transformers():
        nats = sum(_nats(model, group, tokens_per_pass) for group in _groups(pieces, tokens_per_pass))
    model.train(was_training)
    return Evaluation(
        nats=float(nats),
        tokens=sum(len(sequence) - 1 for sequence in sequences),
        bytes=sum(len(document.data) for document in documents),
    )


class _Piece(NamedTuple):
    """A document, or as much of it as a model takes at once."""

    ids: np.ndarray  # the last one is only predicted
    known: int  # targets at the beginning that an earlier piece has predicted


def _pieces(sequence: np.ndarray, limit: int | None) -> list[_Piece]:
    """The whole sequence, or overlapping halves of the longest that a model takes."""
    tokens = len(sequence) - 1
    if limit is None or tokens <= limit:
        return [_Piece(sequence, 0)]
    stride = max(1, limit // 2)
    starts = [*range(0, tokens - limit, stride), tokens - limit]
    pieces, done = [], 0
    for start in starts:
        pieces.append(_Piece(sequence[start : start + limit + 1], done - start))
        done = start + limit
    return pieces


def _groups(pieces: list[_Piece], tokens_per_pass: int) -> Iterator[list[_Piece]]:
    """Neighbors in length, as many as fill a pass: short ones whole, long ones a chunk at a time."""
    start = 0
    while start < len(pieces):
        rows = max(1, tokens_per_pass // min(CHUNK, len(pieces[start].ids) - 1))
        yield pieces[start : start + rows]
        start += rows


def _nats(model: Any, group: list[_Piece], tokens_per_pass: int) -> float:
    """Total nats of pieces, longest first. Rows that end leave the batch, so no pad is ever looked back at."""
    lengths = torch.tensor([len(piece.ids) - 1 for piece in group])
    ids = torch.zeros(len(group), int(lengths[0]) + 1, dtype=torch.long)  # (rows, longest + 1)
    targets = torch.full_like(ids, IGNORED)
    for row, (sequence, known) in enumerate(group):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        targets[row, known + 1 : len(sequence)] = ids[row, known + 1 : len(sequence)]
    ids, targets = ids[:, :-1].to(model.device), targets[:, 1:].to(model.device)
    nats, start, cache, before = 0.0, 0, None, len(group)
    while start < lengths[0]:
        rows = int((lengths > start).sum())
        if cache is not None and rows < before:
            keep_rows(cache, rows)
        end = start + max(1, tokens_per_pass // rows)
        logits, cache = continue_from(model, ids[:rows, start:end], cache)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            targets[:rows, start:end].flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        nats += loss.double().sum().item()
        start, before = end, rows
    return nats
