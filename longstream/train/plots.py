"""The loss plot of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longstream.train.rundir import written_beside

POINTS = 500  # a training curve is averaged down to at most this many points


def plot_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bits per byte against steps, training and validation, from the rows of metrics.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")  # without pyplot: no global state, no display
    axes = figure.add_subplot()
    train = [(row["step"], row["bits_per_byte"]) for row in rows if row["kind"] == "train"]
    validation = [(row["step"], row["bits_per_byte"]) for row in rows if row["kind"] == "validation"]
    if train:
        axes.plot(*zip(*_thinned(train), strict=True), label="training", linewidth=1)
    if validation:
        axes.plot(
            *zip(*validation, strict=True), label=f"validation, last {validation[-1][1]:.3f}", marker="o", markersize=3
        )
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    if train or validation:
        axes.legend()
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of as many neighbors as bring the curve down to POINTS points."""
    size = -(-len(points) // POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
