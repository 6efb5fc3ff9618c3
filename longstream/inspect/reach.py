"""How far back a changed token still moves the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longstream.inspect.subject import Subject

CHANGES = 16  # tokens or frames changed, one at a time
FIRST = 1 / 4  # of a sequence: changes fall into it, and what follows shows what is left of them
STILL = 0.01  # of what a change does where it stands: less is taken for nothing


@dataclass(frozen=True)
class Reach:
    """What a changed token moves, by how many tokens ago it stood there.

    The output of a language model is its distribution of the next token, and a change of it is half the sum of absolute
    differences, from 0 to 1 (total variation). Of frames, the output is the network's vector of the frame, and a change
    its relative l2 norm.

    Attributes:
        after, before: (P,) a bucket has the distances from ``after`` to below ``before``; the first is the place.
        moved:         (n, D) what each of n changed tokens moves 0 ... D - 1 tokens on.
    """

    after: tuple[int, ...]
    before: tuple[int, ...]
    moved: Tensor

    @property
    def changes(self) -> Tensor:
        """(P, n) the largest change in each bucket."""
        return torch.stack([self.moved[:, a:b].amax(1) for a, b in zip(self.after, self.before, strict=True)])

    @property
    def median(self) -> list[float]:
        """By bucket, over the changed tokens."""
        return self.changes.median(1).values.tolist()

    @property
    def farthest(self) -> int:
        """The largest distance looked at."""
        return self.before[-1] - 1

    def distance(self, part: float = STILL) -> int:
        """The largest distance at which a change still moves ``part`` of what it moves where it stands: the median of
        the changed tokens; one that moves nothing counts as 0.
        """
        still = (self.moved >= part * self.moved[:, :1]) & (self.moved[:, :1] > 0)  # (n, D)
        return int((still * torch.arange(still.shape[1])).amax(1).median())

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        changes = self.changes
        quartiles = [changes.quantile(q, dim=1).tolist() for q in (0.25, 0.75)]
        return {
            "after": self.after,
            "before": self.before,
            "median": self.median,
            "quartiles": quartiles,
            "changed": len(self.moved),
            "reach": self.distance(),
        }


def measure_reach(subject: Subject, *, changes: int = CHANGES, seed: int = 0) -> Reach | None:
    """Change one token or frame at a time, and see what moves behind it; None for a model that is not causal.

    Args:
        subject: its inputs are changed in their first quarter, to another token or frame of the same inputs.
        changes: how many times.
        seed:    of the places and of what is put there.
    """
    T = subject.length
    if not subject.causal or T < 2:
        return None
    random = np.random.default_rng(seed)
    farthest = T - max(1, int(FIRST * T))
    edges = [0, *(2**k for k in range(farthest.bit_length())), farthest + 1]
    edges = sorted({edge for edge in edges if edge <= farthest + 1})
    found = []
    for turn in range(changes):
        row = subject.inputs[turn % len(subject.inputs)]
        place = int(random.integers(T - farthest))
        pair = torch.stack([row, row])
        pair[1, place] = _other(subject.inputs, row[place], random)
        found.append(_moved(subject, subject.run(pair)[0][:, place : place + farthest + 1]).double())
    return Reach(tuple(edges[:-1]), tuple(edges[1:]), torch.stack(found))


def _moved(subject: Subject, hidden: Tensor) -> Tensor:
    """(T,) from the vectors (2, T, D) of the clean and of the changed sequence."""
    if subject.unit == "tokens":
        clean, changed = subject.predict(hidden)
        return (clean - changed).abs().sum(-1) / 2
    clean, changed = hidden.float()
    return (clean - changed).norm(dim=-1) / clean.norm(dim=-1).clamp(min=1e-30)


def _other(inputs: Tensor, now: Tensor, random: np.random.Generator) -> Tensor:
    """Another token or frame of the inputs; of inputs that are all the same, another one still."""
    flat = inputs.flatten(0, 1)
    for _ in range(100):
        other = flat[int(random.integers(len(flat)))]
        if not torch.equal(other.nan_to_num(), now.nan_to_num()):
            return other
    return now + 1 if inputs.is_floating_point() else (now == 0).to(now.dtype)
