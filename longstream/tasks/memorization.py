"""Memorization: facts that no sequence tells; a model has to keep them in its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask


@dataclass(frozen=True, kw_only=True)
class Memorization(GeneratedTask):
    """MAD's memorization, Poli et al. 2024, arXiv:2403.17844; rules of mad-lab's generator.

    One map from keys to values, no value twice, holds for all sequences, seeds and splits. A sequence is keys, drawn
    with replacement, each followed by the marker V - 1, at which the key's value is asked; the value is never in the
    inputs. Of the other tokens the lower half are keys, the upper half values.

    Examples:
        ``2 6 0 6 2 6`` asks for one value at places 1 and 5 and another at place 3 (V = 7: the marker is 6).

    Args:
        vocabulary: V, with the marker.
        seq_len:    even.
        map_seed:   of the map.

    MAD trains on 256 sequences only. Splits share the facts, which is the point, and the sequences once in
    (V / 2)^(seq_len / 2).
    """

    name: ClassVar[str] = "memorization"
    vocabulary: int = 256
    seq_len: int = 32
    map_seed: int = 12345

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3, seq_len=2, map_seed=0)
        self._require("seq_len", self.seq_len % 2 == 0, "even")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 1 - (self.vocabulary - 1) // 2)

    @property
    def values(self) -> np.ndarray:
        """(K,) the value of each key 0 ... K - 1."""
        keys = (self.vocabulary - 1) // 2
        return np.random.default_rng(self.map_seed).permutation(np.arange(keys, self.vocabulary - 1))[:keys]

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        values = self.values
        keys = rng.integers(0, len(values), (rows, self.seq_len // 2))
        inputs = np.full((rows, self.seq_len), self.vocabulary - 1)
        labels = np.full_like(inputs, IGNORED)
        inputs[:, ::2], labels[:, 1::2] = keys, values[keys]
        return inputs, labels
