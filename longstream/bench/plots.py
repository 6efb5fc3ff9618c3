"""Time against length, log-log: a panel for each mode and batch size, names at the ends of the lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longstream.bench.measure import OURS, Row

# Of Okabe and Ito, who made them to be told apart by everybody; the others gray out from them.
OUR_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OTHER_COLORS = ("#333333", "#777777", "#8C564B", "#5B5B9F", "#9E9D24", "#A06A9C", "#4E8F8A", "#B08D57", "#6E6E6E")
MARKERS = "osD^vP*Xp<>h"
LABEL_GAP = 0.047  # of the height of a panel, between names


def plot_group(rows: Sequence[Row], title: str, modes: Mapping[str, str], path: Path) -> bool:
    """Draw rows that have times; False, and no file, where there is no line to draw."""
    from matplotlib.figure import Figure

    panels = [
        (mode, B)
        for B in sorted({row.B for row in rows} if rows[0].group != "train" else {0})
        for mode in modes
        if len({row.T for row in rows if row.mode == mode and B in (0, row.B)}) > 1
    ]
    if not panels:
        return False
    names = list(dict.fromkeys((row.name, row.package) for row in rows))
    styles = _styles(names)
    columns = len({mode for mode, _ in panels})
    lines = math.ceil(len(panels) / columns)
    figure = Figure(
        figsize=(6.6 * columns, 5.0 * lines), layout="constrained"
    )  # no pyplot: no global state, no display
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    for i, (mode, B) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, i + 1)
        some = [row for row in rows if row.mode == mode and B in (0, row.B)]
        axes.set_title(
            f"{modes[mode]}, B = {B}" if B else f"{modes[mode]}, 8,192 tokens or one sequence", loc="left", fontsize=11
        )
        _panel(axes, some, styles)
    figure.savefig(path, format="png", dpi=110)
    return True


def _styles(names: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Ours stand out; of one that has several backends, the first does, and the others have its color."""
    styles: dict[str, dict[str, Any]] = {}
    ours: dict[str, str] = {}
    others = 0
    for i, (name, package) in enumerate(names):
        style: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4.5, "linewidth": 1.2}
        if package == OURS:
            what = name.rpartition(" ")[0] or name
            if what not in ours:
                style |= {"linewidth": 2.4, "markersize": 5.5}
                ours[what] = OUR_COLORS[len(ours) % len(OUR_COLORS)]
            style["color"] = ours[what]
        else:
            style |= {"color": OTHER_COLORS[others % len(OTHER_COLORS)], "linestyle": "--"}
            others += 1
        styles[name] = style
    return styles


def _panel(axes: Any, rows: Sequence[Row], styles: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    per_token = rows[0].mode == "train"  # a step has its own number of tokens at each length
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = (row.median_ms or 0) / (row.B * row.T if per_token else 1)
        lines.setdefault(row.name, []).append((row.T, value))
    bound = sorted({(row.T, row.median_ms * row.share) for row in rows if row.share and row.median_ms})
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), **styles[name])
    ends = {name: (sorted(points)[-1], styles[name]["color"]) for name, points in lines.items()}
    if bound and not per_token:
        limit = rows[0].share_of or next(row.share_of for row in rows if row.share)
        least = {T: min(v for t, v in bound if t == T) for T, _ in bound}
        axes.plot(*zip(*least.items(), strict=True), color="#999999", linewidth=1, linestyle=":")
        ends[f"limit by {limit}"] = (list(least.items())[-1], "#999999")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({row.T for row in rows})
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda T, _: f"{T / 1024:g}k" if T >= 1024 else f"{T:g}"))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: _time(ms)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens T")
    axes.set_ylabel("time a token" if per_token or rows[0].mode == "token" else "time")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, ends, lengths[-1])


def _time(ms: float) -> str:
    for size, unit in ((1e3, "s"), (1.0, "ms"), (1e-3, "µs")):
        if ms >= size * 0.999:
            return f"{ms / size:g} {unit}"
    return f"{ms * 1e6:g} ns"


def _label(axes: Any, ends: Mapping[str, tuple[tuple[int, float], str]], right: int) -> None:
    """Names in a column right of the lines, as near to their ends as they fit without touching, and a hair to each.

    A line that ends before the others has its name at its end: a hair from there would cross them.
    """
    for name, (point, color) in ends.items():
        if point[0] < right:
            axes.annotate(
                name, xy=point, xytext=(7, 0), textcoords="offset points", color=color, fontsize=8.5, va="center"
            )
    ends = {name: end for name, end in ends.items() if end[0][0] == right}
    low, high = (math.log10(y) for y in axes.get_ylim())
    order = sorted(ends, key=lambda name: ends[name][0][1])
    wanted = [(math.log10(ends[name][0][1]) - low) / (high - low) for name in order]
    runs: list[tuple[float, int]] = []  # of names that touch: the mean of their places less their distances; how many
    for i, place in enumerate(wanted):
        runs.append((place - i * LABEL_GAP, 1))
        while len(runs) > 1 and runs[-2][0] >= runs[-1][0]:
            (b, m), (a, n) = runs.pop(), runs.pop()
            runs.append(((a * n + b * m) / (n + m), n + m))
    bases = [min(max(base, 0.0), 1 - (len(order) - 1) * LABEL_GAP) for base, count in runs for _ in range(count)]
    places = [base + i * LABEL_GAP for i, base in enumerate(bases)]
    for name, place in zip(order, places, strict=True):
        (T, ms), color = ends[name]
        axes.annotate(
            name,
            xy=(T, ms),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=color,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6, "relpos": (0, 0.5)},
        )
