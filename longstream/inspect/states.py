"""How much of its recurrent state a model uses, as it reads on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longstream.inspect.subject import Subject
from longstream.layers import HGRN, HGRN2

ROWS = 4  # sequences; every state is decomposed
POINTS = 20  # of time


@dataclass(frozen=True)
class LayerRank:
    """The effective rank of one layer's state after so many tokens: the median of some sequences.

    HGRN2's state has a K x V matrix a head: its singular values count. HGRN's has a number a channel, or a complex one:
    it is taken for the diagonal matrix that it is in the recurrence, whose singular values are the sizes of the
    numbers, and "head" is all of them.

    Attributes:
        layer: its number, from 0.
        most:  the largest rank there can be, K or the number of channels.
        after: (P,) tokens taken in.
        ranks: (P, H) of each head; 0 for a state of zeros.
        sizes: (P,) the root mean square of all numbers of the state.
    """

    layer: int
    most: int
    after: tuple[int, ...]
    ranks: Tensor
    sizes: tuple[float, ...]

    @property
    def used(self) -> float:
        """The part of the largest rank that the median head uses at the end, in [0, 1]."""
        return float(self.ranks[-1].median()) / self.most

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, ranks to five digits."""
        ranks = [[float(f"{rank:.5g}") for rank in row] for row in self.ranks.tolist()]
        return {"layer": self.layer, "most": self.most, "after": self.after, "ranks": ranks, "sizes": self.sizes}


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the singular values, as shares of their sum (Roy & Vetterli 2007): (..., K, V) -> (...).

    K for an orthogonal matrix, 1 for an outer product, 0 for zeros.
    """
    return _effective_number(torch.linalg.svdvals(matrices.double()))


def _effective_number(sizes: Tensor) -> Tensor:
    """exp of the entropy of sizes >= 0 over the last dimension."""
    total = sizes.sum(-1, keepdim=True)
    shares = sizes / total.clamp(min=1e-300)
    entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


def measure_ranks(subject: Subject) -> list[LayerRank]:
    """The effective ranks of every layer of HGRN and HGRN2, over the subject's inputs; none if it is not causal."""
    kept = [i for i, mixer in enumerate(subject.mixers) if isinstance(mixer, HGRN | HGRN2)]
    if not subject.causal or not kept:
        return []
    rows, T = subject.inputs[:ROWS], subject.length
    after = sorted({int(n) for n in np.geomspace(1, T, POINTS).round()})
    ranks: dict[int, list[Tensor]] = {i: [] for i in kept}
    sizes: dict[int, list[float]] = {i: [] for i in kept}
    state, start = None, 0
    for stop in after:
        _, state = subject.run(rows[:, start:stop], state)
        assert state is not None
        for i in kept:
            layer = state.layers[i]
            tensor = layer.S if isinstance(subject.mixers[i], HGRN2) else layer.h
            ranks[i].append(_ranks(subject.mixers[i], tensor).median(0).values)
            sizes[i].append(float(tensor.double().square().mean().sqrt()))
        start = stop
    return [LayerRank(i, _most(subject.mixers[i]), tuple(after), torch.stack(ranks[i]), tuple(sizes[i])) for i in kept]


def _most(mixer: Any) -> int:
    return mixer.expand_ratio if isinstance(mixer, HGRN2) else mixer.gate_size


def _ranks(mixer: Any, tensor: Tensor) -> Tensor:
    """(rows, H)."""
    if isinstance(mixer, HGRN2):
        return effective_rank(tensor)  # (B, H, K, V)
    h = tensor.double()
    h = h.norm(dim=1) if mixer.unit == "complex" else h.abs()  # (B, E)
    return _effective_number(h)[:, None]
