"""Exact bits per byte of whole documents: the state is carried from chunk to chunk, so every token has its context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from longstream.baselines.language import context_limit
from longstream.train.corpus import Document
from longstream.train.scoring import cut, score_pieces
from longstream.train.tokenizer import Tokenizer


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
    pieces = [piece for sequence in sequences for piece in cut(sequence, context_limit(model))]
    scores = score_pieces(model, pieces, tokens_per_pass=tokens_per_pass)
    return Evaluation(
        nats=math.fsum(score.nats for score in scores),
        tokens=sum(len(sequence) - 1 for sequence in sequences),
        bytes=sum(len(document.data) for document in documents),
    )
