"""How likely a language model finds tokens behind others: batched by length, read in chunks, states carried on."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from longstream.baselines.language import context_limit, continue_from, keep_rows
from longstream.train.data import IGNORED
from longstream.train.rundir import quiet_transformers

CHUNK = 512  # columns of a pass while there are rows enough to fill it
MOST_LOGITS = 2**25  # of one pass: 128 MiB in float32
MOST_ROWS = 128  # that share a pass: of each, a whole state is kept
# Tokens; a context as short is read again with each of its continuations, in fuller batches. Measured with four of 8 to
# 30 tokens: sharing pays from some 50 tokens on in a model of 2 layers of 64, from fewer than 16 in one of 6 of 256.
WORTH_SHARING = 32


class Piece(NamedTuple):
    """A sequence, or as much of it as a model takes at once."""

    ids: np.ndarray  # the last one is only predicted
    known: int  # targets at the beginning that do not count


class Score(NamedTuple):
    """What a model makes of the targets that count."""

    nats: float
    greedy: bool  # whether each of them is the likeliest token; true of none


def cut(sequence: np.ndarray, limit: int | None, known: int = 0) -> list[Piece]:
    """The whole sequence, or overlapping halves of the longest that a model takes; those that add nothing left out.

    Args:
        sequence: ids; the first is only looked at.
        limit:    of tokens that are looked at; None is none.
        known:    targets at the beginning that do not count.
    """
    tokens = len(sequence) - 1
    if limit is None or tokens <= limit:
        return [Piece(sequence, known)]
    stride = max(1, limit // 2)
    pieces, done = [], known
    for start in [*range(0, tokens - limit, stride), tokens - limit]:
        if start + limit > done:
            pieces.append(Piece(sequence[start : start + limit + 1], done - start))
            done = start + limit
    return pieces


@torch.no_grad()
def score_pieces(
    model: Any,
    pieces: Sequence[Piece],
    *,
    tokens_per_pass: int = 8192,
    progress: Callable[[int], object] | None = None,
) -> list[Score]:
    """The score of each piece, in their order. How they are batched changes nothing but the time.

    Args:
        model:           a causal language model of longstream.hf or a baseline.
        tokens_per_pass: bound on rows times columns of a forward pass; less for large vocabularies.
        progress:        called with the number of pieces of each batch that is done.
    """
    tokens_per_pass = _fitting(model, tokens_per_pass)
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].ids), reverse=True)
    found: dict[int, Score] = {}
    with _evaluating(model):
        for group in _groups(order, [len(piece.ids) - 1 for piece in pieces], tokens_per_pass):
            found |= zip(group, _score(model, [pieces[i] for i in group], tokens_per_pass), strict=True)
            if progress is not None:
                progress(len(group))
    return [found[i] for i in range(len(pieces))]


@torch.no_grad()
def score_continuations(
    model: Any,
    requests: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    tokens_per_pass: int = 8192,
    progress: Callable[[int], object] | None = None,
) -> list[Score]:
    """The score of each continuation behind its context; a context of several is read once for all of them.

    Of a model with a longest sequence, Hyena or Llama, a context that does not fit loses its beginning; what of a
    continuation is longer than half of that sequence is predicted from at least the half before it.

    Args:
        requests: ids of (context, continuation); of a context at least one.
        progress: called with the number of requests, or pieces of them, of each batch that is done.
    """
    limit, tokens_per_pass = context_limit(model), _fitting(model, tokens_per_pass)
    found: dict[int, Score] = {}
    by_context: dict[bytes, list[int]] = defaultdict(list)
    for i, (context, continuation) in enumerate(requests):
        fits = limit is None or len(context) + len(continuation) - 1 <= limit
        by_context[context.tobytes() if fits and len(context) > WORTH_SHARING else i.to_bytes(8, "big")].append(i)
    with _evaluating(model):
        for group in _of_one_length([same for same in by_context.values() if len(same) > 1], requests, tokens_per_pass):
            for part, scores in _score_behind(model, group, requests, tokens_per_pass):
                found |= zip(part, scores, strict=True)
                if progress is not None:
                    progress(len(part))
    pieces, owners = [], []
    for i in (same[0] for same in by_context.values() if len(same) == 1):
        sequence, size = np.concatenate(requests[i]), len(requests[i][1])
        if limit is not None:
            sequence = sequence[-1 - max(limit, size + limit // 2) :]
        found[i] = Score(0.0, True)
        mine = cut(sequence, limit, len(sequence) - 1 - size)
        pieces += mine
        owners += [i] * len(mine)
    scores = score_pieces(model, pieces, tokens_per_pass=tokens_per_pass, progress=progress)
    for i, score in zip(owners, scores, strict=True):
        found[i] = Score(found[i].nats + score.nats, found[i].greedy and score.greedy)
    return [found[i] for i in range(len(requests))]


def _of_one_length(
    groups: list[list[int]], requests: Sequence[tuple[np.ndarray, np.ndarray]], tokens_per_pass: int
) -> Iterator[list[list[int]]]:
    """Groups of requests that share a context, as many as fill a pass, their contexts of one length: no pads."""
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for same in groups:
        by_length[len(requests[same[0]][0])].append(same)
    for length in sorted(by_length, reverse=True):
        rows = min(MOST_ROWS, max(1, tokens_per_pass // length))
        yield from (by_length[length][i : i + rows] for i in range(0, len(by_length[length]), rows))


def _score_behind(
    model: Any, groups: list[list[int]], requests: Sequence[tuple[np.ndarray, np.ndarray]], tokens_per_pass: int
) -> Iterator[tuple[list[int], list[Score]]]:
    """Some of the requests of groups and their scores, until all are done; of each group the context is the same."""
    contexts = np.stack([requests[same[0]][0] for same in groups]).astype(np.int64)
    read = torch.as_tensor(contexts[:, :-1], device=model.device)  # (rows, length - 1)
    cache = None
    for columns in read.split(max(1, tokens_per_pass // len(groups)), dim=1):
        cache = continue_from(model, columns, cache)[1]
    row_of = {i: row for row, same in enumerate(groups) for i in same}
    left = sorted(row_of, key=lambda i: len(requests[i][1]), reverse=True)
    while left:
        rows = min(MOST_ROWS, max(1, tokens_per_pass // max(1, len(requests[left[0]][1]))))
        part, left = left[:rows], left[rows:]
        behind: Any = copy.deepcopy(cache) if left else cache
        behind.reorder_cache(torch.tensor([row_of[i] for i in part], device=model.device))
        pieces = [Piece(np.concatenate([requests[i][0][-1:], requests[i][1]]), 0) for i in part]
        yield part, _score(model, pieces, tokens_per_pass, behind)


def _fitting(model: Any, tokens_per_pass: int) -> int:
    return max(1, min(tokens_per_pass, MOST_LOGITS // model.config.vocab_size))


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    with quiet_transformers():
        yield
    model.train(was_training)


def _groups(order: list[int], lengths: list[int], tokens_per_pass: int) -> Iterator[list[int]]:
    """Neighbors in length, as many as fill a pass: short ones whole, long ones a chunk at a time."""
    start = 0
    while start < len(order):
        columns = max(1, min(CHUNK, lengths[order[start]]))
        rows = min(MOST_ROWS, max(1, tokens_per_pass // columns))
        yield order[start : start + rows]
        start += rows


def _score(model: Any, group: list[Piece], tokens_per_pass: int, cache: Any = None) -> list[Score]:
    """Scores of pieces, longest first. Rows that end leave the batch, so no pad is ever looked back at."""
    lengths = torch.tensor([len(piece.ids) - 1 for piece in group])
    ids = torch.zeros(len(group), int(lengths[0]) + 1, dtype=torch.long)  # (rows, longest + 1)
    targets = torch.full_like(ids, IGNORED)
    for row, (sequence, known) in enumerate(group):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        targets[row, known + 1 : len(sequence)] = ids[row, known + 1 : len(sequence)]
    ids, targets = ids[:, :-1].to(model.device), targets[:, 1:].to(model.device)
    nats, greedy = torch.zeros(len(group), dtype=torch.double), torch.ones(len(group), dtype=torch.bool)
    start, before = 0, len(group)
    while start < lengths[0]:
        rows = int((lengths > start).sum())
        if cache is not None and rows < before:
            keep_rows(cache, rows)
        end = start + max(1, tokens_per_pass // rows)
        wanted = targets[:rows, start:end]
        logits, cache = continue_from(model, ids[:rows, start:end], cache)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(rows, -1)
        nats[:rows] += loss.double().sum(1).cpu()
        greedy[:rows] &= ((logits.argmax(-1) == wanted) | (wanted == IGNORED)).all(1).cpu()
        start, before = end, rows
    return [Score(*each) for each in zip(nats.tolist(), greedy.tolist(), strict=True)]
