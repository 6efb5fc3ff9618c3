"""What `longstream compare` shows and writes of runs: a table, in four forms, and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longstream.train.rundir import RunDirectory, remove, write_text
from longstream.train.settings import Settings

TABLES = ("compare.json", "compare.csv", "compare.md")
PICTURES = {
    "loss_tokens.png": "held-out figure against what was read; faint: training",
    "loss_time.png": "held-out figure against time; faint: training",
    "loss_position.png": "held-out loss by how many tokens stand in front",
    "decode.png": "one more token behind a context; hollow: longer than what the model was trained on",
}


@dataclass
class Compared:
    """One run, and what was measured of it."""

    name: str
    run: RunDirectory
    settings: Settings
    data: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    parameters: int = 0
    figures: dict[str, float] = field(default_factory=dict)  # held out, of the model that was kept
    positions: list[Any] = field(default_factory=list)  # PositionLoss
    decoding: list[Any] = field(default_factory=list)  # DecodeCost
    model: Any = None  # of text, while it is measured

    def read_by(self, step: int) -> float:
        """Tokens or frames read by a step; only the rows of training say, and the last steps may have none."""
        train = [row for row in self.rows if row["kind"] == "train"]
        if not train:
            return 0.0
        before = [{"step": 0, "tokens": 0}, *(row for row in train if row["step"] <= step)][-1]
        after = next((row for row in train if row["step"] > step), None)
        if after is None:  # as fast as until then
            return before["tokens"] * step / max(before["step"], 1)
        part = (step - before["step"]) / (after["step"] - before["step"])
        return before["tokens"] + part * (after["tokens"] - before["tokens"])

    @property
    def speed(self) -> float:
        """Tokens or frames a second in training, without evaluations: the median of what was logged."""
        return statistics.median([row["tokens_per_second"] for row in self.rows if row["kind"] == "train"] or [0.0])


def measure_of(task: str) -> tuple[str, int, str]:
    """The key of a task's figure in metrics.jsonl, 1 where less is better and else -1, and its name on an axis."""
    if task == "next-token":
        return "bits_per_byte", 1, "bits per byte"
    if task == "tokens":
        return "accuracy", -1, "accuracy"
    from longstream.train.sequence_task import CURVES

    key, label = CURVES[task]
    return key, -1 if task == "classify" else 1, label


def columns(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of the table, best run first."""
    task = compared[0].settings.data.task
    key, sign, label = measure_of(task)
    unit = "tokens" if task in ("next-token", "tokens") else "frames"
    more = [name for name in compared[0].figures if name != key and all(name in each.figures for each in compared)]
    more = ["perplexity"] if task == "next-token" else more
    lengths = sorted({cost.length for each in compared for cost in each.decoding})
    heads = ["run", "model", "parameters", unit, "minutes", label, *(name.replace("_", " ") for name in more)]
    heads += [f"training {unit}/s", *(f"ms/token at {length:,}" for length in lengths)]
    heads += [f"state at {length:,}, bytes" for length in lengths]
    rows = []
    for each in sorted(compared, key=lambda each: sign * each.figures.get(key, math.inf)):
        costs = {cost.length: cost for cost in each.decoding}
        marks = {length: "*" if cost.beyond_training else "" for length, cost in costs.items()}
        rows.append(
            [
                each.name,
                each.settings.model.name,
                f"{each.parameters:,}",
                f"{each.read_by(each.rows[-1]['step']):,.0f}",
                f"{each.rows[-1]['seconds'] / 60:.1f}",
                *(_number(each.figures.get(name)) for name in (key, *more)),
                f"{each.speed:,.0f}",
                *(f"{costs[n].ms:.3g}{marks[n]}" if n in costs else "-" for n in lengths),
                *(f"{costs[n].state_bytes:,}{marks[n]}" if n in costs else "-" for n in lengths),
            ]
        )
    return heads, rows


def show(compared: Sequence[Compared], notes: Sequence[str]) -> None:
    """Print the table to stdout: a run in a column, for there are fewer of them than of figures."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(80, 26 + 20 * len(compared)))
    heads, rows = columns(compared)
    table = Table(box=None, pad_edge=False)
    table.add_column(heads[0])
    for row in rows:
        table.add_column(escape(row[0]), justify="right", overflow="fold")
    for i, head in enumerate(heads[1:], start=1):
        table.add_row(head, *(escape(row[i]) for row in rows))
    console.print(table)
    for note in notes:
        console.print(escape(note), soft_wrap=True)


def write(compared: Sequence[Compared], notes: Sequence[str], folder: Path) -> list[Path]:
    """Write tables and pictures, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TABLES, *PICTURES):
        remove(folder / name)
    pictures = draw(compared, folder)
    heads, rows = columns(compared)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([heads, *rows])
    write_text(folder / "compare.csv", text.getvalue())
    lines = ["# Comparison of runs", "", _line(heads), _line(["---"] * len(heads)), *map(_line, rows)]
    lines += [line for note in notes for line in ("", note)]
    lines += [line for path in pictures for line in ("", f"![{PICTURES[path.name]}]({path.name})")]
    write_text(folder / "compare.md", "\n".join(lines) + "\n")
    write_text(
        folder / "compare.json", json.dumps({"notes": notes, "runs": [_plain(each) for each in compared]}, indent=1)
    )
    return [*(folder / name for name in TABLES), *pictures]


def draw(compared: Sequence[Compared], folder: Path) -> list[Path]:
    """The pictures for which there is something to show."""
    from longstream.train.curves import Line, Panel, draw_panels

    task = compared[0].settings.data.task
    key, _, label = measure_of(task)
    unit = "tokens" if task in ("next-token", "tokens") else "frames"
    names = [each.name for each in compared]
    read, timed = ([Line(each.name, *_history(each, key, x)) for each in compared] for x in ("tokens", "seconds"))
    minutes = [Line(n, *([(x / 60, y) for x, y in some] for some in (points, faint))) for n, points, faint, _ in timed]
    by_position = [Line(each.name, [(p.before - 1, p.bits_per_byte) for p in each.positions]) for each in compared]
    panels = {
        "loss_tokens.png": [Panel(f"{unit} read", label, read)],
        "loss_time.png": [Panel("minutes", label, minutes)],
        "loss_position.png": [Panel("tokens in front, up to", "bits per byte", by_position, log_x=2)],
        "decode.png": [
            Panel("tokens of context", "ms a token", _costs(compared, "ms"), log_x=2, log_y=10),
            Panel("tokens of context", "bytes of state", _costs(compared, "state_bytes"), log_x=2, log_y=10),
        ],
    }
    return [folder / name for name, of in panels.items() if draw_panels(folder / name, PICTURES[name], of, names)]


def _costs(compared: Sequence[Compared], what: str) -> list[Any]:
    from longstream.train.curves import Line

    def points(each: Compared, beyond: bool) -> list[tuple[float, float]]:
        return [(cost.length, getattr(cost, what)) for cost in each.decoding if cost.beyond_training is beyond]

    return [Line(each.name, points(each, False), hollow=points(each, True)) for each in compared]


def _history(each: Compared, key: str, x: str) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Held-out figures and training's against tokens or seconds."""
    rows = [row for row in each.rows if key in row]
    found: dict[str, list[tuple[float, float]]] = {"validation": [], "train": []}
    for row in rows:
        found[row["kind"]].append((each.read_by(row["step"]) if x == "tokens" else row[x], row[key]))
    return found["validation"], found["train"]


def _plain(each: Compared) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "name": each.name,
        "path": str(each.run.path),
        "model": each.settings.model.name,
        "task": each.settings.data.task,
        "seed": each.settings.train.seed,
        "parameters": each.parameters,
        "steps": each.rows[-1]["step"],
        "tokens": round(each.read_by(each.rows[-1]["step"])),
        "seconds": each.rows[-1]["seconds"],
        "training_per_second": each.speed,
        "held_out": each.figures,
        "validation_sha256": each.data.get("validation_sha256", each.data["sha256"]),
        "loss_by_position": [position._asdict() for position in each.positions],
        "decoding": [cost._asdict() for cost in each.decoding],
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
