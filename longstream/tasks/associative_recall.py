"""Associative recall: pairs of keys and values at length, then one key that asks for its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask, draw_one, first_places


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(GeneratedTask):
    """Associative recall as Hyena's authors test it, Poli et al. 2023, arXiv:2302.10866; rules of safari's generator.

    Of V tokens the first (V - 2) // 2 are keys, those up to V - 3 values, V - 2 says "not there" and V - 1 is the
    prompt. Every sequence has a map of its own from keys to values, each value as likely. It is pairs of a key and its
    value, the keys drawn with replacement, then the prompt, and a key that has been there, whose value is asked. With
    ``key_len`` n a key is n of those tokens, and all such words have values.

    Examples:
        ``2 6 0 4 2 6 9 0`` asks for 4 at place 7 (V = 10: the prompt is 9).

    Args:
        vocabulary: V, with the two special tokens.
        seq_len:    of all tokens that a model reads; a multiple of key_len + 1.
        key_len:    tokens of a key.
        absent:     the key asked for is any key; if it has not been there, the answer is V - 2.

    There are few keys: 9 at V = 20, and each comes often in a long sequence. A long one asks for reach, not for memory.
    safari counts ``seq_len`` without the prompt and the last key, trains on all next tokens (here the answer alone is
    asked) and looks for duplicates in time quadratic in the examples. Splits are drawn apart: two examples are the same
    about once in ((V - 2) / 2)^n, n the keys there and the values of different ones.
    """

    name: ClassVar[str] = "associative_recall"
    vocabulary: int = 20
    seq_len: int = 64
    key_len: int = 1
    absent: bool = False

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=4, seq_len=4, key_len=1)
        unit = self.key_len + 1
        self._require("seq_len", self.seq_len % unit == 0, f"a multiple of key_len + 1 = {unit}")
        self._require("seq_len", self.seq_len >= 2 * unit, f">= 2 (key_len + 1) = {2 * unit}")
        self._require("key_len", self._keys**self.key_len < 1 << 62, "smaller, or vocabulary")

    @property
    def _keys(self) -> int:
        return (self.vocabulary - 2) // 2

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        values = self.vocabulary - 2 - self._keys
        if not self.absent:
            return 1 / values
        pairs = self.seq_len // (self.key_len + 1) - 1
        absent = (1 - self._keys**-self.key_len) ** pairs  # that none of so many keys is the one asked for
        return max(absent, (1 - absent) / values)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        pairs = self.seq_len // (self.key_len + 1) - 1
        words = rng.integers(0, self._keys, (rows, pairs + 1, self.key_len))  # the last is the key asked for
        code = words @ self._keys ** np.arange(self.key_len)  # (rows, pairs + 1)
        first = first_places(code[:, :-1])
        # A key's value is drawn where the key is first: as good as a map drawn for all keys.
        values = np.take_along_axis(rng.integers(self._keys, self.vocabulary - 2, (rows, pairs)), first, axis=1)
        row = np.arange(rows)
        if self.absent:
            same = code[:, :-1] == code[:, -1:]
            answer = np.where(same.any(axis=1), values[row, same.argmax(axis=1)], self.vocabulary - 2)
        else:
            asked = draw_one(rng, first == np.arange(pairs))  # of the different keys, each as likely
            words[:, -1], answer = words[row, asked], values[row, asked]

        prompt = np.full((rows, 1), self.vocabulary - 1)
        body = np.concatenate([words[:, :-1], values[:, :, None]], axis=2).reshape(rows, -1)
        inputs = np.concatenate([body, prompt, words[:, -1]], axis=1)
        labels = np.full_like(inputs, IGNORED)
        labels[:, -1] = answer
        return inputs, labels
