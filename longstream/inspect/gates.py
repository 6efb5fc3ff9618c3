"""The forget gates of a model on data: how long they remember, what forces them to, and where they are stuck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longstream.inspect.subject import Subject
from longstream.train.layer_scalars import LONGEST, Gates, recorded_gates


@dataclass(frozen=True)
class LayerGates:
    """The forget gates f of one layer over N tokens, for each of E channels, in tokens unless said otherwise.

    Attributes:
        layer:    its number, from 0.
        forced:   (E,) 1 / (1 - bound): the shortest time scale that the lower bound leaves.
        low, median, high: (E,) the 10 %, 50 % and 90 % quantiles of 1 / (1 - f) over the tokens.
        lasting:  (E,) 1 / (1 - g) of the constant gate g that lets through as much over all tokens (the geometric mean
                  of f): what decides how much is left after many.
        at_one:   the share of gates within 1e-3 of 1.
        at_bound: the share within 1e-3 of the lower bound; of 0 where there is none.
        stuck:    the share that is one or the other.
    """

    layer: int
    forced: Tensor
    low: Tensor
    median: Tensor
    high: Tensor
    lasting: Tensor
    at_one: float
    at_bound: float
    stuck: float

    def quantile(self, q: float) -> float:
        """Of the lasting time scales over the channels."""
        return float(self.lasting.quantile(q))

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, times to five digits."""
        times = {name: getattr(self, name) for name in ("forced", "low", "median", "high", "lasting")}
        told = {name: [float(f"{value:.5g}") for value in part.tolist()] for name, part in times.items()}
        return {"layer": self.layer, "at_one": self.at_one, "at_bound": self.at_bound, "stuck": self.stuck, **told}


def measure_gates(subject: Subject) -> list[LayerGates]:
    """The gates of every layer that has some, on the subject's inputs.

    A layer that runs more than once over them (one that scans images by rows and columns) is taken the last time.
    """
    found: dict[int, LayerGates] = {}
    with recorded_gates(subject.backbone, lambda gates: found.update({gates.layer: summarize(gates)})):
        subject.run(subject.inputs)
    return [found[layer] for layer in sorted(found)]


def summarize(gates: Gates) -> LayerGates:
    """The figures of one layer."""
    shortest = 1 / LONGEST
    times = 1 / gates.input_gate.double().clamp(min=shortest)  # (N, E)
    low, median, high = (_quantile(times, q) for q in (0.1, 0.5, 0.9))
    return LayerGates(
        layer=gates.layer,
        forced=1 / gates.complement.double().clamp(min=shortest),
        low=low,
        median=median,
        high=high,
        lasting=gates.lasting,
        at_one=float(gates.at_one.double().mean()),
        at_bound=float(gates.at_bound.double().mean()),
        stuck=float((gates.at_one | gates.at_bound).double().mean()),
    )


def _quantile(times: Tensor, q: float) -> Tensor:
    """By channel, the nearest value below: torch's own interpolates, and refuses more than 16 million numbers."""
    return times.kthvalue(1 + int(q * (len(times) - 1)), dim=0).values


def describe_gates(gates: list[LayerGates], unit: str) -> list[tuple[str, ...]]:
    """Rows of a table, a layer each."""

    def short(value: float) -> str:
        return f"{value:,.1f}" if value < 100 else f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"

    rows = []
    for each in gates:
        forced = float(torch.median(each.forced))
        quantiles = (short(each.quantile(q)) for q in (0.1, 0.5, 0.9))
        shares = (f"{100 * share:.1f} %" for share in (each.at_one, each.at_bound))
        rows.append((f"layer {each.layer}", short(forced), *quantiles, *shares))
    return rows
