"""Reading files of sequences: which reader a file is for, several files as one set, labels from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from longstream.sequences.arrays import looks_like_idx, read_cifar10, read_idx, read_npy, read_npz
from longstream.sequences.columns import is_saved_dataset, read_parquet, read_saved_dataset
from longstream.sequences.data import Sequences, concatenate
from longstream.sequences.fasta import read_fasta
from longstream.sequences.labels import label_by_name, label_by_path, label_in_order
from longstream.sequences.spec import ReadSpec, Task, bare_name, check_file, choose_channels
from longstream.sequences.tables import read_table_file
from longstream.sequences.ts import read_ts
from longstream.sequences.wav import read_wav, sampling_rate

TABLE = {"rows", "sequence_column", "label_column", "target_columns", "group_column", "channels"}
LISTS = TABLE | {"as_grid", "layout"}
NAMED = {"labels_file", "label_from", "label_column", "target_columns", "group_column", "channels"}
BY_ROW = {"labels_file", "label_column", "target_columns", "group_column", "channels"}


class Kind(NamedTuple):
    """A kind of file: what it is called, its suffixes, its reader, and the fields of ReadSpec that it has a use for."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, ReadSpec, Task], Sequences]
    uses: set[str]


KINDS = (
    Kind(".npz", (".npz",), read_npz, BY_ROW | {"as_grid", "layout"}),
    Kind(".npy", (".npy",), read_npy, BY_ROW | {"as_grid", "layout"}),
    Kind("idx", (".idx", "-ubyte"), read_idx, BY_ROW | {"as_grid"}),
    Kind("CIFAR-10", (".bin",), read_cifar10, BY_ROW | {"as_grid"}),
    Kind("CSV", (".csv",), read_table_file, TABLE),
    Kind("UCR text", (".tsv", ".txt"), read_table_file, TABLE),
    Kind(".ts", (".ts",), read_ts, {"channels"}),
    Kind("Parquet", (".parquet", ".pq"), read_parquet, LISTS),
    Kind("FASTA", (".fa", ".fasta", ".fna", ".ffn"), read_fasta, NAMED),
    Kind("WAV", (".wav", ".wave"), read_wav, NAMED),
    Kind("dataset", (), read_saved_dataset, LISTS),
)


def read_sequences(files: Sequence[str | Path], spec: ReadSpec | None = None, task: Task = "") -> Sequences:
    """Read files of one kind into one set of sequences, in the order given.

    Args:
        files: .npz, .npy, idx, .bin of CIFAR-10, .csv, .tsv, .txt, .ts, .parquet, FASTA or WAV (gzip: text and idx),
               folders that ``datasets.Dataset.save_to_disk`` wrote, or folders of WAV files (those below, too).
        spec:  how; None: by the defaults of ``ReadSpec``.
        task:  decides what an array of outcomes is: "classify", labels; "regress", targets; "forecast", neither; "":
               targets when they are numbers, labels when they are words or whole.
    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files of several kinds or of one that is not read, damaged ones, and whatever ``Sequences`` refuses.
    """
    spec = ReadSpec() if spec is None else spec
    paths = [found for file in files for found in _expand(Path(file))]
    if not paths:
        raise ValueError("read_sequences: files must name at least one file, got none")
    kinds = [_require_kind(path) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        if kind is not kinds[0]:
            raise ValueError(f"files must be of one kind, got {kinds[0].name}: {paths[0]} and {kind.name}: {path}")
    kind = kinds[0]
    spec.refuse_unused(kind.name, kind.uses)
    if not (spec.labels_file or kind.uses >= TABLE):
        for name in ("label_column", "group_column", "target_columns"):
            if getattr(spec, name):
                raise ValueError(f"ReadSpec.{name} is a column of a table: of {kind.name} files it needs labels_file")
    if kind.name == "WAV":
        _require_one_rate(paths)
    parts = [kind.read(path, spec, task) for path in paths]
    data = concatenate(parts)
    origins = [path for path, part in zip(paths, parts, strict=True) for _ in range(len(part))]
    if spec.label_from:
        data = label_by_path(data, origins, spec)
    elif spec.labels_file:
        by_name = kind.uses >= NAMED
        data = label_by_name(data, origins, spec, task) if by_name else label_in_order(data, spec, task)
    return data if kind.uses >= TABLE else choose_channels(data, spec.channels)


def kind_of(path: Path) -> Kind | None:
    """The kind of a file or folder, by its name, or where that says nothing by its first bytes; None: of none."""
    if path.is_dir():
        return KINDS[-1] if is_saved_dataset(path) else None
    name = bare_name(path)
    for kind in KINDS:
        if name.endswith(kind.suffixes):
            return kind
    if path.is_file() and looks_like_idx(path):
        return next(kind for kind in KINDS if kind.name == "idx")
    return None


def _require_kind(path: Path) -> Kind:
    kind = kind_of(path)
    if kind is None:
        known = ", ".join(suffix for known in KINDS for suffix in known.suffixes)
        raise ValueError(
            f"{path} is of no kind that longstream reads as sequences: {known}, a folder of a saved dataset"
        )
    return kind


def _expand(path: Path) -> list[Path]:
    """The path itself, or the WAV files of a folder that is no saved dataset."""
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_dir() or is_saved_dataset(path):
        if not path.is_dir():
            check_file(path)
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".wav", ".wave") and file.is_file())
    if not found:
        raise ValueError(f"{path} is a folder without WAV files, and no dataset saved to disk; give its files")
    return found


def _require_one_rate(paths: list[Path]) -> None:
    rates: dict[int, Path] = {}
    for path in paths:
        rates.setdefault(sampling_rate(path), path)
    if len(rates) > 1:
        (one, first), (two, second) = list(rates.items())[:2]
        raise ValueError(f"WAV files must have one sampling rate: {first} has {one} Hz, {second} {two} Hz")
