"""Pictures of what each run measures at several places, as its accuracy by length."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longstream.studies.pictures import possible
from longstream.studies.statistics import summarize
from longstream.studies.study import Result
from longstream.train.curves import COLORS, short, write_title
from longstream.train.rundir import written_beside

COLUMNS = 3  # panels side by side
ASIDE = 0.04  # octaves by which lines stand aside from each other, so that their intervals can be seen


class CurvePanel(NamedTuple):
    """Axes: of a group's variants the figures whose keys begin with ``prefix`` and end in a number, the place on x."""

    group: str
    title: str
    prefix: str  # as "length=", of "length=128"
    x: str
    y: str
    log_x: int = 2  # base; 0 is linear
    log_y: int = 0
    scale: float = 1.0  # on the figures, as 100 for percent
    trained: float | None = None  # where on x the models were trained


def draw_curves(path: Path, title: str, panels: Sequence[CurvePanel], results: Sequence[Result]) -> bool:
    """Write a picture of means and 95 % intervals over seeds; False, and no file, where there is nothing to draw.

    Runs that diverged are left out here; the tables count them.
    """
    from matplotlib.figure import Figure

    done = [result for result in results if result.status == "done"]
    points = {panel: _points(panel, [r for r in done if r.run.group == panel.group]) for panel in panels}
    panels = [panel for panel in panels if points[panel]]
    if not panels:
        return False
    names = list(dict.fromkeys(result.run.variant for result in done))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.6 + 4.6 * columns, 0.8 + 3.3 * rows), layout="constrained")
    write_title(figure, title)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel, points[panel], names)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return True


def _points(panel: CurvePanel, results: Sequence[Result]) -> dict[str, list[tuple[float, list[float]]]]:
    """By variant: places on x, and the figures of the seeds there."""
    found: dict[str, dict[float, list[float]]] = {}
    for result in results:
        for key, value in result.measured.items():
            if key.startswith(panel.prefix) and re.fullmatch(r"\d+(\.\d+)?", number := key[len(panel.prefix) :]):
                found.setdefault(result.run.variant, {}).setdefault(float(number), []).append(value * panel.scale)
    return {variant: sorted(at.items()) for variant, at in found.items()}


def _draw(axes: Any, panel: CurvePanel, lines: Mapping[str, Any], names: Sequence[str]) -> None:
    for variant, points in lines.items():
        color = COLORS[names.index(variant) % len(COLORS)]
        summaries = [summarize(values) for _, values in points]
        aside = 2 ** (ASIDE * (names.index(variant) - (len(names) - 1) / 2)) if panel.log_x else 1.0
        xs, means = [x * aside for x, _ in points], [s.mean for s in summaries]
        halves = [s.half or 0.0 for s in summaries]
        axes.errorbar(xs, means, yerr=halves, color=color, marker="o", markersize=3.5, capsize=2, label=variant)
    if panel.trained is not None:
        axes.axvline(panel.trained, color="gray", linewidth=0.9, linestyle=":")
    if panel.log_x:
        from matplotlib.ticker import FuncFormatter, NullLocator

        axes.set_xscale("log", base=panel.log_x)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x, 1024 if panel.log_x == 2 else 1000)))
    if panel.log_y:
        axes.set_yscale("log", base=panel.log_y)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_ylabel(panel.y, fontsize=9)
    axes.set_ylim(possible(panel.y, axes.get_ylim()))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
