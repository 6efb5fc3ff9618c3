"""A language model as lm-evaluation-harness asks for one, through the passes of `longstream.train.scoring`.

Needs lm-eval; `longstream.train.harness` imports it where it is asked for.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from longstream.baselines.language import context_limit
from longstream.train.sample import continue_texts
from longstream.train.scoring import cut, score_continuations, score_pieces
from longstream.train.tokenizer import Tokenizer

logger = logging.getLogger("longstream")

ROWS = 16  # texts that are written side by side
WRITING = ("temperature", "top_k", "top_p", "do_sample")  # what of a task's settings the writing of texts knows


class HarnessModel(TemplateLM):
    """The surface that lm-eval's tasks call.

    Every context begins with the boundary token, as every document in training did; it is told apart from its
    continuation between tokens, as lm-eval does it: a space that ends the context belongs to the continuation.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer):
        super().__init__()
        self.model, self.text_tokenizer = model, tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.boundary_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.text_tokenizer.encode(string.encode()).tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            return [], self.tok_encode(continuation)
        before, after = super()._encode_pair(context, continuation)
        if continuation and not after:  # the tokenizer joins it to the context's last token
            return self.tok_encode(context), self.tok_encode(continuation)
        return before, after

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Nats of each continuation behind its context, and whether it is what the model would write greedily."""
        return self._loglikelihood_tokens([(request.args, *self._encode_pair(*request.args)) for request in requests])

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [(self._from_boundary(before), np.array(after, np.int32)) for _, before, after in requests]
        limit = context_limit(self.model)
        if limit is not None and (longer := sum(len(a) + len(b) - 1 > limit for a, b in pairs)):
            told = f"{longer:,} of {len(pairs):,} requests are longer than the {limit:,} tokens that the model takes"
            logger.warning("%s: their contexts lose their beginning", told)
        with _progress("log-likelihoods", len(pairs)) as advance:
            scores = score_continuations(self.model, pairs, progress=advance)
        return [(-score.nats, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of each text from its beginning; of what is longer than the model takes as in `evaluate_documents`."""
        texts = [self._from_boundary(self.tok_encode(*request.args)) for request in requests]
        limit = context_limit(self.model)
        pieces = [(i, piece) for i, text in enumerate(texts) for piece in cut(text, limit)]
        with _progress("whole texts", len(pieces)) as advance:
            scores = score_pieces(self.model, [piece for _, piece in pieces], progress=advance)
        nats = np.zeros(len(texts))
        for (i, _), score in zip(pieces, scores, strict=True):
            nats[i] += score.nats
        return [-float(each) for each in nats]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of the strings that are to end it."""
        alike: dict[str, list[int]] = defaultdict(list)  # requests that are written in the same way
        for i, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(i)
        prompts = [self._from_boundary(self.tok_encode(request.args[0])) for request in requests]
        found: dict[int, str] = {}
        with _progress("texts to write", len(requests)) as advance:
            for same in alike.values():
                how: dict[str, Any] = dict(normalize_gen_kwargs(requests[same[0]].args[1]))
                until, most = [stop for stop in how.pop("until") if stop], how.pop("max_gen_toks")
                if unknown := sorted(set(how) - set(WRITING)):
                    logger.warning("evaluate: generation_kwargs %s of the task are left out", ", ".join(unknown))
                options = {name: how[name] for name in WRITING[:3] if name in how}
                options["temperature"] = options.get("temperature", 1.0) if how["do_sample"] else 0.0
                keep = self._room_before(most)
                same.sort(key=lambda i: len(prompts[i]))
                for start in range(0, len(same), ROWS):
                    part = same[start : start + ROWS]
                    written = continue_texts(
                        self.model,
                        self.text_tokenizer,
                        [prompts[i][-keep:].tolist() for i in part],
                        max_new_tokens=most,
                        seed=start,
                        until=[stop.encode() for stop in until],
                        **options,
                    )
                    for i, data in zip(part, written, strict=True):
                        found[i] = _before(data.decode("utf-8", "replace"), until)
                    advance(len(part))
        return [found[i] for i in range(len(requests))]

    def _from_boundary(self, ids: Sequence[int]) -> np.ndarray:
        return np.array([self.eot_token_id, *ids], np.int32)

    def _room_before(self, new: int) -> int:
        """How many tokens of a context the model takes beside so many new ones; the last is not read again."""
        limit = context_limit(self.model)
        if limit is None:
            return sys.maxsize
        if new > limit:
            raise ValueError(
                f"evaluate: the task asks for up to {new:,} new tokens, and the model takes {limit:,} in all; set"
                " max_gen_toks in its generation_kwargs"
            )
        return limit - new + 1


def _before(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.partition(stop)[0]
    return text


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal; it is advanced by calling what is given."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.advance(bar, done)
