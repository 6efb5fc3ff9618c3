"""The pictures of `longstream inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from longstream.inspect.filters import SHOWN, LayerFilters
from longstream.inspect.gates import LayerGates
from longstream.inspect.reach import STILL, Reach
from longstream.inspect.states import LayerRank
from longstream.train.curves import COLORS, short
from longstream.train.plots import thinned
from longstream.train.rundir import written_beside

MOST_PANELS = 12  # layers in a picture, evenly chosen of more
BLUE, ORANGE, GREEN, PINK = COLORS[:4]
GREY = "#777777"


def draw_gates(path: Path, gates: Sequence[LayerGates], length: int, unit: str) -> Path:
    """By layer: the time scales of its channels, slowest last, beside what the lower bound forces."""
    chosen = _some(gates)
    figure, panels = _grid(len(chosen), 3.1)
    top = max(length, *(float(each.high.quantile(0.99)) for each in chosen))
    for axes, each in zip(panels, chosen, strict=False):
        order = each.lasting.argsort()
        x = torch.linspace(0, 100, len(order))
        low, middle, high, lasting, forced = (
            t[order] for t in (each.low, each.median, each.high, each.lasting, each.forced)
        )
        axes.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="80 % of the gates")
        axes.plot(x, middle, color=BLUE, linewidth=0.7, alpha=0.7, label="their median")
        axes.plot(x, lasting, color=ORANGE, linewidth=2, label="lasting (geometric mean)")
        axes.plot(x, forced, color=GREEN, linewidth=1, linestyle="--", label="forced by the bound")
        axes.axhline(length, color=GREY, linewidth=0.8, linestyle=":", label=f"{length:,} {unit}, the sequence")
        axes.set_yscale("log")
        axes.set_ylim(0.8, 1.6 * min(top, 1e7))
        axes.set_title(f"layer {each.layer}", fontsize=10, loc="left")
    _label(figure, panels, len(chosen), "channels, from fastest to slowest, %", f"1 / (1 - f), {unit}")
    return _save(figure, path)


def draw_saturation(path: Path, gates: Sequence[LayerGates]) -> Path:
    """By layer: the share of gates that stand next to 1 or to their lower bound."""
    figure = _figure(6.4, 3.2)
    axes = figure.subplots()
    x = torch.arange(len(gates)).double()
    for offset, color, label, name in (
        (-0.2, BLUE, "next to 1", "at_one"),
        (0.2, ORANGE, "next to the bound", "at_bound"),
    ):
        shares = [100 * getattr(each, name) for each in gates]
        bars = axes.bar(x + offset, shares, 0.38, color=color, label=label)
        if len(gates) <= MOST_PANELS:
            axes.bar_label(bars, [f"{share:.2g}" for share in shares], fontsize=8)
    axes.set_xticks(x.tolist(), [str(each.layer) for each in gates])
    axes.set_xlabel("layer")
    axes.set_ylabel("gates within 0.001, %")
    axes.set_ylim(0, max(1.0, 1.15 * max(100 * max(each.at_one, each.at_bound) for each in gates)))
    _tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def draw_ranks(path: Path, ranks: Sequence[LayerRank], unit: str) -> Path:
    """By layer: the effective rank of each head's state, as the model reads on."""
    chosen = _some(ranks)
    figure, panels = _grid(len(chosen), 2.8)
    for axes, each in zip(panels, chosen, strict=False):
        low, middle, high = (each.ranks.quantile(q, dim=1) for q in (0.0, 0.5, 1.0))
        if each.ranks.shape[1] > 1:
            axes.fill_between(each.after, low, high, color=BLUE, alpha=0.2, linewidth=0, label="all heads")
        axes.plot(each.after, middle, color=BLUE, linewidth=1.8, marker="o", markersize=3, label="median head")
        axes.axhline(each.most, color=GREY, linewidth=0.8, linestyle=":", label=f"largest: {each.most}")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.12 * each.most)
        axes.set_title(f"layer {each.layer}", fontsize=10, loc="left")
    _label(figure, panels, len(chosen), f"{unit} read", "effective rank")
    return _save(figure, path)


def draw_reach(path: Path, reach: Reach, trained: int, unit: str) -> Path:
    """What a changed token moves, by distance."""
    figure = _figure(7.2, 4.0)
    axes = figure.subplots()
    x = [max(after, 0.5) for after in reach.after]  # a logarithmic axis has no 0
    floor = 1e-9
    low, middle, high = (reach.changes.quantile(q, dim=1).clamp(min=floor) for q in (0.25, 0.5, 0.75))
    axes.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="half of the changes")
    axes.plot(x, middle, color=BLUE, linewidth=1.8, marker="o", markersize=4, label="median")
    axes.axhline(STILL * reach.median[0], color=ORANGE, linewidth=1, linestyle="--", label="1 % of the first")
    if 0 < trained <= reach.farthest:
        axes.axvline(trained, color=GREY, linewidth=0.8, linestyle=":", label=f"trained on {trained:,} {unit}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(floor, float(low.min()) / 2))
    ticks = [0.5, *(10**k for k in range(6) if 10**k <= reach.farthest)]
    axes.set_xticks(ticks, ["0", *(short(tick) for tick in ticks[1:])])
    axes.set_xlabel(f"{unit} since the change")
    axes.set_ylabel("change of the output")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def draw_training(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path | None:
    """Loss and gradient norm over training, and of each layer what was logged; None where nothing was."""
    train = [row for row in rows if row.get("kind") == "train"]
    layers = [row for row in rows if row.get("kind") == "layers"]
    lines = {
        "loss": [("", [(row["step"], row["loss"]) for row in train])],
        "gradient norm": [("", [(row["step"], row["grad_norm"]) for row in train if row.get("grad_norm") is not None])],
        "gradient norm by layer": _by_layer(layers, "grad_norm"),
        "median time scale by layer": _by_layer(layers, "time_scale_median"),
    }
    lines = {title: found for title, found in lines.items() if any(points for _, points in found)}
    if not lines:
        return None
    figure, panels = _grid(len(lines), 3.2, across=2)
    for axes, (title, found) in zip(panels, lines.items(), strict=False):
        for i, (label, points) in enumerate(found):
            thin = {"linewidth": 1.2, "color": COLORS[i % len(COLORS)]}
            axes.plot(
                *zip(*thinned(points), strict=True), label=label, marker="o" if label else None, markersize=3, **thin
            )
        if title != "loss":
            axes.set_yscale("log")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step")
        _tidy(axes)
        if len(found) > 1:
            axes.legend(frameon=False, fontsize=8, ncols=2)
    return _save(figure, path)


def draw_filters(path: Path, filters: Sequence[LayerFilters], unit: str) -> Path:
    """By layer, in a row: some filters, the windows, the spectra, and the Hankel singular values."""
    chosen = filters if len(filters) <= 6 else [filters[round(i * (len(filters) - 1) / 5)] for i in range(6)]
    figure = _figure(13.0, 2.7 * len(chosen))
    for row, each in zip(figure.subplots(len(chosen), 4, squeeze=False), chosen, strict=True):
        _draw_layer(row, each, unit)
    return _save(figure, path)


def _draw_layer(row: Any, each: LayerFilters, unit: str) -> None:
    lags = torch.arange(each.length)
    picked = torch.linspace(0, len(each.taps) - 1, min(SHOWN, len(each.taps))).round().long().tolist()
    for i, channel in enumerate(picked):
        row[0].plot(lags, each.taps[channel], color=COLORS[i % len(COLORS)], linewidth=0.9, label=str(channel))
    row[0].set_xscale("symlog", linthresh=8)
    row[0].set_xticks([0, *(10**k for k in range(1, 7) if 10**k < each.length)])
    row[0].xaxis.set_major_formatter(lambda lag, _: short(lag))
    row[0].set_title(f"layer {each.layer}: {len(picked)} of {len(each.taps)} filters", fontsize=10, loc="left")
    row[0].set_xlabel(f"lag, {unit}")
    if each.window is None:
        row[1].text(0.5, 0.5, "no window", ha="center", transform=row[1].transAxes, color=GREY)
    else:
        fast, slow = each.window.sum(1).argmin(), each.window.sum(1).argmax()
        row[1].fill_between(lags, each.window[fast], each.window[slow], color=BLUE, alpha=0.2, linewidth=0)
        row[1].plot(lags, each.window[fast], color=BLUE, linewidth=1, linestyle="--", label="fastest channel")
        row[1].plot(lags, each.window[slow], color=BLUE, linewidth=1.4, label="slowest channel")
    size = each.taps.abs()
    size = size.quantile(0.5, dim=0) / size.max().clamp(min=1e-300)
    row[1].plot(lags, size, color=ORANGE, linewidth=0.9, label="median |tap| over the largest")
    row[1].set_title("windows", fontsize=10, loc="left")
    row[1].set_xlabel(f"lag, {unit}")
    frequency = torch.linspace(0, 0.5, each.spectrum.shape[1])
    low, middle, high = (each.spectrum.quantile(q, dim=0).clamp(min=1e-12) for q in (0.1, 0.5, 0.9))
    row[2].fill_between(frequency, low, high, color=BLUE, alpha=0.2, linewidth=0, label="80 % of filters")
    row[2].plot(frequency, middle, color=BLUE, linewidth=1.2, label="median")
    row[2].set_yscale("log")
    row[2].set_title("spectra |H|", fontsize=10, loc="left")
    row[2].set_xlabel(f"cycles a {unit[:-1]}")
    index = torch.arange(1, each.hankel.shape[1] + 1)
    low, middle, high = (each.hankel.quantile(q, dim=0).clamp(min=1e-12) for q in (0.1, 0.5, 0.9))
    row[3].fill_between(index, low, high, color=BLUE, alpha=0.2, linewidth=0, label="80 % of filters")
    row[3].plot(index, middle, color=BLUE, linewidth=1.4, label="median")
    row[3].axhline(0.01, color=ORANGE, linewidth=1, linestyle="--", label="1 %")
    row[3].set_yscale("log")
    row[3].set_ylim(max(1e-9, 0.5 * float(low.min())), 2)
    row[3].set_title("Hankel singular values", fontsize=10, loc="left")
    row[3].set_xlabel("number")
    for axes in row:
        _tidy(axes)
    for axes in row[1:]:
        axes.legend(frameon=False, fontsize=8)


def _by_layer(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, list[tuple[float, float]]]]:
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        for layer, value in enumerate(row.get(name) or ()):
            if value is not None and value > 0:
                found.setdefault(layer, []).append((row["step"], value))
    return [(f"layer {layer}", points) for layer, points in _some(sorted(found.items()))]


def _some(items: Sequence[Any]) -> Sequence[Any]:
    """All, or MOST_PANELS of more, the first and the last among them."""
    if len(items) <= MOST_PANELS:
        return items
    return [items[round(i * (len(items) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # no pyplot: no global state, no display


def _grid(count: int, height: float, across: int = 3) -> tuple[Any, list[Any]]:
    """A figure with axes for ``count`` panels; what is left of the last row is empty."""
    across = min(across, count, 2 if count <= 4 else across)
    down = -(-count // across)
    figure = _figure(max(6.0, 3.9 * across), height * down + 0.5)
    panels = list(figure.subplots(down, across, squeeze=False).flatten())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def _label(figure: Any, panels: list[Any], count: int, x: str, y: str) -> None:
    """One legend and one pair of labels for all panels."""
    for axes in panels[:count]:
        _tidy(axes)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    with written_beside(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return path
