"""What `longstream bench step` leaves behind: tables for the terminal, results.json, .csv and .md, and pictures."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from longstream.bench.figures import Figure
from longstream.bench.measure import OURS
from longstream.bench.report import FIGURE_COLUMNS, PAPER, figure_texts, markdown_table, system, system_texts
from longstream.bench.step_limits import Rates, show_bytes
from longstream.bench.step_plot import plot_latencies
from longstream.bench.step_rollback import Cost
from longstream.bench.step_run import StepRow
from longstream.bench.step_subject import TEXT

FILES = ("results.json", "results.csv", "results.md")
PACKAGES = ("minGRU-pytorch", "mambapy", "transformers", "onnxruntime")
TIMES = ("who", "threads", "pinned", "p50", "p99", "p99.9", "worst", "ratio", "missed", "began late", "x limit")
ABOUT = ("who", "weights", "state", "parameters", "tensors", "mallocs", "error", "lost", "note")
NUMBERS = {*TIMES, *ABOUT} - {"who", "pinned", "note"}
Table = tuple[str, Sequence[str], list[list[str]]]


@dataclass
class StepResults:
    """Everything that was measured, by subjects."""

    rows: list[StepRow] = field(default_factory=list)
    rates: dict[str, list[Rates]] = field(default_factory=dict)
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # verdicts, and how it was measured
    text: bool = False  # tokens, not frames


def row_texts(row: StepRow, first: StepRow | None) -> list[str]:
    """The times of a row in the order of TIMES; ``first`` is what its ratio is to."""
    ratio = f"{row.p50 / first.p50:.2f}" if row.p50 and first is not None and first.p50 else ""
    return [
        row.name,
        str(row.threads),
        row.pinned,
        *(_micro(value) for value in (row.p50, row.p99, row.p999, row.worst)),
        ratio,
        "" if row.misses is None else f"{row.misses:,}",
        _micro(row.late),
        "" if row.over_limit is None else f"{row.over_limit:.2f}",
    ]


def about_texts(row: StepRow) -> list[str]:
    """What else is known of a row, in the order of ABOUT."""
    return [
        row.name if row.package == OURS else f"{row.name} ({row.package} {row.version})".replace(" )", ")"),
        "" if row.weight_bytes is None else show_bytes(row.weight_bytes),
        "" if row.state_bytes is None else show_bytes(row.state_bytes),
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.allocations is None else f"{row.allocations:g}",
        "" if row.mallocs is None else f"{row.mallocs:g}",
        "" if row.error is None else f"{row.error:.0e}",
        "" if row.lost is None else f"{row.lost:.0e}",
        row.note,
    ]


def _micro(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def tables(results: StepResults) -> list[Table]:
    """(title, columns, rows); columns without anything in them are left out."""
    shown: list[Table] = []
    for group in dict.fromkeys(row.group for row in results.rows):
        some = [row for row in results.rows if row.group == group]
        each = {(row.name, row.note): row for row in reversed(some)}  # once, whatever the threads
        unit = "tokens" if results.text or group.startswith(TEXT) else "frames"
        for rate in sorted({row.rate for row in some if row.p50}):
            rows = [row for row in some if row.rate == rate and row.p50]
            pace = f"at {rate:g} a second" if rate else "one after another"
            title = f"{group}: {max(row.steps for row in rows):,} {unit} {pace}; microseconds"
            shown.append((title, *_used(TIMES, [row_texts(row, _first(row, rows)) for row in rows])))
        shown.append((f"{group}: who", *_used(ABOUT, [about_texts(row) for row in reversed(each.values())])))
        if rates := results.rates.get(group):
            lines = [
                [
                    show_bytes(r.nbytes),
                    str(r.threads),
                    *(f"{rate / 1e9:.1f}" for rate in (r.read, r.read_median, r.copy)),
                    f"{r.nbytes / max(r.read, r.copy) * 1e6:,.1f}",
                    r.how,
                ]
                for r in rates
            ]
            columns = ("bytes", "threads", "read GB/s", "read, median", "copy GB/s", "once, us", "how")
            shown.append((f"{group}: the memory that its weights sit in", columns, lines))
        if costs := results.costs.get(group):
            lines = [[cost.what, f"{cost.p50:.3g}", f"{cost.p99:.3g}"] for cost in costs]
            shown.append((f"{group}: going back; microseconds", ("what", "p50", "p99"), lines))
    if results.figures:
        shown.append(("required figures", FIGURE_COLUMNS, figure_texts(results.figures)))
    return shown


def _first(row: StepRow, rows: Sequence[StepRow]) -> StepRow | None:
    """The first row with as many threads on the same CPUs, to which ratios are."""
    return next((one for one in rows if (one.threads, one.pinned) == (row.threads, row.pinned)), None)


def _used(columns: Sequence[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns that have nothing in them."""
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return [columns[i] for i in used], [[row[i] for i in used] for row in rows]


def show(results: StepResults) -> None:
    """Print tables and verdicts to stdout."""
    from rich import table
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PAPER)
    for title, columns, rows in tables(results):
        console.print(f"[bold]{escape(title)}[/bold]", soft_wrap=True)
        view = table.Table(box=None, pad_edge=False)
        for column in columns:
            view.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
        for row in rows:
            view.add_row(*(escape(cell) for cell in row))
        console.print(view)
        console.print()
    for line in results.said:
        console.print(escape(line), soft_wrap=True)


def write(results: StepResults, folder: Path) -> list[Path]:
    """Write all files, each beside its name first, and return their paths."""
    here = system(PACKAGES)
    names = [one.name for one in fields(StepRow) if one.name != "answers"]
    rows = [{name: getattr(row, name) for name in names} for row in results.rows]
    everything = {
        "machine": here,
        "said": results.said,
        "figures": [figure._asdict() for figure in results.figures],
        "rates": {group: [rate._asdict() for rate in rates] for group, rates in results.rates.items()},
        "going back": {group: [cost._asdict() for cost in costs] for group, costs in results.costs.items()},
        "rows": [
            {**row, "slowest": [float(f"{x:.4g}") for x in one.answers * 1e6]}
            for row, one in zip(rows, results.rows, strict=True)
        ],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    plots = []
    for group in dict.fromkeys(row.group for row in results.rows):
        path = folder / f"latency-{_slug(group)}.png"
        if plot_latencies([row for row in results.rows if row.group == group], group, path):
            plots.append((group, path))
    _put(folder / "results.json", json.dumps(everything, indent=1) + "\n")
    _put(folder / "results.csv", table.getvalue())
    _put(folder / "results.md", _markdown(results, here, plots))
    return [*(folder / name for name in FILES), *(path for _, path in plots)]


def _put(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _slug(group: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", group.lower()).strip("-")[-80:]


def _markdown(results: StepResults, here: dict[str, Any], plots: Sequence[tuple[str, Path]]) -> str:
    lines = [f"# `longstream bench {'decode' if results.text else 'step'}`", "", *system_texts(here), ""]
    lines += [f"* {line}" for line in results.said]
    drawn: set[Path] = set()
    for title, columns, rows in tables(results):
        lines += ["", f"## {title}", ""]
        for group, plot in plots:
            if title.startswith(f"{group}:") and plot not in drawn:
                drawn.add(plot)
                lines += [f"![{group}]({plot.name})", ""]
        lines += markdown_table(columns, rows)
    return "\n".join(lines) + "\n"
