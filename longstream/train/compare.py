"""The verb `longstream compare`: runs side by side, in a table and in pictures."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from longstream.train.comparison import TABLES, Compared, measure_of, show, write
from longstream.train.loading import load_model, load_run
from longstream.train.rundir import RunDirectory, quiet_transformers

LENGTHS = (128, 512, 2048, 8192)
MOST_LENGTH = 2**20


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories, of one task and one held-out part")
    parser.add_argument("--out", default="runs/compare", metavar="DIR", help="folder to write [runs/compare]")
    parser.add_argument("--overwrite", action="store_true", help="replace the comparison that is there")
    parser.add_argument("--force", action="store_true", help="although the runs held out different data")
    parser.add_argument(
        "--lengths", default="", metavar="A,B", help="of contexts to decode behind [128,512,2048,8192]; 0: none"
    )
    parser.add_argument(
        "--context", type=int, default=-1, metavar="N", help="tokens, for the loss by position [2 seq_len]; 0: none"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads [torch's choice]")


def run_compare(args: argparse.Namespace) -> int:
    """Compare, print the table and write the files.

    Raises:
        ValueError: the runs are of different tasks or held out different data, one is damaged, or a value is none.
        FileExistsError: there is a comparison.    FileNotFoundError: a run is missing or has no figures yet.
        ModuleNotFoundError: matplotlib or rich is missing.
    """
    for name in ("matplotlib.figure", "rich.console"):  # better now than after the measuring
        importlib.import_module(name)
    lengths = _lengths(args.lengths)
    folder = Path(args.out)
    refuse_to_overwrite(folder, args.overwrite)
    compared = [read_run(path, name) for path, name in zip(args.runs, _names(args.runs), strict=True)]
    notes = check_comparable(compared, args.force)
    task = compared[0].settings.data.task
    if task == "next-token":
        notes += _measure_text(compared, args.context)
    elif task == "tokens":
        for each in compared:
            each.model = load_model(each.run.path)
            each.parameters = each.model.num_parameters()
    if task in ("next-token", "tokens"):
        notes += _measure_decoding(compared, lengths)
    else:
        _read_sequence_models(compared)
    written = write(compared, notes, folder)
    show(compared, notes)
    sys.stderr.write("".join(f"{path}\n" for path in written))
    return 0


def read_run(path: str | Path, name: str) -> Compared:
    """What a run says of itself.

    Raises:
        FileNotFoundError: it is missing, or nothing was held out or evaluated yet.    ValueError: a file is damaged.
    """
    run = RunDirectory(path)
    settings, data, rows = run.read_settings(), run.read_data(), run.read_metrics()
    found = Compared(name, run, settings, data, rows)
    held_out = [row for row in rows if row["kind"] == "validation"]
    if not held_out:
        raise FileNotFoundError(f"{run.path}: nothing was held out and evaluated yet, so there is nothing to compare")
    kept = held_out[-1]
    if settings.train.patience:
        key, sign, _ = measure_of(settings.data.task)
        kept = min(held_out, key=lambda row: sign * row.get(key, math.inf))
    left_out = ("kind", "step", "seconds")
    found.figures = {
        key: value for key, value in kept.items() if key not in left_out and isinstance(value, int | float)
    }
    return found


def check_comparable(compared: Sequence[Compared], force: bool) -> list[str]:
    """What has to be said of a comparison that is not quite one.

    Raises:
        ValueError: the tasks differ, or without ``force`` the data held out.
    """
    first = compared[0]
    for other in compared[1:]:
        tasks = [each.settings.data.task for each in (first, other)]
        if len(set(tasks)) > 1:
            raise ValueError(
                f"compare: RUN must be of one task, got {first.name}: {tasks[0]}, {other.name}: {tasks[1]}"
            )
    parts = {each.data.get("validation_sha256", each.data["sha256"]) for each in compared}
    if len(parts) == 1:
        trained = {each.data["sha256"] for each in compared}
        return [] if len(trained) == 1 else ["The runs were trained on different data; what they held out is the same."]
    read = (each.settings.data.files or (each.settings.data.generator,) for each in compared)
    what = ", ".join(f"{each.name}: {' '.join(words)}" for each, words in zip(compared, read, strict=True))
    if not force:
        raise ValueError(f"compare: the runs held out different data ({what}); --force compares them nevertheless")
    return [f"The runs held out different data, so their figures are not of the same thing ({what})."]


def _measure_text(compared: Sequence[Compared], context: int) -> list[str]:
    """Parameters and loss by position of models of text; returns what is to be said of it."""
    from longstream.train.commands import refuse_changed
    from longstream.train.contexts import loss_by_position
    from longstream.train.text_task import data_digest, read_data

    notes, parts = [], {}
    context = 2 * max(each.settings.data.seq_len for each in compared) if context < 0 else context
    for each in compared:
        _tell(f"{each.name}: reading the model" + (", loss by position" if context else ""))
        each.model, tokenizer = load_run(each.run.path)
        each.parameters = each.model.num_parameters()
        if not context:
            continue
        try:
            if each.settings.data not in parts:
                trained, held_out = read_data(each.settings.data)
                parts[each.settings.data] = held_out, data_digest(trained, held_out)
            held_out, digest = parts[each.settings.data]
            refuse_changed(each.run, digest)
        except (OSError, ValueError) as error:
            notes.append(f"No loss by position of {each.name}: {error}")
            continue
        with quiet_transformers():
            each.positions = loss_by_position(each.model, tokenizer, held_out, context)
    if len({each.settings.data.tokenizer for each in compared}) > 1:
        notes.append("Tokens, positions and lengths are each run's own: the tokenizers differ.")
    return notes


def _measure_decoding(compared: Sequence[Compared], lengths: Sequence[int]) -> list[str]:
    """Costs of decoding of language models; returns what is to be said of it."""
    from longstream.train.contexts import decode_costs

    if lengths:
        _tell(f"decoding behind {', '.join(f'{length:,}' for length in lengths)} tokens")
        with quiet_transformers():
            costs = decode_costs({each.name: each.model for each in compared}, lengths)
        for each in compared:
            each.decoding = costs[each.name]
    if any(cost.beyond_training for each in compared for cost in each.decoding):
        return ["*: costs behind more tokens than the model was trained on, where it predicts badly."]
    return []


def _read_sequence_models(compared: Sequence[Compared]) -> None:
    """Parameters, and the figures of the reports."""
    from longstream.sequences import SequenceModel

    for each in compared:
        each.parameters = SequenceModel.from_pretrained(each.run.path).num_parameters()
        if each.run.report.is_file():
            report = json.loads(each.run.report.read_text(encoding="utf-8"))
            each.figures = {key: value for key, value in report.items() if isinstance(value, float) and key != "score"}


def refuse_to_overwrite(folder: Path, overwrite: bool) -> None:
    """Raise unless a comparison may be written here."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / TABLES[0]).is_file():
            raise FileExistsError(f"{folder} exists and holds no comparison: choose another --out")
        if not overwrite:
            raise FileExistsError(f"{folder} already holds a comparison: choose another --out, or give --overwrite")


def _names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, or as much of them as tells them apart."""
    places = [Path(path).resolve() for path in paths]
    if len(set(places)) < len(places):
        twice = next(path for path, place in zip(paths, places, strict=True) if places.count(place) > 1)
        raise ValueError(f"compare: RUN must be different runs, got {twice} twice")
    deepest = max(len(place.parts) for place in places)
    tails = (["/".join(place.parts[-size:]) for place in places] for size in range(1, deepest + 1))
    return next(names for names in tails if len(set(names)) == len(names))


def _lengths(text: str) -> tuple[int, ...]:
    """Lengths between commas; "0" is none."""
    if text.strip() == "0":
        return ()
    words = [word.strip() for word in text.split(",")] if text else [str(length) for length in LENGTHS]
    if not all(word.isdecimal() and 1 <= int(word) <= MOST_LENGTH for word in words):
        raise ValueError(f"--lengths must be integers from 1 to {MOST_LENGTH:,} with commas between them, got {text!r}")
    return tuple(sorted({int(word) for word in words}))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
