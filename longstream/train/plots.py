"""The plot of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longstream.train.rundir import written_beside
from longstream.train.task import Curve

POINTS = 500  # a training curve is averaged down to at most this many points


def plot_run(rows: list[dict[str, Any]], path: Path, curve: Curve) -> None:
    """Draw the rows of metrics.jsonl against steps: the task's figure, and the loss beside it where that is another."""
    from matplotlib.figure import Figure

    train = [row for row in rows if row["kind"] == "train"]
    validation = [row for row in rows if row["kind"] == "validation"]
    panels = [curve]
    if train and curve.key not in train[0]:
        panels.insert(0, Curve("loss", "loss"))
    figure = Figure(figsize=(7 if len(panels) == 1 else 11, 4), layout="constrained")  # no pyplot: no global state
    for axes, (key, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if points := [(row["step"], row[key]) for row in train if key in row]:
            axes.plot(*zip(*thinned(points), strict=True), label="training", color="C0", linewidth=1)
        if points := [(row["step"], row[key]) for row in validation if key in row]:
            last = f"validation, last {points[-1][1]:.3f}"
            axes.plot(*zip(*points, strict=True), label=last, color="C1", marker="o", markersize=3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of as many neighbors as bring the curve down to POINTS points."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
