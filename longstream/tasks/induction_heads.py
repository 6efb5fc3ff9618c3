"""Induction heads: what came behind a token is said again when the token comes again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask, draw_distinct


@dataclass(frozen=True, kw_only=True)
class InductionHeads(GeneratedTask):
    """Induction heads, Olsson et al. 2022, arXiv:2209.11895; rules of safari's generator, sizes of Mamba's Table 11.

    Random tokens of 0 ... V - 2, and somewhere among them the trigger V - 1. The sequence ends in the trigger again,
    and what followed the first one is asked.

    Examples:
        ``3 0 9 5 2 2 9`` asks for 5 at place 6 (V = 10: the trigger is 9).

    Args:
        vocabulary: V, with the trigger.
        seq_len:    of all tokens that a model reads, the last trigger among them.
        answer_len: tokens that follow each trigger. At the last one they are asked in order, each place being given the
                    answers before it.
        triggers:   before the last one, all followed by the same answer; they and their answers do not overlap.

    Train at one ``seq_len`` and test at longer ones, as Gu and Dao 2023, arXiv:2312.00752 do, from 256 to 2^20. Every
    place is as likely for a trigger whose answer comes before the last one; safari never draws the last one. It also
    leaves it to chance whether there are several triggers, trains on all next tokens (here the answer alone is asked),
    and counts ``seq_len`` without the last trigger. Splits are drawn apart: two examples are the same about once in
    (V - 1)^seq_len.
    """

    name: ClassVar[str] = "induction_heads"
    vocabulary: int = 16
    seq_len: int = 256
    answer_len: int = 1
    triggers: int = 1

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3, seq_len=3, answer_len=1, triggers=1)
        least = self.triggers * (self.answer_len + 1) + self.answer_len
        self._require("seq_len", self.seq_len >= least, f">= triggers (answer_len + 1) + answer_len = {least}")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 1)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        body = self.seq_len - self.answer_len
        inputs = rng.integers(0, self.vocabulary - 1, (rows, self.seq_len))
        answer = rng.integers(0, self.vocabulary - 1, (rows, self.answer_len))
        # Triggers with their answers are drawn as single places of a shorter row, then moved apart.
        places = np.sort(draw_distinct(rng, rows, self.triggers, 0, body - self.triggers * self.answer_len), axis=1)
        places += self.answer_len * np.arange(self.triggers)
        np.put_along_axis(inputs, places, self.vocabulary - 1, axis=1)
        for i in range(self.answer_len):
            np.put_along_axis(inputs, places + 1 + i, answer[:, i : i + 1], axis=1)
        inputs[:, body] = self.vocabulary - 1
        inputs[:, body + 1 :] = answer[:, :-1]
        labels = np.full_like(inputs, IGNORED)
        labels[:, body:] = answer
        return inputs, labels
