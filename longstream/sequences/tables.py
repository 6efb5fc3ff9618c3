"""Tables: CSV, Parquet and UCR's text, a row a frame or a row a sequence."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longstream.sequences.data import Sequences, as_labels
from longstream.sequences.spec import ReadSpec, Task, bare_name, extra, one_line, outcomes, read_bytes

if TYPE_CHECKING:
    import pandas as pd

NAN = ("", "nan", "NaN", "NAN", "-nan")
MISSING = (*NAN, "NA", "N/A", "n/a", "null", "NULL", "None", "?")  # of numbers; in columns of words these are words


def read_table_file(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """A CSV (also with ; or tabs), or UCR's text (.txt, .tsv): numbers between blanks or tabs, the label first."""
    rows = ("sequences" if _is_ucr(path) else "frames") if spec.rows == "auto" else spec.rows
    first = (0,) if rows == "sequences" and not spec.label_column else ()  # the label
    words = (spec.label_column, spec.group_column, spec.sequence_column)
    frame = read_cells(path, (*words, *first), rows=rows, named=(*words, *spec.target_columns, *spec.channels))
    return from_frame(frame, path, spec, rows, task)


def from_frame(frame: pd.DataFrame, path: Path, spec: ReadSpec, rows: str, task: Task = "") -> Sequences:
    """Sequences from a table; ``rows`` is "frames" or "sequences"."""
    if len(frame) == 0:
        raise ValueError(f"{path} has no rows below its header")
    wanted = (spec.sequence_column, spec.label_column, spec.group_column, *spec.target_columns, *spec.channels)
    for name in wanted:
        if name and name not in frame.columns:
            raise ValueError(f"{path} has no column {name!r}; its columns are {_listed(list(frame.columns))}")
    return _row_a_frame(frame, path, spec) if rows == "frames" else _row_a_sequence(frame, path, spec, task)


def read_cells(
    path: Path,
    words: tuple[str | int, ...] | None = None,
    *,
    rows: str = "frames",
    named: tuple[str, ...] = (),
    header: bool | None = None,
) -> pd.DataFrame:
    """The cells of a text table.

    Args:
        words:  names or numbers of columns that stay text; None: all.
        rows:   "sequences" may be of different lengths, and their first cell a word.
        named:  columns that there should be: where the first line has one, it is a header.
        header: whether the first line names the columns; None: where it looks so. Else the names are "0", "1", ...
    """
    with extra(f"reading {path.name}"):
        import pandas as pd

    data = read_bytes(path)
    first, lines = _lines(data, path)
    separator = max(",;\t", key=first.count)
    if separator not in first and _is_ucr(path):
        separator = r"\s+"
    cells = first.split() if separator == r"\s+" else next(csv.reader([first], delimiter=separator))
    cells = [cell.strip() for cell in cells]
    if header is None:
        header = any(cell in named and not is_number(cell) for cell in cells) or _is_header(cells, rows, path)
    width = len(cells)
    if rows == "sequences":
        width = max(
            width, *(len(line.split()) if separator == r"\s+" else line.count(separator) + 1 for line in lines())
        )
    names = (cells if header else []) + list(map(str, range(len(cells) if header else 0, width)))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: two columns have the name {twice!r}")
    text = (
        names if words is None else [names[i] for i in words if isinstance(i, int)] + [n for n in names if n in words]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
            frame = pd.read_csv(
                io.BytesIO(data),
                sep=separator,
                header=0 if header else None,
                names=names,
                index_col=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
                dtype=dict.fromkeys(text, str),
                keep_default_na=False,
                na_values=list(NAN),
                low_memory=False,
            )
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} is no table: {one_line(error)}") from None
    for name in text:
        frame[name] = whole_numbers(frame[name])
    return frame


def _is_ucr(path: Path) -> bool:
    return bare_name(path).endswith((".txt", ".tsv"))


def _lines(data: bytes, path: Path) -> tuple[str, Callable[[], list[str]]]:
    """The first line of a text that is not blank, and what makes the list of all lines."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8, so no table: {error.reason} at byte {error.start}") from None
    first = re.search(r"[^\r\n]*\S[^\r\n]*", text)
    if first is None or "\0" in first.group():
        raise ValueError(f"{path} is no table: {'it has no lines' if first is None else 'it is not text'}")
    return first.group(), text.splitlines


def whole_numbers(column: pd.Series) -> pd.Series:
    """A column of words; if all of them are whole numbers such as "3.0" or "1.0000e+00", they become "3" and "1"."""
    known = column.dropna()
    if known.str.fullmatch(r"[+-]?\d+").all():
        return column  # "007" may be a name
    try:
        values = known.astype(float)
    except ValueError:
        return column
    if not (np.isfinite(values) & (values == values.round())).all():
        return column
    return values.astype(int).astype(str).reindex(column.index)


def numeric(frame: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """A column as float64, NaN where a cell is missing.

    Raises:
        ValueError: a cell is something else; the message names the column and its first such cell.
    """
    with extra("reading tables"):
        import pandas as pd

    cells = frame[column]
    kind = cells.dtype.kind
    if kind in "iufb":
        return cells.to_numpy(np.float64, na_value=np.nan)
    dates = kind in "mM"  # would be numbers of nanoseconds
    found: Any = pd.Series(np.nan, cells.index) if dates else pd.to_numeric(cells.astype(object), errors="coerce")
    wrong = found.isna() & cells.notna() & ~cells.isin(MISSING)
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        raise ValueError(
            f"{path}: column {column!r} is not numeric: {str(cells.iloc[row])!r:.60} in row {row}; name the columns to"
            " use with channels, or say what it is (label_column, group_column, ...)"
        )
    return found.to_numpy(np.float64, na_value=np.nan)


def numbers(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> np.ndarray:
    """Columns as (rows, len(columns)) float64; see ``numeric``."""
    chosen = frame[list(columns)]
    if all(frame[name].dtype.kind in "iuf" for name in columns):
        return chosen.to_numpy(np.float64, na_value=np.nan)
    return np.stack([numeric(frame, name, path) for name in columns], axis=1)


def words(frame: pd.DataFrame, column: str, path: Path) -> np.ndarray:
    """A column of labels or groups, (n,) of str.

    Raises:
        ValueError: a cell is missing; the message names the column and row.
    """
    cells = frame[column]
    missing = cells.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"{path}: column {column!r} must not be missing or NaN, got {int(missing.sum())} such, first in row"
            f" {int(np.argmax(missing))}"
        )
    codes, different = cells.factorize()
    return as_labels(np.array(different, object))[codes]


def _is_header(cells: list[str], rows: str, path: Path) -> bool:
    """Whether these cells of the first line look like names of columns: words, or numbers that count from 0 or 1."""
    cells = cells if rows == "frames" else cells[1:]  # a sequence may begin with a word, its label
    numbers = [cell for cell in cells if is_number(cell)]
    if len(numbers) == len(cells):  # as pandas names columns; UCR's text has no header
        counting = [[str(i) for i in range(start, start + len(cells))] for start in (0, 1)]
        return len(cells) > 1 and cells in counting and not _is_ucr(path)
    if rows == "sequences":
        return not numbers
    return all(cell.isdecimal() for cell in numbers) and len(set(numbers)) == len(numbers)


def is_number(cell: str) -> bool:
    """Whether a cell is a number, or stands for a missing one."""
    try:
        float(cell)
    except ValueError:
        return cell in MISSING
    return True


def _row_a_frame(frame: pd.DataFrame, path: Path, spec: ReadSpec) -> Sequences:
    named = {spec.sequence_column, spec.label_column, spec.group_column, *spec.target_columns}
    channels = spec.channels or tuple(str(name) for name in frame.columns if name not in named)
    if not channels:
        raise ValueError(
            f"{path} has no column left for the values: {_listed(sorted(filter(None, named)))} have other uses"
        )
    values = numbers(frame, channels, path)  # (rows, C)
    if spec.sequence_column:
        order = words(frame, spec.sequence_column, path)
        _, first, inverse = np.unique(order, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))[inverse]  # (rows,): sequences in the order of their first row
        rows = np.argsort(rank, kind="stable")
        starts = np.flatnonzero(np.diff(rank[rows], prepend=-1))
        names = tuple(f"{path}:{order[row]}" for row in rows[starts])
    else:
        rows, starts, names = np.arange(len(frame)), np.array([0]), (str(path),)
    known: dict[str, Any] = {}
    for key, column in (("labels", spec.label_column), ("groups", spec.group_column)):
        if column:
            known[key] = _constant(words(frame, column, path)[rows], starts, names, column)
    if spec.target_columns:
        columns = [numeric(frame, column, path)[rows] for column in spec.target_columns]
        constant = [_constant(c, starts, names, n) for c, n in zip(columns, spec.target_columns, strict=True)]
        known |= {"targets": np.stack(constant, axis=1), "target_names": spec.target_columns}
    return Sequences(np.split(values[rows], starts[1:]), channels=channels, names=names, **known)


def _constant(cells: np.ndarray, starts: np.ndarray, names: tuple[str, ...], column: str) -> np.ndarray:
    """The one entry of each sequence, whose rows begin at ``starts``."""
    first = np.repeat(cells[starts], np.diff(starts, append=len(cells)))
    same = (cells == first) | ((cells != cells) & (first != first))
    if not same.all():
        at = int(np.argmin(same))
        name = names[int(np.searchsorted(starts, at, side="right")) - 1]
        raise ValueError(
            f"{name}: column {column!r} must be the same in all rows of a sequence, got {first[at]} and {cells[at]}"
        )
    return cells[starts]


def _row_a_sequence(frame: pd.DataFrame, path: Path, spec: ReadSpec, task: Task) -> Sequences:
    if spec.sequence_column:
        raise ValueError(
            f"{path}: sequence_column {spec.sequence_column!r} is for rows='frames', here a row is a sequence"
        )
    label = spec.label_column or ("" if spec.target_columns else str(frame.columns[0]))
    named = {label, spec.group_column, *spec.target_columns}
    columns = spec.channels or [str(name) for name in frame.columns if name not in named]
    if not columns:
        raise ValueError(f"{path} has no column left for the values beside {_listed(sorted(filter(None, named)))}")
    table = numbers(frame, columns, path)  # (n, longest)
    there = ~np.isnan(table)
    lengths = table.shape[1] - np.argmax(there[:, ::-1], axis=1)  # behind the last number is the end
    for row in np.flatnonzero(~there.any(1)):
        raise ValueError(f"{path}: row {row} has no values")
    known: dict[str, Any] = {}
    if label and task == "regress":
        known = outcomes(numeric(frame, label, path), f"{path}: column {label!r}", len(frame), task)
    elif label:
        cells = words(frame, label, path)
        known = outcomes(_numbers_or_words(cells), f"{path}: column {label!r}", len(cells), task)
        if "labels" in known or (spec.label_column and task == ""):
            known["labels"] = cells  # as they are written: "007"
    if spec.group_column:
        known["groups"] = words(frame, spec.group_column, path)
    if spec.target_columns:
        targets = numbers(frame, spec.target_columns, path)
        known |= {"targets": targets, "target_names": spec.target_columns}
    values = [row[:length, None] for row, length in zip(table, lengths, strict=True)]
    return Sequences(values, names=tuple(f"{path}:{row}" for row in range(len(values))), **known)


def _numbers_or_words(cells: np.ndarray) -> np.ndarray:
    try:
        return cells.astype(np.float64)
    except ValueError:
        return cells


def _listed(names: list[Any]) -> str:
    """Names for a message, cut where they become many."""
    return ", ".join(repr(str(name)) for name in names[:30]) + (
        f" ... ({len(names)} in all)" if len(names) > 30 else ""
    )
