"""The pictures of a report, each drawn on a matplotlib figure that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_NUMBERED = 20  # classes whose confusion matrix has room for numbers
_FANS = 8  # forecasts that one panel shows


def draw_confusion(figure: Any, counts: np.ndarray, classes: Sequence[str]) -> None:
    """The confusion matrix: colors are shares of a true class, numbers are counts."""
    n = len(classes)
    size = min(3.2 + 0.42 * n, 13)
    figure.set_size_inches(size + 1.2, size)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    font = 9 if n <= _NUMBERED else 6
    lines = max(map(len, classes)) > 3
    axes.set_xticks(range(n), classes, rotation=90 if lines else 0, fontsize=font)
    axes.set_yticks(range(n), classes, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if n <= _NUMBERED:
        for i in range(n):
            for j in range(n):
                if counts[i, j]:
                    color = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color=color, fontsize=8)


def draw_regression(figure: Any, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> None:
    """Predicted against true values, a panel for each target (of the first nine)."""
    shown = min(len(names), 9)
    columns = min(shown, 3)
    rows = -(-shown // columns)
    figure.set_size_inches(1 + 3.6 * columns, 0.6 + 3.4 * rows)
    for k in range(shown):
        axes = figure.add_subplot(rows, columns, k + 1)
        known = ~np.isnan(true[:, k])
        x, y = true[known, k], predicted[known, k]
        axes.scatter(x, y, s=14, alpha=0.6, linewidths=0)
        if len(x):
            ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
            axes.plot(ends, ends, color="black", linewidth=0.8)  # where they are equal
        axes.set_title(names[k], fontsize=10)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted")
        axes.grid(alpha=0.3)


def draw_horizons(figure: Any, errors: dict[str, Sequence[float]], label: str) -> None:
    """Errors against frames ahead, a line for each forecast; ``label`` says which errors."""
    figure.set_size_inches(7, 4)
    axes = figure.add_subplot()
    for name, line in errors.items():
        axes.plot(range(1, len(line) + 1), line, marker="o", markersize=3, label=name)
    axes.set_xlabel("frames ahead")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def draw_forecasts(figure: Any, panels: Sequence[dict[str, Any]]) -> None:
    """True values and forecasts, a panel for each of ``panels``.

    Each is a dictionary: title; first, the number of the first frame shown; values (T,); start, the first held-out
    frame; forecasts, pairs of an origin and its (horizon,) values.
    """
    figure.set_size_inches(9, 0.8 + 2.6 * len(panels))
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, i + 1)
        frames = np.arange(panel["first"], panel["first"] + len(panel["values"]))
        axes.plot(frames, panel["values"], color="black", linewidth=1, label="true")
        axes.axvline(panel["start"], color="gray", linewidth=0.8, linestyle=":", label="held out from here")
        for number, (origin, forecast) in enumerate(panel["forecasts"]):
            ahead = origin + 1 + np.arange(len(forecast))
            style = {"marker": "o", "markersize": 3} if len(forecast) == 1 else {}
            axes.plot(ahead, forecast, color="C1", linewidth=1.2, label=None if number else "forecasts", **style)
        axes.set_title(panel["title"], fontsize=10, loc="left")
        axes.set_xlabel("frame")
        axes.grid(alpha=0.3)
        if not i:
            axes.legend(fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)


def spread(origins: np.ndarray, horizon: int) -> list[int]:
    """Which of the origins (places in the array) to draw: some that do not overlap, from the first one on."""
    chosen, free = [], -1
    for place, origin in enumerate(origins.tolist()):
        if origin >= free:
            chosen.append(place)
            free = origin + horizon
        if len(chosen) == _FANS:
            break
    return chosen
