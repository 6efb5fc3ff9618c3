"""What a language model does with its context, and what the context costs: measured for `longstream compare`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from longstream.baselines.language import cache_bytes, context_limit, continue_from
from longstream.train.corpus import Document
from longstream.train.tokenizer import Tokenizer

POSITION_TOKENS = 2**16  # that the loss by position is measured on, at most
PIECE = 512  # tokens of a pass
WARMUP, ROUNDS, STEPS = 2, 5, 6  # steps before the clock starts; turns of each model; steps of a turn


class PositionLoss(NamedTuple):
    """The loss of the tokens that have from ``after`` to below ``before`` tokens in front of them."""

    after: int
    before: int
    bits_per_byte: float


class DecodeCost(NamedTuple):
    """What one more token costs behind a context of ``length`` tokens."""

    length: int
    ms: float  # median
    rounds: tuple[float, ...]  # medians of each turn, milliseconds
    state_bytes: int
    beyond_training: bool  # more tokens than the model was trained on; its predictions there are another matter


@torch.no_grad()
def loss_by_position(
    model: Any, tokenizer: Tokenizer, documents: Sequence[Document], context: int
) -> list[PositionLoss]:
    """Bits per byte by how many tokens a token has in front of it, in buckets that double.

    Args:
        documents: held out; they are cut into windows of ``context`` tokens and one more, evenly chosen if many, and
                   each window is read from a state of nothing.
        context:   most tokens in front of a token; less where a model takes less, or no document is so long.
    """
    ids = [tokenizer.encode_document(document) for document in documents]
    context = min(context, context_limit(model) or context, max(len(each) for each in ids) - 1)
    if context < 1:
        return []
    windows = [each[i : i + context + 1] for each in ids for i in range(0, len(each) - context, context)]
    most = max(1, POSITION_TOKENS // context)
    windows = [windows[i] for i in np.linspace(0, len(windows) - 1, min(most, len(windows))).round().astype(int)]
    bytes_of = np.array([len(_decode(tokenizer, i)) for i in range(tokenizer.vocab_size)])
    nats, size = np.zeros(context), np.zeros(context)
    rows = max(1, 8192 // context)
    for start in range(0, len(windows), rows):
        some = np.stack(windows[start : start + rows])
        batch, cache, losses = torch.as_tensor(some.astype(np.int64), device=model.device), None, []
        for left in range(0, context, PIECE):
            right = min(left + PIECE, context)
            logits, cache = continue_from(model, batch[:, left:right], cache)
            losses.append(
                F.cross_entropy(logits.float().transpose(1, 2), batch[:, left + 1 : right + 1], reduction="none")
            )
        nats += torch.cat(losses, dim=1).double().sum(0).cpu().numpy()
        size += bytes_of[some[:, 1:]].sum(0)
    edges = [0, *(2**k for k in range(context.bit_length()) if 2**k < context), context]
    return [
        PositionLoss(a + 1, b + 1, float(nats[a:b].sum() / math.log(2) / size[a:b].sum()))
        for a, b in pairwise(edges)
        if size[a:b].sum()
    ]


def _decode(tokenizer: Tokenizer, token_id: int) -> bytes:
    return b"" if token_id == tokenizer.boundary_id else tokenizer.decode([token_id])


@torch.no_grad()
def decode_costs(models: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, list[DecodeCost]]:
    """Time and memory of one token more behind contexts of some lengths, one sequence; the models take turns.

    Args:
        models:  language models by name.
        lengths: of the context, in tokens. What is longer than Hyena's filters is left out for it; Llama is measured
                 beyond what it was trained on, and marked.
    """
    random = torch.Generator().manual_seed(0)
    caches: dict[str, Any] = dict.fromkeys(models)
    seen = dict.fromkeys(models, 0)
    found: dict[str, list[DecodeCost]] = {name: [] for name in models}
    taken = WARMUP + ROUNDS * STEPS
    for length in sorted(lengths):
        able = [name for name, model in models.items() if length <= (_hard_limit(model) or length)]
        times: dict[str, list[list[float]]] = {name: [] for name in able}
        for name in able:
            model = models[name]
            while seen[name] < max(1, length - taken):
                size = min(PIECE, max(1, length - taken) - seen[name])
                ids = torch.randint(model.config.vocab_size, (1, size), generator=random).to(model.device)
                caches[name] = continue_from(model, ids, caches[name])[1]
                seen[name] += size
        for turn in range(ROUNDS + 1):
            for name in able:
                taken_now: list[float] = []
                for _ in range(STEPS if turn else WARMUP):
                    if seen[name] >= length:
                        break
                    ids = torch.randint(models[name].config.vocab_size, (1, 1), generator=random).to(
                        models[name].device
                    )
                    started = time.perf_counter()
                    caches[name] = continue_from(models[name], ids, caches[name])[1]
                    if turn:
                        taken_now.append(1e3 * (time.perf_counter() - started))
                    seen[name] += 1
                if taken_now:
                    times[name].append(taken_now)
        for name in able:
            if times[name]:
                beyond = length > (context_limit(models[name]) or length)
                ms = statistics.median(each for turn_of in times[name] for each in turn_of)
                turns = tuple(map(statistics.median, times[name]))
                found[name].append(DecodeCost(length, ms, turns, cache_bytes(caches[name]), beyond))
    return found


def _hard_limit(model: Any) -> int | None:
    """The tokens past which a model cannot go at all."""
    return None if model.config.model_type == "llama" else context_limit(model)
