"""What the generators share: checks of their fields, examples in blocks, and draws that NumPy has for one row only."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from longstream.tasks._base import Examples, Split, TokenTask, generator

_CELLS = 1 << 19  # tokens drawn at once: what is drawn beside them stays in the cache, and memory small
_FEW = 16  # draws of a row, up to which comparing each with each was measured to be faster than sorting them


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(TokenTask):
    """A task that draws its examples, many rows at once. Subclasses say how in ``_rows``."""

    @abstractmethod
    def _rows(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels, each (rows, length)."""

    def make(self, count: int, seed: int, split: Split = "train") -> Examples:
        rng = generator(self.name, seed, split)
        if count < 1:
            raise ValueError(f"{self.name}: count must be >= 1, got {count}")
        inputs, labels = (np.empty((count, self.length), np.int64) for _ in range(2))
        block = max(1, _CELLS // self.length)
        for start in range(0, count, block):
            rows = slice(start, min(start + block, count))
            inputs[rows], labels[rows] = self._rows(rng, rows.stop - start, split)
        return Examples(inputs, labels)

    def _require(self, field: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{self.name}: {field} must be {expected}, got {getattr(self, field)!r}")

    def _require_integers(self, **least: int) -> None:
        """Each field named is an integer and at least so large."""
        for field, bound in least.items():
            value: Any = getattr(self, field)
            integer = isinstance(value, int) and not isinstance(value, bool)
            self._require(field, integer and value >= bound, f"an integer >= {bound}")


def first_places(keys: np.ndarray) -> np.ndarray:
    """For each cell of (rows, n), the column of the first one in its row that holds the same."""
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    head = np.broadcast_to(np.arange(keys.shape[1]), keys.shape).copy()
    head[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    np.maximum.accumulate(head, axis=1, out=head)  # where in the order each group of equal keys begins
    first = np.empty_like(order)
    np.put_along_axis(first, order, np.take_along_axis(order, head, axis=1), axis=1)
    return first


def seen_before(keys: np.ndarray) -> np.ndarray:
    """(rows, n) bool: the cells whose key is in an earlier column of the row too."""
    return first_places(keys) != np.arange(keys.shape[1])


def draw_distinct(rng: np.random.Generator, rows: int, size: int, low: int, high: int) -> np.ndarray:
    """(rows, size) integers of [low, high), no two of a row alike, every such row as likely."""
    if size <= _FEW:
        columns = np.empty((size, rows), np.int64)
        for i in range(size):
            columns[i] = rng.integers(low, high - i, rows)
            for taken in np.sort(columns[:i], axis=0):  # counting up, the integers from one on move up by one
                columns[i] += columns[i] >= taken
        return columns.T
    if 2 * size > high - low:
        return rng.permuted(np.broadcast_to(np.arange(low, high), (rows, high - low)), axis=1)[:, :size]
    drawn = rng.integers(low, high, (rows, size))
    # Only the later ones of equal cells are drawn again. Which these are does not change if the integers are renamed,
    # so no row without repetition is likelier than another.
    while (again := seen_before(drawn)).any():
        drawn[again] = rng.integers(low, high, np.count_nonzero(again))
    return drawn


def draw_weighted(rng: np.random.Generator, rows: int, size: int, weights: np.ndarray) -> np.ndarray:
    """(rows, size) columns of ``weights`` one after the other, each in proportion to the weights that are left.

    Columns that wait exponential times with these rates arrive in this order.
    """
    arrival = rng.standard_exponential((rows, len(weights))) / weights
    first = np.argpartition(arrival, size - 1, axis=1)[:, :size]
    return np.take_along_axis(first, np.argsort(np.take_along_axis(arrival, first, axis=1), axis=1), axis=1)


def draw_one(rng: np.random.Generator, allowed: np.ndarray) -> np.ndarray:
    """For each row of a bool (rows, n), one of its true columns, each as likely; a row needs one."""
    return np.where(allowed, rng.random(allowed.shape), -1.0).argmax(axis=1)
