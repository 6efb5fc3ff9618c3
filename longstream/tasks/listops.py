"""ListOps: nested lists of MIN, MAX, MED and SM (sum modulo 10) over digits; the value of the whole is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from longstream.tasks._base import IGNORED, Examples, Split, TokenTask, generator
from longstream.tasks.files import read_listops, split_rows

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
MIN, MAX, MED, SM = range(10, 14)  # tokens 0 ... 9 are the digits
CLOSE, PAD = 14, 15
WORDS = {str(digit): digit for digit in range(10)} | {op: MIN + at for at, op in enumerate(OPERATORS)} | {"]": CLOSE}

DIGIT_SHARE = 0.75  # of the places of a tree above max_depth that are a digit, not an operator
BATCH_TOKENS = 4_000_000  # that a batch of trees may come to
MOST_TRIES = 2_000_000  # trees without one of the wanted length, before giving up


class Trees(NamedTuple):
    """Trees as tokens, with their values."""

    tokens: np.ndarray  # (N, T) uint8, PAD behind the end
    lengths: np.ndarray  # (N,) int64
    values: np.ndarray  # (N,) int64 in 0 ... 9


class Level(NamedTuple):
    """All nodes of a batch at one depth, tree by tree; the children of one operator lie side by side."""

    tree: np.ndarray  # (n,) int32: which of the batch
    children: np.ndarray  # (n,) int8: of an operator; 0 for a digit


@dataclass(frozen=True, kw_only=True)
class ListOps(TokenTask):
    """ListOps of Long Range Arena (Tay et al. 2020, arXiv:2011.04006), by the rules of its generator.

    A place above ``max_depth`` is a digit with probability 3/4, else an operator, uniform in MIN, MAX, MED and SM, of
    2 ... max_args places, uniform; at ``max_depth`` all are digits. A tree has a token for each digit and two for each
    operator, "[MAX" and "]"; those of more than ``min_length`` and less than ``max_length`` tokens are kept. MED of an
    even number is the mean of the two in the middle, truncated. The digit that is the value is asked at the last
    bracket.

    Unlike the benchmark's own files these are seeded, and need no order of a Python set to be split. Trees are not
    checked for being new: of 50 tokens or more two are alike as good as never, within a split or between splits;
    very short ones do repeat. The operator at the root makes 0 and 9 the commonest answers.

    Args:
        min_length, max_length: tokens of a tree, both bounds excluded; at least 1 and 3, so that the root is an
                                operator.
        max_depth:              of a tree; the root is at depth 1.
        max_args:               of an operator, at most.
        source:                 folder of the benchmark's own files (basic_train.tsv, basic_val.tsv, basic_test.tsv),
                                or one such file, of which a tenth is held out for validation and a tenth for the test;
                                "": the trees are made. Of files only max_length counts: longer trees are refused.
    """

    name: ClassVar[str] = "listops"

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10
    source: str = ""

    def __post_init__(self) -> None:
        for field, least in (("min_length", 1), ("max_length", 3), ("max_depth", 2), ("max_args", 2)):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"ListOps: {field} must be >= {least}, got {value}")
        if not self.source and self.max_length - self.min_length < 2:
            raise ValueError(
                f"ListOps: max_length must be at least min_length + 2, both being excluded, got {self.max_length} with"
                f" min_length {self.min_length}"
            )
        for field, most in (("max_length", 1_000_000), ("max_args", 100), ("max_depth", 1000)):
            if getattr(self, field) > most:
                raise ValueError(f"ListOps: {field} must be <= {most}, got {getattr(self, field)}")
        if not self.source and (largest := self._largest()) <= self.min_length:
            raise ValueError(
                f"ListOps: min_length must be less than the {largest} tokens of the largest tree of max_depth"
                f" {self.max_depth} and max_args {self.max_args}, got {self.min_length}"
            )

    @property
    def vocab_size(self) -> int:
        """Ten digits, four operators, the closing bracket and the pad."""
        return 16

    @property
    def length(self) -> int:
        """Tokens of the longest tree."""
        return self.max_length - 1

    @property
    def chance(self) -> float:
        """That of one digit in ten; to answer always 0 is right in 17 % of the benchmark's trees."""
        return 0.1

    def make(self, count: int, seed: int, split: Split = "train") -> Examples:
        """Trees as in ``trees``, the value asked at each one's last token."""
        trees = self.trees(count, seed, split)
        labels = np.full(trees.tokens.shape, IGNORED, np.int64)
        labels[np.arange(count), trees.lengths - 1] = trees.values
        return Examples(trees.tokens.astype(np.int64), labels)

    def trees(self, count: int, seed: int, split: Split = "train") -> Trees:
        """``count`` trees, an eighth of the memory that `make` needs.

        Raises:
            ValueError: as `make`; also when as good as no tree has such a length.
        """
        random = generator(self.name, seed, split)
        if count < 1:
            raise ValueError(f"listops: count must be >= 1, got {count}")
        if self.source:
            return self._from_files(count, random, split)
        tokens = np.full((count, self.length), PAD, np.uint8)
        lengths, values = np.empty(count, np.int64), np.empty(count, np.int64)
        batch = max(64, BATCH_TOKENS // self.max_length)
        done = tries = 0
        while done < count:
            levels, kept = self._shapes(batch, random)
            tries += batch
            if done == 0 and tries >= MOST_TRIES and kept == 0:
                raise ValueError(
                    f"ListOps: min_length {self.min_length} and max_length {self.max_length} let none of {tries} trees"
                    f" pass at max_depth {self.max_depth} and max_args {self.max_args}; take a wider range"
                )
            if kept == 0:
                continue
            new = _fill(levels, kept, self.length, random)
            now = min(kept, count - done)
            for all_of_them, part in zip((tokens, lengths, values), new, strict=True):
                all_of_them[done : done + now] = part[:now]
            done += now
        return Trees(tokens, lengths, values)

    def size(self, split: Split = "train") -> int | None:
        """Of the benchmark's files, their rows."""
        return len(_rows(self.source, split)) if self.source else None

    def _largest(self) -> int:
        """Tokens of the largest tree, or some number above max_length."""
        tokens = 1
        for _ in range(self.max_depth - 1):
            tokens = 2 + self.max_args * tokens
            if tokens > self.max_length:
                break
        return tokens

    def _shapes(self, batch: int, random: np.random.Generator) -> tuple[list[Level], int]:
        """The nodes by depth of those of ``batch`` trees whose length is wanted, numbered anew from 0; how many.

        Level by level for all trees together; a tree that is already too long is not gone on with. The root of a tree
        of more than one token is an operator, so it is not drawn.
        """
        length = np.zeros(batch, np.int64)
        tree = np.arange(batch, dtype=np.int32)
        levels = []
        for depth in range(1, self.max_depth + 1):
            children = np.zeros(len(tree), np.int8)
            if depth < self.max_depth:
                some = slice(None) if depth == 1 else np.flatnonzero(random.random(len(tree), np.float32) > DIGIT_SHARE)
                children[some] = random.integers(2, self.max_args + 1, len(children[some]), np.int8)
            levels.append(Level(tree, children))
            # a digit is a token, an operator two, and each child one at least
            length += np.bincount(tree, (children > 0) + 1.0, batch).astype(np.int64)
            to_come = np.bincount(tree, children, batch).astype(np.int64)
            fits = length + to_come < self.max_length
            children[~fits[tree]] = 0  # those of a tree that is dropped anyway
            length[~fits] = self.max_length
            tree = np.repeat(tree, children)
            if len(tree) == 0:
                break
        keep = (length > self.min_length) & (length < self.max_length)
        number = (np.cumsum(keep) - 1).astype(np.int32)
        selected = []
        for level in levels:
            mask = keep[level.tree]
            selected.append(Level(number[level.tree[mask]], level.children[mask]))
        return [level for level in selected if len(level.tree)], int(keep.sum())

    def _from_files(self, count: int, random: np.random.Generator, split: Split) -> Trees:
        rows = _rows(self.source, split)
        if count > len(rows):
            raise ValueError(f"listops: count must be <= {len(rows)}, the {split} trees of {self.source}, got {count}")
        tokens = np.full((count, self.length), PAD, np.uint8)
        lengths, values = np.empty(count, np.int64), np.empty(count, np.int64)
        for at, row in enumerate(random.permutation(len(rows))[:count]):
            text, value = rows[row]
            tree = [WORDS[word] for word in text.split() if word not in "()"]
            if len(tree) > self.length:
                raise ValueError(
                    f"listops: max_length must be more than {len(tree)}, the length of a tree in {self.source}, got"
                    f" {self.max_length}"
                )
            tokens[at, : len(tree)] = tree
            lengths[at], values[at] = len(tree), int(value)
        return Trees(tokens, lengths, values)


@lru_cache(6)
def _rows(source: str, split: Split) -> list[tuple[str, str]]:
    return split_rows(Path(source), split, read_listops)


def _fill(levels: list[Level], count: int, length: int, random: np.random.Generator) -> Trees:
    """Digits and operators into trees of these shapes, their values from the leaves up, their tokens from the root."""
    symbols, sizes = [], []  # by level, the deepest first: (n,) uint8, tokens of the nodes, and (n,) of their subtrees
    values = below = np.empty(0, np.uint8)
    for level in reversed(levels):
        inner = np.flatnonzero(level.children)
        symbol = random.integers(0, 10, len(level.tree), np.uint8)
        size = np.ones(len(level.tree), np.int32)
        value = symbol.copy()
        if len(inner):
            arguments = level.children[inner]
            first = _starts(arguments)
            operator = random.integers(MIN, SM + 1, len(inner), np.uint8)
            symbol[inner] = operator
            size[inner] = 2 + np.add.reduceat(below, first)
            value[inner] = _evaluate(operator, values, first, arguments)
        symbols.append(symbol)
        sizes.append(size)
        values, below = value, size
    tokens = np.full((count, length), PAD, np.uint8)
    flat = tokens.reshape(-1)
    at = np.arange(count, dtype=np.int64) * length  # where the nodes of the level go, in flat
    for depth, level in enumerate(levels):
        symbol, size = symbols[-1 - depth], sizes[-1 - depth]
        flat[at] = symbol
        inner = np.flatnonzero(level.children)
        if len(inner) == 0:
            break
        flat[at[inner] + size[inner] - 1] = CLOSE
        arguments = level.children[inner]
        before = np.cumsum(sizes[-2 - depth], dtype=np.int64) - sizes[-2 - depth]  # tokens of all nodes to the left
        at = before + np.repeat(at[inner] + 1 - before[_starts(arguments)], arguments)
    return Trees(tokens, sizes[-1].astype(np.int64), values.astype(np.int64))


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each of so many places begins, laid side by side."""
    ends = np.cumsum(counts, dtype=np.int64)
    return ends - counts


def _evaluate(operator: np.ndarray, values: np.ndarray, first: np.ndarray, arguments: np.ndarray) -> np.ndarray:
    """(n,) uint8: of each operator on the ``arguments`` values from ``first`` on."""
    result = np.minimum.reduceat(values, first)
    result = np.where(operator == MAX, np.maximum.reduceat(values, first), result)
    sums = np.add.reduceat(values, first, dtype=np.int32) % 10
    result = np.where(operator == SM, sums.astype(np.uint8), result)
    medians = np.flatnonzero(operator == MED)
    for n in np.unique(arguments[medians]):
        these = medians[arguments[medians] == n]
        rows = np.sort(values[first[these, None] + np.arange(n)], axis=1)
        result[these] = (rows[:, (n - 1) // 2] + rows[:, n // 2]) // 2  # at most 18, whole in uint8
    return result
