"""In-context recall: each key that comes again asks for the value it had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask, draw_one, first_places


@dataclass(frozen=True, kw_only=True)
class InContextRecall(GeneratedTask):
    """MAD's in-context recall, Poli et al. 2024, arXiv:2403.17844; rules of mad-lab's generator.

    Pairs of a key and its value: keys are the lower half of the tokens, values the upper one, drawn with replacement,
    and a key has one value in a sequence. The value is asked at every key that has been there before. The last pair's
    key always has.

    Examples:
        ``1 3 0 2 1 3 0 2`` asks for 3 at place 4 and for 2 at place 6 (V = 4).

    Args:
        vocabulary:  V.
        seq_len:     even.
        multi_query: False: the token V - 1 is no value but a prompt, and only what follows it is asked: the sequence
                     ends in the prompt and a key. True is MAD's baseline.

    mad-lab trains on all next tokens and asks so only in its test; here what is asked is the same in all splits.
    Its inputs leave out the last value, which nothing is asked behind. Splits are drawn apart: two examples are the
    same about once in (V / 2)^n, n the pairs and the values of different keys.
    """

    name: ClassVar[str] = "in_context_recall"
    vocabulary: int = 16
    seq_len: int = 128
    multi_query: bool = True

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3 - self.multi_query, seq_len=4)
        self._require("seq_len", self.seq_len % 2 == 0, "even")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        keys, symbols = recall_tokens(self.vocabulary, self.multi_query)
        return 1 / (symbols - keys)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        return recall_rows(rng, rows, self.seq_len, self.vocabulary, self.multi_query)


def recall_tokens(vocabulary: int, multi_query: bool, noise_vocabulary: int = 0) -> tuple[int, int]:
    """(K, M): keys are 0 ... K - 1, values K ... M - 1; then come the tokens of noise, and the prompt if any."""
    symbols = vocabulary - noise_vocabulary - (not multi_query)
    return symbols // 2, symbols


def recall_rows(
    rng: np.random.Generator,
    rows: int,
    seq_len: int,
    vocabulary: int,
    multi_query: bool,
    noise: float = 0.0,
    noise_vocabulary: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of in-context recall; a pair is noise with this probability."""
    keys, symbols = recall_tokens(vocabulary, multi_query, noise_vocabulary)
    pairs = seq_len // 2  # the last one asks
    cells = np.empty((rows, pairs, 2), np.int64)
    cells[:, :, 0] = rng.integers(0, keys, (rows, pairs))
    is_noise = np.zeros((rows, pairs), bool)
    if noise:
        is_noise = rng.random((rows, pairs)) < noise
        is_noise[np.arange(rows), rng.integers(0, pairs - 1, rows)] = False  # one pair at least is there to be asked
        is_noise[:, -1] = False
        cells[:, :, 0][is_noise] = -1  # no key
    first = first_places(cells[:, :-1, 0])
    new = (first == np.arange(pairs - 1)) & ~is_noise[:, :-1]
    row = np.arange(rows)
    # A key's value is drawn where the key is first: as good as a map drawn for all keys.
    drawn = rng.integers(keys, symbols, (rows, pairs - 1))
    cells[:, :-1, 1] = np.take_along_axis(drawn, first, axis=1)
    cells[:, -1] = cells[row, draw_one(rng, new)]  # of the different keys, each as likely
    asked = np.zeros((rows, pairs), bool)
    asked[:, -1] = True
    if multi_query:
        asked[:, :-1] = ~new & ~is_noise[:, :-1]
    labels = np.full_like(cells, IGNORED)
    labels[:, :, 0][asked] = cells[:, :, 1][asked]
    if noise:
        cells[is_noise] = rng.integers(symbols, symbols + noise_vocabulary, (np.count_nonzero(is_noise), 2))
    if not multi_query:
        cells[:, -1, 1], cells[:, -1, 0] = cells[:, -1, 0].copy(), vocabulary - 1
        labels[:, -1, 1], labels[:, -1, 0] = labels[:, -1, 0].copy(), IGNORED
    return cells.reshape(rows, -1), labels.reshape(rows, -1)
