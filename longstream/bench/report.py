"""What a run leaves behind: tables for the terminal, results.json, .csv and .md, and a plot for each group."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from longstream.bench import peers
from longstream.bench.figures import Figure
from longstream.bench.limits import UNITS, WHAT
from longstream.bench.measure import OURS, Row
from longstream.bench.run import Plan, Results, cpus
from longstream.ops import _native

FILES = ("results.json", "results.csv", "results.md", "worker.log")
TITLES = {
    "gated_scan": "gated_scan: HGRN's recurrence, 256 channels",
    "gated_scan_complex": "gated_scan, complex: 256 channels",
    "gla": "gla: HGRN2's recurrence, 4 heads, K = V = 128",
    "long_conv": "long_conv: Hyena's convolution, 256 channels",
    "long_conv_two_sided": "long_conv_two_sided: 256 channels",
    "long_conv_decoding": "long_conv token by token, 256 channels; time a token, mean over T",
    "short_conv": "short_conv: 4 taps, 256 channels",
    "layer": "layers, 256 wide",
    "hyena_decoding": "a layer of Hyena token by token, 256 wide; time a token, mean over T",
    "train": "a training step: 6 layers, 256 wide, bytes",
}
MODES = {
    "fwd": "forward",
    "fwd+bwd": "forward + backward",
    "step": "one token",
    "token": "a token",
    "train": "step",
}
HEAD = ["B x T", "mode", "threads"]  # of a case; the terminal shows them once, in a line of their own
NUMBERS = ("median ms", "min ms", "ratio", "peak MiB", "error")
PAPER = 150  # columns where there is no terminal
COLUMNS = (*HEAD, "who", "median ms", "min ms", "ratio", "peak MiB", "error", "share", "more")
PACKAGES = ("jax", "mambapy", "accelerated-scan", "minGRU-pytorch", "mlstm_kernels", "transformers")


def machine(plan: Plan) -> dict[str, Any]:
    """What was measured on, and with."""
    return {**system(PACKAGES), "rounds": plan.effort.rounds, "longest call, s": plan.effort.limit}


def system(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, system, and versions of longstream, torch and other packages."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "processor": processor,
        "cpus": len(cpus()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch vectors": torch.backends.cpu.get_cpu_capability(),
        "native kernels": _native.MISSING or "compiled",
        "versions": {name: peers.version(name) or "not installed" for name in ("longstream", "torch", *packages)},
    }


def system_texts(here: dict[str, Any]) -> list[str]:
    """`system` in sentences, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return [
        f"{here['processor']}, {here['cpus']} CPUs, {here['system']}, Python {here['python']}; torch uses"
        f" {here['torch vectors']}; native kernels: {here['native kernels']}.",
        f"{versions}.",
    ]


def row_texts(row: Row) -> list[str]:
    """A row as the tables show it, in the order of COLUMNS."""
    who = row.name if row.package == OURS else f"{row.name} ({row.package} {row.version})".replace(" )", ")")
    head = [f"{row.B} x {row.T}", row.mode, str(row.threads), who]
    error = "" if row.error is None else f"{row.error:.0e}"
    if row.median_ms is None or row.min_ms is None:
        return [*head, "", "", "", "", error, "", row.note]
    share = "" if row.share is None else f"{row.share:.0%} {row.share_of}"
    more = [] if row.parameters is None else [f"{row.parameters / 1e3:.0f}k parameters"]
    if row.mode == "train":
        more.append(f"{row.B * row.T / row.median_ms * 1e3:,.0f} tokens/s")
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f}"
    return [*head, f"{row.median_ms:.4g}", f"{row.min_ms:.4g}", ratio, peak, error, share, ", ".join(more)]


def limit_texts(results: Results) -> list[list[str]]:
    """Limit, what it is, and its rate with each number of threads."""
    found = []
    for name, what in WHAT.items():
        for threads, rates in sorted(results.limits.items()):
            rate = rates.get(name)
            shown = f"{rate / 1e9:.1f} {UNITS[name]}" if rate else f"not measured: {_native.MISSING}"
            found.append([name, what, str(threads), shown])
    return found


def figure_texts(found: Sequence[Figure]) -> list[list[str]]:
    """The figures as the tables show them."""
    return [[f.what, f.shape, f.required, f.measured, {True: "yes", False: "no", None: "-"}[f.reached]] for f in found]


FIGURE_COLUMNS = ("figure", "shape", "required", "measured", "reached")
LIMIT_COLUMNS = ("limit", "what it is", "threads", "rate")


def tables(results: Results, found: Sequence[Figure]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, columns, rows) of all that there is to show; columns without anything in them are left out."""
    shown: list[tuple[str, Sequence[str], list[list[str]]]] = []
    for group, title in TITLES.items():
        rows = [row_texts(row) for row in _sorted(results.rows) if row.group == group]
        if rows:
            used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
            shown.append((title, [COLUMNS[i] for i in used], [[row[i] for i in used] for row in rows]))
    if results.limits:
        shown.append(("limits of this machine", LIMIT_COLUMNS, limit_texts(results)))
    if any(figure.reached is not None for figure in found):
        shown.append(("required figures, native kernels", FIGURE_COLUMNS, figure_texts(found)))
    return shown


def _sorted(rows: Sequence[Row]) -> list[Row]:
    modes = list(MODES)
    return sorted(rows, key=lambda row: (-row.threads, modes.index(row.mode), row.B, row.T))  # keeps the order of names


def show(results: Results, found: Sequence[Figure]) -> None:
    """Print the tables to stdout."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PAPER)
    for title, columns, rows in tables(results, found):
        measured = columns[: len(HEAD)] == HEAD
        shown = columns[len(HEAD) :] if measured else columns
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in shown:
            table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
        for head, some in groupby(rows, key=lambda row: row[: len(HEAD)] if measured else []):
            if measured:
                shape, mode, threads = head
                table.add_row(f"[bold]{MODES[mode]}, {shape}, {threads} thread{'s' * (threads != '1')}[/bold]")
            lines = [row[len(head) :] for row in some]
            if measured and len(lines) > 1 and len({(*line[1:],) for line in lines}) == 1:  # a note that all share
                lines = [[f"all {len(lines)}", *lines[0][1:]]]
            for line in lines:
                table.add_row(*(escape(cell) for cell in line))
        console.print(table)
        console.print()


def write(results: Results, found: Sequence[Figure], plan: Plan, folder: Path) -> list[Path]:
    """Write all files and return their paths."""
    here = machine(plan)
    limits = {str(threads): rates for threads, rates in results.limits.items()}
    everything = {
        "machine": here,
        "limits": limits,
        "figures": [figure._asdict() for figure in found],
        "rows": [asdict(row) for row in results.rows],
    }
    (folder / "results.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in results.rows)
    plots = draw(results.rows, folder)
    (folder / "results.md").write_text(_markdown(results, found, here, plots), encoding="utf-8")
    return [folder / "results.json", folder / "results.csv", folder / "results.md", *plots]


def _markdown(results: Results, found: Sequence[Figure], here: dict[str, Any], plots: Sequence[Path]) -> str:
    lines = [
        "# `longstream bench`",
        "",
        *system_texts(here),
        "",
        f"float32. Contestants of a shape take turns, {here['rounds']} rounds. ratio: of the medians, to the first row"
        " of ours that has a time. peak: what one call adds to the resident memory of the process. error: the largest,"
        " relative to the largest value of its tensor, against the float64 oracle that results.json names; nothing is"
        " timed before it has passed. share: of a limit of this machine, measured in the same run.",
    ]
    for title, columns, rows in tables(results, found):
        group = next((name for name, text in TITLES.items() if text == title), "")
        lines += ["", f"## {title}", ""]
        lines += [f"![{title}]({plot.name})\n" for plot in plots if plot.stem == group]
        lines += markdown_table(columns, rows)
    return "\n".join(lines) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [_line(columns), _line(["---"] * len(columns)), *(_line(row) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """A plot for each group that has more than one length."""
    from longstream.bench.plots import plot_group

    most = max((row.threads for row in rows), default=0)
    drawn = []
    for group, title in TITLES.items():
        timed = [row for row in rows if row.group == group and row.threads == most and row.median_ms]
        path = folder / f"{group}.png"
        if timed and plot_group(timed, f"{title}; {most} thread{'s' * (most > 1)}, float32", MODES, path):
            drawn.append(path)
    return drawn
