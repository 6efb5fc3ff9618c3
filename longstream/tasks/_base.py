"""What every generator of token sequences is: a frozen dataclass that makes examples from a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

import numpy as np

IGNORED = -100  # a label that is not asked for; torch's cross entropy leaves it out
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Examples(NamedTuple):
    """Token sequences, and what a model is to say at which of their places."""

    inputs: np.ndarray  # (N, T) int64; shorter sequences end in pads, which no earlier place sees
    labels: np.ndarray  # (N, T) int64: what the output AT place t is to be (not shifted), IGNORED where not asked


@dataclass(frozen=True, kw_only=True)
class TokenTask(ABC):
    """A task whose examples are token sequences with labels at some places.

    Subclasses are frozen, keyword-only dataclasses: their fields are the difficulty, each with a default and a range
    that ``__post_init__`` checks, and their docstrings name the source of the rules.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens are 0 ... vocab_size - 1, in inputs and in labels."""

    @property
    @abstractmethod
    def length(self) -> int:
        """T: tokens of the longest sequence."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The accuracy of guessing, in [0, 1]."""

    @abstractmethod
    def make(self, count: int, seed: int, split: Split = "train") -> Examples:
        """``count`` examples that depend on these fields, the seed and the split alone.

        The first examples of a larger count need not be those of a smaller one. Splits share no example by
        construction, or by so large a space of examples that sharing one is as good as impossible; the docstring says
        which.

        Raises:
            ValueError: count < 1, an unknown split, or more examples than a task of real data has.
            FileNotFoundError: its data is not there; the message says how to get it.
        """

    def size(self, split: Split = "train") -> int | None:
        """How many examples there are; None for generators, which do not run out."""
        return None

    def describe(self) -> str:
        """The task in the form that `make_task` reads, without what is as by default."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return self.name + (":" + ",".join(changed) if changed else "")


def generator(name: str, seed: int, split: Split) -> np.random.Generator:
    """The random numbers of a task, a seed and a split; no two of them share any.

    Raises:
        ValueError: an unknown split, or a negative seed.
    """
    if split not in SPLITS:
        raise ValueError(f"{name}: split must be one of {list(SPLITS)}, got {split!r}")
    if seed < 0:
        raise ValueError(f"{name}: seed must be >= 0, got {seed}")
    return np.random.default_rng([*name.encode(), SPLITS.index(split), seed])
