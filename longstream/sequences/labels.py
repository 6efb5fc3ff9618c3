"""Labels that are not in the file of the sequences: in a file of their own, or in the name of the file or folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longstream.sequences.arrays import load_idx, load_npy
from longstream.sequences.data import Sequences
from longstream.sequences.spec import ReadSpec, Task, outcomes
from longstream.sequences.tables import is_number, numbers, numeric, read_cells, words

if TYPE_CHECKING:
    import pandas as pd


def label_in_order(data: Sequences, spec: ReadSpec, task: Task = "") -> Sequences:
    """The sequences with what ``labels_file`` says: .npy, idx, or a CSV with a row for each, in their order."""
    file = Path(spec.labels_file)
    if file.suffix == ".npy" or "idx" in file.name:
        array = load_npy(file) if file.suffix == ".npy" else load_idx(file)
        return replace(data, **_fresh(outcomes(array, str(file), len(data), task)))
    table = read_cells(file)
    if len(table) == len(data) - 1 and _begins_with_a_label(table):
        table = read_cells(file, header=False)
    if len(table) != len(data):
        header = f" below a header of {list(map(str, table.columns))!r:.60}" if len(table) == len(data) - 1 else ""
        raise ValueError(f"{file} has {len(table)} labels{header}, there are {len(data)} sequences")
    return replace(data, **_fresh(_columns(table, file, spec, task, range(len(data)), 0)))


def label_by_name(data: Sequences, paths: Sequence[Path], spec: ReadSpec, task: Task = "") -> Sequences:
    """The sequences with the rows of ``labels_file`` that name them in the first column.

    A row may name a file as it was given, from the folder of ``labels_file``, by its name, or by that without suffix;
    a record of FASTA by the first word of its header. Rows that name nothing of ``data`` are left alone.

    Args:
        paths: (n), the file of each sequence.
    """
    file = Path(spec.labels_file)
    called = [_called(name, path, file) for name, path in zip(data.names, paths, strict=True)]
    table = read_cells(file)
    if any(str(table.columns[0]) in names for names in called):
        table = read_cells(file, header=False)
    if table.shape[1] < 2:
        raise ValueError(f"{file} must have names in its first column and labels in another, got one column")
    keys = words(table, str(table.columns[0]), file).tolist()
    row_of = {key: row for row, key in enumerate(keys)}
    if len(row_of) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{file} names {twice!r} twice")
    rows, used = [], {}
    for name, names in zip(data.names, called, strict=True):
        key = next((name for name in names if name in row_of), None)
        if key is None:
            without = sum(not any(name in row_of for name in names) for names in called)
            raise ValueError(f"{file} has no label for {name!r} ({without} of {len(data)} have none)")
        if used.setdefault(key, name) != name:
            raise ValueError(f"{file}: {key!r} may be {used[key]!r} or {name!r}; name them by their paths")
        rows.append(row_of[key])
    return replace(data, **_fresh(_columns(table, file, spec, task, rows, 1)))


def label_by_path(data: Sequences, paths: Sequence[Path], spec: ReadSpec) -> Sequences:
    """The sequences labelled with the name of the folder that their file is in, or of the file without suffixes."""
    labels = []
    for path in paths:
        labels.append(path.resolve().parent.name if spec.label_from == "folder" else path.name.partition(".")[0])
    return replace(data, labels=labels)


def _begins_with_a_label(table: pd.DataFrame) -> bool:
    """Whether what was taken for the header is a first row: it has a number, or a word that occurs below it."""
    return any(is_number(str(name)) or str(name) in set(table[name].tolist()) for name in table.columns)


def _fresh(known: dict[str, Any]) -> dict[str, Any]:
    """With None where a file says something else by itself."""
    return {"labels": None, "targets": None, "target_names": ()} | known


def _called(name: str, path: Path, labels_file: Path) -> list[str]:
    """What the labels may call a sequence, the most exact first."""
    if name != str(path):  # a record of several in the file
        return [name, name.removeprefix(f"{path}:")]
    try:
        relative = [path.resolve().relative_to(labels_file.resolve().parent).as_posix()]
    except ValueError:
        relative = []
    return [name, *relative, path.name, path.stem]


def _columns(
    table: pd.DataFrame, file: Path, spec: ReadSpec, task: Task, rows: Sequence[int], first: int
) -> dict[str, Any]:
    """Labels, targets and groups from the columns of a labels file, of which those before ``first`` are names."""
    columns = [str(name) for name in table.columns]
    for name in (spec.label_column, spec.group_column, *spec.target_columns):
        if name and name not in columns:
            raise ValueError(f"{file} has no column {name!r}; its columns are {columns}")
    left = [name for name in columns[first:] if name not in (spec.group_column, *spec.target_columns)]
    label = spec.label_column or ("label" if "label" in left else left[0] if left and not spec.target_columns else "")
    known: dict[str, Any] = {}
    table = table.iloc[list(rows)]
    if label and task == "regress":
        known = outcomes(numeric(table, label, file), f"{file}: column {label!r}", len(table), task)
    elif label:
        known["labels"] = words(table, label, file)
    if spec.target_columns:
        targets = numbers(table, spec.target_columns, file)
        known |= {"targets": targets, "target_names": spec.target_columns}
    if spec.group_column:
        known["groups"] = words(table, spec.group_column, file)
    return known
