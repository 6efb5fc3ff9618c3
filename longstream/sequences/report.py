"""The held-out report of a task: figures, a page of text, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Report:
    """What came of a model on held-out sequences.

    Attributes:
        task:       "classify", "regress" or "forecast".
        score:      the figure to go by, higher is better.
        score_name: its name.
        loss:       the training's loss on these sequences, without class weights.
        metrics:    everything measured, as plain JSON.
        pictures:   file names and what draws them, a function of a matplotlib figure.
    """

    task: str
    score: float
    score_name: str
    loss: float
    metrics: dict[str, Any]
    pictures: dict[str, Callable[[Any], None]] = field(default_factory=dict, repr=False)

    @property
    def rank(self) -> tuple[float, float]:
        """By which the better of two is told: the score, and among equals the loss."""
        return self.score, -self.loss

    def to_json(self) -> str:
        """The figures as JSON; what is not a number is null."""
        whole = {"task": self.task, "score": self.score, "score_name": self.score_name, "loss": self.loss}
        return json.dumps(_plain({**whole, **self.metrics}), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """The figures as a page."""
        return "\n".join(_PAGES[self.task](self)) + "\n"

    def draw(self, folder: str | Path) -> list[Path]:
        """Write the pictures as PNG files into ``folder``, each whole or not at all; their paths."""
        from matplotlib.figure import Figure

        paths = []
        for name, draw in self.pictures.items():
            figure = Figure(layout="constrained")  # without pyplot: no global state, no display
            draw(figure)
            path = Path(folder) / name
            beside = path.with_name(f".writing-{name}")
            try:
                figure.savefig(beside, format="png", dpi=120)
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
            paths.append(path)
        return paths


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(figure(cell) for cell in line) + " |" for line in lines]


def figure(value: object) -> str:
    """A number for people: four digits, "-" for none."""
    if isinstance(value, float):
        return "-" if not math.isfinite(value) else f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _classify_page(report: Report) -> list[str]:
    metrics, names = report.metrics, list(report.metrics["classes"])
    rows = [[name, *row.values()] for name, row in metrics["classes"].items()]
    lines = [
        f"# Classification of {metrics['sequences']:,} held-out sequences",
        "",
        *table(
            ["accuracy", "balanced accuracy", "macro F1", "cross entropy (nats)"],
            [[metrics["accuracy"], metrics["balanced_accuracy"], metrics["macro_f1"], report.loss]],
        ),
        "",
        *table(["class", "precision", "recall", "F1", "sequences"], rows),
    ]
    if len(names) <= _MOST_COLUMNS:
        counts = [[name, *row] for name, row in zip(names, metrics["confusion"], strict=True)]
        lines += ["", "True classes in rows, predicted ones in columns:", "", *table(["", *names], counts)]
    return lines


def _regress_page(report: Report) -> list[str]:
    metrics = report.metrics
    rows = [[name, *row.values()] for name, row in metrics["targets"].items()]
    if len(rows) > 1:
        rows.append(["mean", *(metrics[key] for key in ("mae", "rmse", "r2")), ""])
    return [
        f"# Regression of {metrics['sequences']:,} held-out sequences",
        "",
        *table(["target", "MAE", "RMSE", "R2", "sequences"], rows),
    ]


def forecast_name(key: str, season: int) -> str:
    """What a forecast of the metrics is called for people."""
    return {"model": "model", "naive": "last value", "seasonal_naive": f"last season ({season} frames)"}[key]


def horizon_errors(metrics: dict[str, Any]) -> tuple[str, str]:
    """Which error by frames ahead to show, and what it is called: channels have units of their own."""
    if len(metrics["channels"]) == 1:
        return "mae", "mean absolute error"
    return "scaled_mae", "mean absolute error / standard deviation"


def _forecast_page(report: Report) -> list[str]:
    metrics = report.metrics
    shown = list(metrics["errors"])
    names = [forecast_name(key, metrics["season"]) for key in shown]
    totals = zip(names, metrics["errors"].values(), strict=True)
    rows = [[name, *(row[kind] for kind in ("mae", "rmse", "mase"))] for name, row in totals]
    kind, label = horizon_errors(metrics)
    ahead = [[k + 1, *(metrics["by_horizon"][key][kind][k] for key in shown)] for k in range(metrics["horizon"])]
    lines = [
        f"# Forecasts of {metrics['horizon']} frames after {metrics['origins']:,} frames of the held-out end",
        "",
        *table(["forecast", "MAE", "RMSE", "MASE"], rows),
        "",
        f"{label.capitalize()}, by frames ahead:",
        "",
        *table(["ahead", *names], ahead),
    ]
    if len(metrics["channels"]) > 1:
        each = [[name, *(row[key] for key in shown)] for name, row in metrics["channels"].items()]
        lines += ["", "Mean absolute error, by channel:", "", *table(["channel", *names], each)]
    return lines


_MOST_COLUMNS = 25  # of a confusion matrix in text
_PAGES = {"classify": _classify_page, "regress": _regress_page, "forecast": _forecast_page}
