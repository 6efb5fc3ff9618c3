"""Selective copying: say again, in order, the few tokens that stood scattered among blanks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from longstream.tasks._base import IGNORED, Split
from longstream.tasks._generated import GeneratedTask, draw_distinct


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(GeneratedTask):
    """Selective copying, by the rules of MAD (Poli et al. 2024, arXiv:2403.17844) or Mamba (arXiv:2312.00752).

    Of V tokens, V - 2 are symbols, one is the blank and one the marker. ``num_tokens`` symbols, drawn with replacement,
    stand at places drawn without replacement among blanks; then they are asked in order.

    Examples:
        ``5 2 5 0 5 6 5 5`` asks for 2 and 0 at places 6 and 7 (MAD's rules, V = 7: blank 5, marker 6, two tokens).

    Args:
        vocabulary: V, with blank and marker.
        seq_len:    of all tokens, the part that asks among them; more than 2 num_tokens.
        num_tokens: symbols to say again.
        rules:      "mad": symbols from 0, blank V - 2, marker V - 1; one marker, then ``num_tokens`` blanks, at which
                    the symbols are asked. "mamba": blank 0, symbols from 1, marker V - 1; ``num_tokens`` markers, at
                    which the symbols are asked.

    Defaults are MAD's baseline. MAD's own generator draws the places from NumPy's global state, which its seed does not
    set, and puts blanks in front of symbols only, so that the last symbol always stands last and the places before it
    are not all as likely; here all sets of places are, as in Mamba's. Mamba's Table 1 has 4096 tokens, V 16 and
    num_tokens 16. Splits are drawn apart: two examples are the same about once in (V - 2)^num_tokens sets of places.
    """

    name: ClassVar[str] = "selective_copying"
    vocabulary: int = 16
    seq_len: int = 256
    num_tokens: int = 16
    rules: Literal["mad", "mamba"] = "mad"

    def __post_init__(self) -> None:
        self._require("rules", self.rules in ("mad", "mamba"), "'mad' or 'mamba'")
        self._require_integers(vocabulary=3, seq_len=3, num_tokens=1)
        self._require("seq_len", self.seq_len > 2 * self.num_tokens, f"> 2 num_tokens = {2 * self.num_tokens}")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - 2)

    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        mad, marker = self.rules == "mad", self.vocabulary - 1
        low, blank = (0, self.vocabulary - 2) if mad else (1, 0)
        ask = self.seq_len - self.num_tokens  # where the first is asked
        symbols = rng.integers(low, low + self.vocabulary - 2, (rows, self.num_tokens))
        places = np.sort(draw_distinct(rng, rows, self.num_tokens, 0, ask - mad), axis=1)
        inputs = np.full((rows, self.seq_len), blank)
        np.put_along_axis(inputs, places, symbols, axis=1)
        inputs[:, ask - 1 if mad else slice(ask, None)] = marker
        labels = np.full_like(inputs, IGNORED)
        labels[:, ask:] = symbols
        return inputs, labels
