"""Multi-query associative recall: pairs of keys and values, then the keys again, each asking for its value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask, draw_distinct, draw_weighted


@dataclass(frozen=True, kw_only=True)
class MQAR(GeneratedTask):
    """Multi-query associative recall (MQAR), Arora et al. 2023, arXiv:2312.04927; rules of zoology's generator.

    The first ``2 num_pairs`` tokens are key, value, key, value ...: keys of 1 ... V/2 - 1 and values of V/2 ... V - 1,
    no key and no value twice. Each key comes once more behind them, and there its value is asked. The key of pair i
    stands ``2 g_i`` places behind the pairs, where the g_i of 0 ... S - 1, S = (seq_len - 2 num_pairs) / 2, are drawn
    one after the other without replacement with p(g) ~ (g + 1)^(power - 1). All else is token 0, the filler.

    Examples:
        ``3 9 1 12 0 0 1 0 3 0 0 0`` asks for 12 at place 6 and for 9 at place 8.

    Args:
        vocabulary:  V, even.
        seq_len:     even, >= 4 num_pairs.
        num_pairs:   < V/2, so that the keys suffice.
        power:       > 0; small ones put most queries soon behind the pairs, 1.0 puts them anywhere.
        random_fill: random tokens of 1 ... V - 1 in place of the filler. zoology draws them from a random state that
                     its seed does not set, and they may be keys of the sequence, asked where nothing is scored; here
                     they come from the seed and are never a key of the sequence.

    Defaults are the setting (128, 8) of the paper's Figure 2. ``chance`` is a guess among all values; who knows which
    values were there, and not whose they are, is right once in ``num_pairs``. Splits are drawn apart: two examples are
    the same about once in (V/2)^(2 num_pairs) pairs.
    """

    name: ClassVar[str] = "mqar"
    vocabulary: int = 8192
    seq_len: int = 128
    num_pairs: int = 8
    power: float = 0.01
    random_fill: bool = False

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=4, seq_len=4, num_pairs=1)
        self._require("vocabulary", self.vocabulary % 2 == 0, "even")
        self._require("seq_len", self.seq_len % 2 == 0, "even")
        self._require("num_pairs", 4 * self.num_pairs <= self.seq_len, f"<= seq_len / 4 = {self.seq_len // 4}")
        half = self.vocabulary // 2
        self._require("num_pairs", self.num_pairs < half, f"< vocabulary / 2 = {half}")
        self._require("power", 0 < self.power < math.inf, "> 0, and finite")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        return 2 / self.vocabulary

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        half, pairs = self.vocabulary // 2, 2 * self.num_pairs
        keys = draw_distinct(rng, rows, self.num_pairs, 1, half)
        values = draw_distinct(rng, rows, self.num_pairs, half, self.vocabulary)
        weights = np.arange(1, (self.seq_len - pairs) // 2 + 1) ** (self.power - 1.0)
        asked = pairs + 2 * draw_weighted(rng, rows, self.num_pairs, weights)
        inputs = np.zeros((rows, self.seq_len), np.int64)
        if self.random_fill:
            inputs[:, pairs:] = self._fill(rng, keys)
        inputs[:, :pairs:2], inputs[:, 1:pairs:2] = keys, values
        labels = np.full_like(inputs, IGNORED)
        np.put_along_axis(inputs, asked, keys, axis=1)
        np.put_along_axis(labels, asked, values, axis=1)
        return inputs, labels

    def _fill(self, rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        """Tokens of 1 ... V - 1 that are not keys of their row, for all places behind the pairs."""
        fill = rng.integers(1, self.vocabulary - self.num_pairs, (len(keys), self.seq_len - 2 * self.num_pairs))
        for key in np.sort(keys, axis=1).T:  # counting up, the tokens from a key on move up by one
            fill += fill >= key[:, None]
        return fill
