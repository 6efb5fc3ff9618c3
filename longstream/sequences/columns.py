"""Columns whose cells are lists: Parquet, and Hugging Face datasets saved to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longstream.sequences.data import Sequences
from longstream.sequences.spec import ReadSpec, Task, check_file, extra, one_line, outcomes
from longstream.sequences.tables import from_frame, numbers, numeric, words

Table = Any  # pyarrow.Table; pyarrow is optional
LABELS = ("label", "labels")  # what the column is called when nothing is said


class Columns(NamedTuple):
    """A table, and what its columns of special kinds hold."""

    table: Table
    classes: dict[str, list[str]]  # the names of the classes of ClassLabels, which are numbers in the table
    images: dict[str, list[np.ndarray]]  # decoded, (height, width) or (height, width, C)


def read_parquet(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """A table: cells that are lists are sequences, else a row is a frame (or, by ``rows``, a sequence)."""
    return _from_table(Columns(load_parquet(path), {}, {}), path, spec, task)


def read_saved_dataset(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """A dataset that ``Dataset.save_to_disk`` wrote, its columns as in ``read_parquet``; ClassLabels by their names."""
    return _from_table(load_saved_dataset(path), path, spec, task)


def load_parquet(path: Path) -> Table:
    """The table of a Parquet file."""
    with extra(f"reading {path.name}"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    check_file(path)
    try:
        return pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is no Parquet file, or damaged: {one_line(error)}") from None


def load_saved_dataset(path: Path) -> Columns:
    """A dataset saved to disk."""
    with extra(f"reading the dataset {path.name}"):
        import datasets
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the library says of a damaged folder
        raise ValueError(f"{path} is no dataset that was saved to disk, or damaged: {one_line(error)}") from None
    if isinstance(dataset, datasets.DatasetDict):
        parts = ", ".join(str(path / str(name)) for name in dataset)
        raise ValueError(f"{path} holds several datasets: give one of {parts}")
    features = dataset.features.items()
    classes = {name: list(kind.names) for name, kind in features if isinstance(kind, datasets.ClassLabel)}
    pictures = [name for name, kind in features if isinstance(kind, datasets.Image)]
    with extra(f"reading the images of {path.name}"):  # pillow decodes them
        images = {name: [np.asarray(image) for image in dataset[name]] for name in pictures}
    table = dataset.remove_columns(pictures) if pictures else dataset
    return Columns(table.with_format("arrow")[:], classes, images)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` wrote."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _from_table(read: Columns, path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    table, classes, images = read
    columns = [*table.column_names, *images]
    if len(table) == 0 and not any(images.values()):
        raise ValueError(f"{path} has no rows")
    lists = [name for name in columns if name in images or _is_list(table.schema.field(name).type)]
    frame_like = not lists or spec.rows == "frames"
    label = spec.label_column or ("" if frame_like else next((name for name in LABELS if name in columns), ""))
    for name in (spec.sequence_column, label, spec.group_column, *spec.target_columns, *spec.channels):
        if name and name not in columns:
            raise ValueError(f"{path} has no column {name!r}; its columns are {', '.join(map(repr, columns))}")
    plain = table.select([name for name in columns if name not in lists]).to_pandas()
    for name, called in classes.items():
        plain[name] = [
            called[int(i)] if i == i and i is not None and 0 <= i < len(called) else None for i in plain[name]
        ]
    if frame_like:
        if wrong := [name for name in lists if name in spec.channels or not spec.channels]:
            held = "images" if wrong[0] in images else "lists"
            raise ValueError(f"{path}: column {wrong[0]!r} holds {held}; with rows='frames' a cell must be a number")
        return from_frame(plain, path, spec, "frames" if spec.rows == "auto" else spec.rows, task)
    if spec.sequence_column:
        raise ValueError(
            f"{path}: sequence_column {spec.sequence_column!r} is for rows='frames', here a row is a sequence"
        )
    values, channels = _values(read, spec.channels or lists, path, spec)
    known: dict[str, Any] = {}
    if label and (task == "regress" or (label not in classes and plain[label].dtype.kind == "f")):
        known = outcomes(numeric(plain, label, path), f"{path}: column {label!r}", len(values), task)
    elif label:
        known["labels"] = words(plain, label, path)
    if spec.group_column:
        known["groups"] = words(plain, spec.group_column, path)
    if spec.target_columns:
        if all(name in lists for name in spec.target_columns):
            raise ValueError(f"{path}: target_columns must be numbers, {spec.target_columns[0]!r} holds lists")
        targets = numbers(plain, spec.target_columns, path)
        known |= {"targets": targets, "target_names": spec.target_columns}
    return Sequences(values, channels=channels, names=tuple(f"{path}:{row}" for row in range(len(values))), **known)


def _values(
    table: Columns, columns: Sequence[str], path: Path, spec: ReadSpec
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Lists are channels of their names; one column of lists of lists is (T, C), or (C, T) by ``layout``."""
    if any(name in table.images for name in columns):
        if len(columns) > 1:
            raise ValueError(f"{path}: columns {list(columns)} hold images or sequences; choose one with channels")
        return _pictures(table.images[columns[0]], spec), ()
    read = {name: _lists(table.table.column(name).combine_chunks(), f"{path}: column {name!r}") for name in columns}
    nested = [name for name, sequences in read.items() if sequences[0].ndim > 1]
    if nested and len(read) > 1:
        raise ValueError(
            f"{path}: columns {list(read)} hold sequences, {nested[0]!r} lists of lists; choose one with channels"
        )
    if nested:
        sequences = read[nested[0]]
        if spec.layout == "channels-time":
            sequences = [np.moveaxis(value, 0, -1) for value in sequences]
        if sequences[0].ndim == 3 and not spec.as_grid:
            sequences = [value.reshape(-1, value.shape[-1]) for value in sequences]
        elif spec.as_grid and sequences[0].ndim == 2:
            sequences = [value[..., None] for value in sequences]
        return sequences, ()
    lengths = {name: [len(value) for value in sequences] for name, sequences in read.items()}
    first, *others = lengths
    for other in others:
        if lengths[other] != lengths[first]:
            row = next(i for i, (a, b) in enumerate(zip(lengths[first], lengths[other], strict=True)) if a != b)
            raise ValueError(
                f"{path}: row {row} has {lengths[first][row]} frames in column {first!r},"
                f" {lengths[other][row]} in {other!r}"
            )
    return [np.stack(frames, axis=1) for frames in zip(*read.values(), strict=True)], tuple(read)


def _pictures(images: list[np.ndarray], spec: ReadSpec) -> list[np.ndarray]:
    """Decoded images as grids or in reading order; bytes become 0 to 1, as in idx files."""
    values = []
    for image in images:
        image = image if image.ndim == 3 else image[..., None]  # (height, width, C)
        scale = 255 if image.dtype == np.uint8 else 1
        values.append((image if spec.as_grid else image.reshape(-1, image.shape[-1])).astype(np.float32) / scale)
    return values


def _lists(array: Any, where: str) -> list[np.ndarray]:
    """The cells of a column of lists, or of lists of lists, as float32 arrays; null is NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    if array.null_count:
        row = array.is_null().to_pylist().index(True)
        raise ValueError(f"{where}: row {row} is empty (null), not a list")
    lengths = pc.call_function("list_value_length", [array]).to_numpy()
    inner = array.flatten()
    if _is_list(inner.type):
        rows = _lists(inner, where)  # of all sequences, one behind the other
        cuts = np.cumsum(lengths)[:-1]
        cells = [rows[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
        for number, cell in enumerate(cells):
            if len({row.shape for row in cell}) > 1:
                raise ValueError(
                    f"{where}: the lists of row {number} differ in length: mixed channel counts, or another layout"
                )
            if not cell:
                raise ValueError(f"{where}: row {number} has no frames")
        return [np.stack(cell) for cell in cells]
    if not (pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type) or pa.types.is_boolean(inner.type)):
        raise ValueError(f"{where} must hold numbers, got {inner.type}")
    if pa.types.is_boolean(inner.type):
        inner = inner.cast(pa.int8())
    numbers = inner.to_numpy(zero_copy_only=False)  # integers with nulls become float64, null NaN
    return np.split(numbers, np.cumsum(lengths)[:-1])


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
