"""How many steps took longer than a time: one minus the distribution function, both axes logarithmic.

A line's height at a time is the share of steps that were slower, so that percentiles are read where it crosses the
levels: p50 at one half, p99 at one hundredth; where it ends is the worst of them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longstream.bench.measure import OURS
from longstream.bench.plots import MARKERS, OTHER_COLORS, OUR_COLORS
from longstream.bench.step_run import StepRow, ranks

LEVELS = {0.5: "p50", 0.01: "p99", 0.001: "p99.9"}


def plot_latencies(rows: Sequence[StepRow], title: str, path: Path) -> bool:
    """Draw rows with their times, a panel for each pace; False, and no file, where there are none."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if len(row.answers)]
    if not timed:
        return False
    rates = sorted({row.rate for row in timed})
    figure = Figure(figsize=(9.2 * len(rates), 5.6), layout="constrained")  # no pyplot: no global state, no display
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    styles = _styles(timed)
    for i, rate in enumerate(rates):
        axes = figure.add_subplot(1, len(rates), i + 1)
        pace = f"{rate:g} frames a second, from when a frame is due to its answer" if rate else "one after another"
        dashed = "; dashed: pinned" * any(row.pinned for row in timed)
        axes.set_title(pace + dashed, loc="left", fontsize=11)
        _panel(axes, [row for row in timed if row.rate == rate], styles, rate)
    beside = path.with_name(f".{path.name}.tmp")
    figure.savefig(beside, format="png", dpi=110)
    beside.replace(path)
    return True


def _styles(rows: Sequence[StepRow]) -> dict[str, dict[str, Any]]:
    """By name: ours in colors and thick, the others gray."""
    styles: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.name not in styles:
            is_ours = row.package == OURS
            colors = OUR_COLORS if is_ours else OTHER_COLORS
            count = sum(style["ours"] == is_ours for style in styles.values())
            marker = MARKERS[len(styles) % len(MARKERS)]
            styles[row.name] = {"ours": is_ours, "color": colors[count % len(colors)], "marker": marker}
    return styles


def _panel(axes: Any, rows: Sequence[StepRow], styles: dict[str, dict[str, Any]], rate: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    several = len({row.threads for row in rows}) > 1
    for row in _best(rows):
        style = styles[row.name]
        slower = shares(row)
        wide = 2.0 if style["ours"] else 1.1
        detail = [f"{row.threads} thread{'s' * (row.threads > 1)}"] * several
        axes.plot(
            row.answers * 1e3,
            slower,
            color=style["color"],
            linewidth=wide,
            linestyle="--" if row.pinned else "-",
            marker=style["marker"],
            markevery=[len(row.answers) - 1],  # the worst
            markersize=5,
            label=None if row.pinned else ", ".join([row.name, *detail]),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    lowest = 0.5 / max(row.steps for row in rows)
    axes.set_ylim(lowest, 1.3)
    for level, name in ((level, name) for level, name in LEVELS.items() if level > lowest):
        axes.axhline(level, color="#bbbbbb", linewidth=0.7, zorder=0)
        axes.annotate(
            name, (0.003, level), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", color="#888888"
        )
    if rate:
        axes.axvline(1e3 / rate, color="#C00000", linewidth=1.2, linestyle=":")
        axes.annotate(
            f"budget {1e3 / rate:.2f} ms",
            (1e3 / rate, lowest * 1.2),
            rotation=90,
            fontsize=8,
            ha="right",
            va="bottom",
            color="#C00000",
        )
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of steps that took longer")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _best(rows: Sequence[StepRow]) -> list[StepRow]:
    """Of each name the number of threads that is best for it, fastest names first; unpinned, then pinned."""
    free = sorted((row for row in rows if not row.pinned), key=lambda row: row.p50 or 0.0)
    best = {row.name: row.threads for row in reversed(free)}
    order = [*dict.fromkeys(row.name for row in free)]
    chosen = [row for row in rows if best.get(row.name) == row.threads]
    return sorted(chosen, key=lambda row: (order.index(row.name), bool(row.pinned)))


def shares(row: StepRow) -> np.ndarray:
    """Of all steps of a row, those that were as slow as each of its kept answers, or slower."""
    return ranks(row.steps)[::-1] / row.steps
