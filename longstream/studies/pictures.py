"""The plots of a study: means with their 95 % intervals, in colors that everybody can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longstream.studies.statistics import Summary, summarize_results
from longstream.studies.study import Metric, Picture, Result, half_of
from longstream.train.curves import COLORS, short, write_title
from longstream.train.rundir import written_beside

Runs = Mapping[tuple[str, str], Sequence[Result]]  # of each (group, variant), with the choice that counts
Alone = Mapping[tuple[str, str], Mapping[str, float]]
COLUMNS = 2
WIDTH, HEIGHT, ROW = 6.4, 4.4, 0.42  # inches: of a panel of lines, and of a row of a panel of names


def draw_picture(picture: Picture, metric: Metric, runs: Runs, alone: Alone, path: Path) -> bool:
    """Write a picture; False, and no file, where there is nothing to draw."""
    from matplotlib.figure import Figure

    found = {group: _summaries(group, metric, runs, alone) for group in picture.groups}
    found = {group: of for group, of in found.items() if of}
    if not found:
        return False
    lines = {group: of for group, of in found.items() if any(x is not None for _, x, _ in of)}
    panels = len(found) if not lines else 1
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    most = max(len(of) for of in found.values())
    height = HEIGHT if lines else max(2.2, 1.3 + ROW * most)
    size = (WIDTH * columns, height * rows)
    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no global state, no display
    write_title(figure, picture.title)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[panels:]:
        unused.remove()
    axes = axes[:panels]
    if lines:
        _draw_lines(axes[0], picture, metric, found)
    else:
        for each, (group, of) in zip(axes, found.items(), strict=True):
            _draw_rows(each, metric, group if len(found) > 1 else "", of)
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return True


def _summaries(group: str, metric: Metric, runs: Runs, alone: Alone) -> list[tuple[str, float | None, Summary]]:
    """Variant, place on the axis, and figures in the metric's printed unit."""
    found = []
    for key, results in runs.items():
        if key[0] == group and (summary := figure_of(key, metric, runs, alone)) is not None and summary.values:
            found.append((key[1], results[0].run.x if results else None, summary))
    found += [
        (key[1], None, summary)
        for key in alone
        if key[0] == group and key not in runs and (summary := figure_of(key, metric, runs, alone)) is not None
    ]
    return found


def figure_of(key: tuple[str, str], metric: Metric, runs: Runs, alone: Alone) -> Summary | None:
    """A variant's figure in the metric's printed unit, from its runs or as measured alone; None: it has none."""
    results = runs.get(key, ())
    found = summarize_results(results, metric)
    if not found.values and metric.key in (there := alone.get(key, {})):
        found = Summary((there[metric.key],), 0, there[metric.key], there.get(half_of(metric.key)))
    if not found.values and not (found.diverged and _is_of(metric, key[0], runs)):
        return None
    half = None if found.half is None else found.half * metric.scale
    return Summary(tuple(v * metric.scale for v in found.values), found.diverged, found.mean * metric.scale, half)


def _is_of(metric: Metric, group: str, runs: Runs) -> bool:
    """Whether a group has a metric: by its declaration, or because some run of it does."""
    if metric.group:
        return metric.group == group
    return any(metric.key in r.measured for key, results in runs.items() if key[0] == group for r in results)


def _draw_lines(axes: Any, picture: Picture, metric: Metric, found: Mapping[str, Sequence[Any]]) -> None:
    """A line and a band for each group over x; variants without a place on the axis go across."""
    colors = iter(COLORS * (1 + sum(map(len, found.values())) // len(COLORS)))
    for group, of in found.items():
        points = sorted((x, s) for _, x, s in of if x is not None)
        if points:
            color = next(colors)
            xs, means = [x for x, _ in points], [s.mean for _, s in points]
            halves = [s.half or 0.0 for _, s in points]
            axes.fill_between(xs, _sum(means, halves, -1), _sum(means, halves, 1), color=color, alpha=0.15, linewidth=0)
            axes.errorbar(xs, means, yerr=halves, color=color, marker="o", markersize=4, capsize=3, label=group)
        for variant, x, s in of:
            if x is None:
                color = next(colors)
                axes.axhline(s.mean, color=color, linestyle="--", linewidth=1.3, label=variant)
                if s.half:
                    axes.axhspan(s.low, s.high, color=color, alpha=0.08, linewidth=0)
    if picture.log_x:
        from matplotlib.ticker import FuncFormatter, NullLocator

        axes.set_xscale("log", base=picture.log_x)
        ticks = sorted({x for of in found.values() for _, x, _ in of if x is not None})
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x, 1024 if picture.log_x == 2 else 1000)))
    axes.set_xlabel(picture.x)
    axes.set_ylabel(metric.label)
    axes.set_ylim(possible(metric.label, axes.get_ylim()))
    if sum(map(len, found.values())) > 1:
        axes.legend(frameon=False, fontsize=9)


def _draw_rows(axes: Any, metric: Metric, title: str, of: Sequence[tuple[str, float | None, Summary]]) -> None:
    """A row for each variant: the mean with its interval, and faintly the seeds."""
    for row, (_, _, s) in enumerate(of):
        color = COLORS[row % len(COLORS)]
        axes.plot(s.values, [row] * len(s.values), linestyle="", marker="o", markersize=4, color=color, alpha=0.35)
        axes.errorbar([s.mean], [row], xerr=[s.half or 0.0], color=color, marker="D", markersize=6, capsize=4)
    axes.set_yticks(range(len(of)), [variant for variant, _, _ in of])
    axes.set_ylim(len(of) - 0.5, -0.5)
    axes.set_xlim(possible(metric.label, axes.get_xlim()))
    axes.set_xlabel(metric.label)
    axes.set_title(title, fontsize=10, loc="left")


def possible(label: str, limits: tuple[float, float]) -> tuple[float, float]:
    """An axis' limits, of percentages no further than these can be: a t-interval of three seeds knows no bounds."""
    return (max(limits[0], -3.0), min(limits[1], 103.0)) if label.endswith("%") else limits


def _sum(means: Sequence[float], halves: Sequence[float], sign: int) -> list[float]:
    return [mean + sign * half for mean, half in zip(means, halves, strict=True)]
