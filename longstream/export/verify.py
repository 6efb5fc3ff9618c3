"""An exported file beside the model it was made from, over some thousand steps."""

from __future__ import annotations

from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch

from longstream.export.adapters import Adapter
from longstream.export.graphs import Layout
from longstream.export.sessions import Arrays, Session

ROWS = 2
_LENGTHS = (1, 7, 64, 2, 33, 128, 16)  # of chunks, where a graph takes any


class Difference(NamedTuple):
    """The largest difference between a graph and its model: |a - b| over the largest |b| of that tensor."""

    relative: float
    name: str  # of the output
    steps: int  # compared


@torch.no_grad()
def compare(model: Adapter, session: Session, layout: Layout, steps: int) -> Difference:
    """Run both on the same random inputs from the same first state, each on its own; beyond a model's longest
    sequence both begin anew.
    """
    about, most = session.about, model.max_seq_len
    fixed = about["length"] if isinstance(about["length"], int) else None
    lengths = cycle([fixed] if fixed else _LENGTHS)
    worst, largest = dict.fromkeys(_names(about), 0.0), dict.fromkeys(_names(about), 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state, at, done = model.init_state(ROWS), 0, 0
        carried = first = _arrays(layout, state)
        while done < steps:
            n = min(next(lengths), most or steps)
            if fixed is None:
                n = min(n, steps - done)
            if most is not None and at + n > most:
                state, at, carried = model.init_state(ROWS), 0, first
            if about["graph"] == "step":
                x = model.example(ROWS)
                y, state = model.step(x, state)
            else:
                x = model.example(ROWS, n)
                y, state = model.chunk(x, state)
            got, carried = session.run(x.numpy(), carried)
            at, done = at + n, done + n
            for name, mine, theirs in zip(
                worst, [got, *carried.values()], [y.numpy(), *_arrays(layout, state).values()], strict=True
            ):
                worst[name] = max(worst[name], _distance(mine, theirs))
                largest[name] = max(largest[name], float(np.abs(theirs).max(initial=0)))
    relative = {name: 0.0 if not worst[name] else worst[name] / max(largest[name], 1e-30) for name in worst}
    name = max(relative, key=lambda name: relative[name])
    return Difference(relative[name], name, done)


def _names(about: dict[str, Any]) -> list[str]:
    return [output["name"] for output in about["outputs"]]


def _arrays(layout: Layout, state: Any) -> Arrays:
    return {name: tensor.numpy() for name, tensor in layout.split(state).items()}


def _distance(mine: np.ndarray, theirs: np.ndarray) -> float:
    if mine.shape != theirs.shape:
        return float("inf")
    distance = float(np.abs(mine.astype(np.float64) - theirs).max(initial=0))
    return distance if np.isfinite(distance) else float("inf")
