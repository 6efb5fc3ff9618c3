"""Compression: a whole sequence is asked back, place by place, from what is left when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask


@dataclass(frozen=True, kw_only=True)
class Compression(GeneratedTask):
    """MAD's compression, Poli et al. 2024, arXiv:2403.17844, in the form of a causal language model.

    MAD encodes random tokens and an end token, and a decoder says every token back from the vector at the end token and
    the number of its place. Here the model itself is the decoder: behind ``num_tokens`` tokens of 0 ... V - 2 and the
    end token V - 1 come the tokens V + i, i = 0 ... num_tokens - 1, in random order, and each asks for token i. So no
    answer can be read off in passing, and all have to come from the state at the end token.

    Examples:
        ``1 0 2 3 5 4 6`` asks for 0, 1 and 2 at places 4, 5 and 6 (V = 4: the end token is 3; three tokens).

    Args:
        vocabulary: V of MAD, with the end token; the tokens that ask come on top.
        num_tokens: to say back. MAD's sequence length counts the end token too: 32 is 31 tokens.

    Attention does not compress here: it can look every token up, where MAD has it go through one vector. Scores are
    comparable among models whose state has a fixed size. mad-lab draws noise and then forgets what it has drawn; there
    is none here. Splits are drawn apart: two examples are the same less than once in (V - 1)^num_tokens.
    """

    name: ClassVar[str] = "compression"
    vocabulary: int = 16
    num_tokens: int = 31

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3, num_tokens=1)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary + self.num_tokens

    @property
    def length(self) -> int:
        return 2 * self.num_tokens + 1

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 1)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        n = self.num_tokens
        tokens = rng.integers(0, self.vocabulary - 1, (rows, n))
        places = rng.permuted(np.broadcast_to(np.arange(n), (rows, n)), axis=1)
        end = np.full((rows, 1), self.vocabulary - 1)
        inputs = np.concatenate([tokens, end, self.vocabulary + places], axis=1)
        labels = np.full_like(inputs, IGNORED)
        labels[:, n + 1 :] = np.take_along_axis(tokens, places, axis=1)
        return inputs, labels
