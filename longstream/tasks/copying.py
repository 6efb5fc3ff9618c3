"""Long copy: symbols, a long pause, then the symbols again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask


@dataclass(frozen=True, kw_only=True)
class Copying(GeneratedTask):
    """The copying problem, Hochreiter and Schmidhuber 1997; sizes of Arjovsky et al. 2015, arXiv:1511.06464.

    ``num_tokens`` symbols of 0 ... V - 3 drawn with replacement, ``delay`` blanks V - 2, then ``num_tokens`` markers
    V - 1, at which the symbols are asked in order.

    Examples:
        ``4 0 6 6 6 7 7`` asks for 4 and 0 at places 5 and 6 (V = 8: blank 6, marker 7; delay 3).

    Args:
        vocabulary: V, with blank and marker.
        num_tokens: symbols to say again.
        delay:      blanks between; 0 for none.

    Arjovsky et al. have one marker and then blanks, and ask for blanks everywhere else; here the symbols alone are
    asked. Splits are drawn apart: two examples are the same once in (V - 2)^num_tokens.
    """

    name: ClassVar[str] = "copying"
    vocabulary: int = 10
    num_tokens: int = 10
    delay: int = 100

    def __post_init__(self) -> None:
        self._require_integers(vocabulary=3, num_tokens=1, delay=0)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return 2 * self.num_tokens + self.delay

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 2)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        symbols = rng.integers(0, self.vocabulary - 2, (rows, self.num_tokens))
        inputs = np.full((rows, self.length), self.vocabulary - 2)
        inputs[:, : self.num_tokens] = symbols
        inputs[:, -self.num_tokens :] = self.vocabulary - 1
        labels = np.full_like(inputs, IGNORED)
        labels[:, -self.num_tokens :] = symbols
        return inputs, labels
