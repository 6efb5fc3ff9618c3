"""Fuzzy recall: in-context recall whose keys and values are words of several tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask, draw_distinct, draw_one, first_places


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(GeneratedTask):
    """MAD's fuzzy in-context recall, Poli et al. 2024, arXiv:2403.17844; rules of mad-lab's generator.

    `longstream.tasks.in_context_recall` with words: a key is 1 ... key_len tokens of the lower half, a value
    1 ... value_len of the upper half, no token twice in a word; every length is as likely, and every word of it. In
    validation and test all keys have ``key_len`` tokens. A value that is asked is asked token by token: the first at
    the key's last token, each further one at the token before it. The last pair asks for a key that has been there.
    What is left of ``seq_len`` behind it are pads, V - 1.

    Examples:
        ``1 0 4 5 2 3 1 0 4 5 7 7`` asks for 4 and 5 at places 7 and 8 (V = 8: the pad is 7).

    Args:
        vocabulary:  V, with the pad.
        seq_len:     at least two of the longest pairs.
        key_len:     tokens of a key, at most.
        value_len:   tokens of a value, at most.
        multi_query: False: the pad is V - 2, the token V - 1 is a prompt before the last pair, and only that pair asks.

    mad-lab lists and shuffles all words for every sequence, some 238,000 at V = 128; here words are drawn. It pads in
    front, fewer than a longest pair where here they are fewer than two, and trains on all next tokens. Splits are drawn
    apart: two examples are the same about once in (V / 2)^n, n the tokens of the different pairs.
    """

    name: ClassVar[str] = "fuzzy_recall"
    vocabulary: int = 16
    seq_len: int = 128
    key_len: int = 3
    value_len: int = 3
    multi_query: bool = True

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3, seq_len=4, key_len=1, value_len=1)
        keys, symbols = self._tokens
        self._require("vocabulary", keys >= self.key_len, f"larger: {keys} tokens are too few for keys")
        self._require("vocabulary", symbols - keys >= self.value_len, "larger: too few tokens for values")
        self._require("key_len", (keys + 1) ** self.key_len < 1 << 62, "smaller, or vocabulary")
        least = 2 * (self.key_len + self.value_len) + (not self.multi_query)
        self._require("seq_len", self.seq_len >= least, f">= {least}, for two pairs")

    @property
    def _tokens(self) -> tuple[int, int]:
        """(K, M): keys are of 0 ... K - 1, values of K ... M - 1."""
        symbols = self.vocabulary - 2 + self.multi_query
        return symbols // 2, symbols

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        keys, symbols = self._tokens
        return 1 / (symbols - keys)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        K, M = self._tokens
        shortest = (1 if split == "train" else self.key_len) + 1
        pairs = self.seq_len // shortest  # as many as there may be, and the last, that asks
        key_size = rng.integers(shortest - 1, self.key_len + 1, (rows, pairs))
        value_size = rng.integers(1, self.value_len + 1, (rows, pairs))
        key = draw_distinct(rng, rows * pairs, self.key_len, 0, K).reshape(rows, pairs, -1)
        value = draw_distinct(rng, rows * pairs, self.value_len, K, M).reshape(rows, pairs, -1)

        spelled = np.where(np.arange(self.key_len) < key_size[:, :, None], key + 1, 0)
        first = first_places(spelled @ (K + 1) ** np.arange(self.key_len))
        value_size = np.take_along_axis(value_size, first, axis=1)
        value = np.take_along_axis(value, first[:, :, None], axis=1)
        stop = np.cumsum(key_size + value_size, axis=1)
        used = stop <= self.seq_len - self.key_len - self.value_len - (not self.multi_query)
        used[:, -1] = False
        start = stop - key_size - value_size
        new = first == np.arange(pairs)
        asked = used & ~new & self.multi_query

        row, last = np.arange(rows), draw_one(rng, new & used)  # of the different keys, each as likely
        end = np.where(used, stop, 0).max(axis=1)
        for cells in (key, value, key_size, value_size):
            cells[:, -1] = cells[row, last]
        start[:, -1] = end + (not self.multi_query)
        used[:, -1] = asked[:, -1] = True

        inputs = np.full((rows, self.seq_len), self.vocabulary - 2 + self.multi_query)
        labels = np.full_like(inputs, IGNORED)
        if not self.multi_query:
            inputs[row, end] = self.vocabulary - 1
        for i in range(self.key_len):
            n, pair = np.nonzero(used & (i < key_size))
            inputs[n, start[n, pair] + i] = key[n, pair, i]
        for i in range(self.value_len):
            n, pair = np.nonzero(used & (i < value_size))
            place = start[n, pair] + key_size[n, pair] + i
            inputs[n, place] = value[n, pair, i]
            ask = asked[n, pair]
            labels[n[ask], place[ask] - 1] = value[n[ask], pair[ask], i]
        return inputs, labels
