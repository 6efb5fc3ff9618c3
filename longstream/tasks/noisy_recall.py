"""Noisy recall: in-context recall with pairs of noise among the pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import Split
from longstream.tasks._generated import GeneratedTask
from longstream.tasks.in_context_recall import recall_rows, recall_tokens


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(GeneratedTask):
    """MAD's noisy in-context recall, Poli et al. 2024, arXiv:2403.17844; rules of mad-lab's generator.

    `longstream.tasks.in_context_recall`, but each pair is with probability ``noise`` two tokens of noise, drawn from
    the upper tokens of the vocabulary. Keys and values share the rest in halves.

    Examples:
        ``1 3 5 4 0 2 1 3`` asks for 3 at place 6 (V = 6, noise_vocabulary = 2: noise is 4 and 5).

    Args:
        vocabulary:       V, with the tokens of noise.
        seq_len:          even.
        noise:            in [0, 1).
        noise_vocabulary: how many tokens of V are noise.
        multi_query:      as in in-context recall.

    One pair at least before the last is no noise; mad-lab reserves it among all pairs, the last too, and fails now and
    then where noise is dense. What is asked, and the splits, are as in in-context recall.
    """

    name: ClassVar[str] = "noisy_recall"
    vocabulary: int = 32
    seq_len: int = 128
    noise: float = 0.2
    noise_vocabulary: int = 16
    multi_query: bool = True

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3, seq_len=4, noise_vocabulary=1)
        self._require("seq_len", self.seq_len % 2 == 0, "even")
        self._require("noise", 0 <= self.noise < 1, "in [0, 1)")
        least = self.noise_vocabulary + 3 - self.multi_query
        self._require("vocabulary", self.vocabulary >= least, f">= {least}, for noise, a key and a value")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        keys, symbols = recall_tokens(self.vocabulary, self.multi_query, self.noise_vocabulary)
        return 1 / (symbols - keys)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        given = self.seq_len, self.vocabulary, self.multi_query, self.noise, self.noise_vocabulary
        return recall_rows(rng, rows, *given)
