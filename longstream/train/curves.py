"""The pictures of `longstream compare`: one line for each run, the same color in all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longstream.train.plots import thinned
from longstream.train.rundir import written_beside

# Of Okabe and Ito, who made them to be told apart by everybody.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#8C564B")
TITLE_LETTERS = 11  # of a title, on an inch
Points = list[tuple[float, float]]


class Line(NamedTuple):
    """One run in a panel."""

    name: str
    points: Points
    faint: Points | tuple[()] = ()  # training, behind the held-out line
    hollow: Points | tuple[()] = ()  # beyond what a model was trained on


class Panel(NamedTuple):
    """Axes with a line for each run; those of one picture stand side by side."""

    x: str
    y: str
    lines: Sequence[Line]
    log_x: int = 0  # base of a logarithmic axis; 0 is linear
    log_y: int = 0


def write_title(figure: Any, title: str) -> None:
    """At the top left, on as many lines as the figure's width asks for."""
    lines = textwrap.fill(title, int(TITLE_LETTERS * figure.get_figwidth()))
    figure.suptitle(lines, x=0.01, ha="left", fontsize=11, fontweight="bold")


def draw_panels(path: Path, title: str, panels: Sequence[Panel], names: Sequence[str]) -> bool:
    """Write a picture; False, and no file, where there is nothing to draw. ``names`` decide the colors."""
    from matplotlib.figure import Figure

    panels = [panel for panel in panels if any(line.points or line.hollow for line in panel.lines)]
    if not panels:
        return False
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")  # no pyplot: no global state, no display
    write_title(figure, title)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for line in panel.lines:
            _draw(axes, line, COLORS[list(names).index(line.name) % len(COLORS)])
        _scale(axes, panel)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.y)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return True


def _draw(axes: Any, line: Line, color: str) -> None:
    if line.faint:
        axes.plot(*zip(*thinned(line.faint), strict=True), color=color, alpha=0.3, linewidth=0.9)
    if line.points:
        axes.plot(
            *zip(*line.points, strict=True), color=color, label=line.name, marker="o", markersize=3.5, linewidth=1.6
        )
    if line.hollow:
        joined = [*line.points[-1:], *line.hollow]
        axes.plot(*zip(*joined, strict=True), color=color, linestyle=":", linewidth=1.2)
        label = None if line.points else line.name
        style = {"linestyle": "", "marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
        axes.plot(*zip(*line.hollow, strict=True), color=color, label=label, **style)


def _scale(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    if panel.log_x:
        axes.set_xscale("log", base=panel.log_x)
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.log_y:
        axes.set_yscale("log", base=panel.log_y)
        axes.yaxis.set_minor_formatter(NullFormatter())
    largest = max(x for line in panel.lines for x, _ in [*line.points, *line.hollow, *line.faint])
    if panel.log_x or largest >= 1e4:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x, 1024 if panel.log_x == 2 else 1000)))
    if panel.log_y:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))


def short(number: float, thousand: int = 1000) -> str:
    """A number with at most three digits and k, M or G, of which k is a ``thousand``."""
    for power, letter in ((3, "G"), (2, "M"), (1, "k")):
        if abs(number) >= thousand**power:
            return f"{number / thousand**power:.3g}{letter}"
    return f"{number:.3g}"
