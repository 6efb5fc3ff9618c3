"""A user's own copies of the usual text data sets, read and checked: labeled texts, ListOps, WikiText-103, enwik8."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from longstream.sequences.spec import bare_name, check_file, read_bytes
from longstream.tasks._base import SPLITS, Split

Row = tuple[str, str]  # a text and its label
SPLIT_WORDS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TEXT_COLUMNS = ("text", "source", "review", "sentence", "document")
LABEL_COLUMNS = ("label", "target", "sentiment", "class")
OPERATORS = {"[MIN", "[MAX", "[MED", "[SM"}

ENWIK8 = (100_000_000, "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8")  # bytes, sha256
ENWIK8_PARTS = {"train": 90, "validation": 5, "test": 5}  # percent
WIKITEXT_WORDS: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
# Merity et al. 2016 (arXiv:1609.07843), Table 1: words, and an end of line for each line
WIKITEXT103 = {"train": 103_227_021, "valid": 217_646, "test": 245_569}


def read_texts(path: Path) -> list[Row]:
    """Labeled texts of a file, or of a folder in which each label has a folder of .txt files ("pos", "neg").

    The file is of tabs (.tsv, .txt) or commas (.csv, with quotes), perhaps packed. With a header its columns are found
    by their names (`TEXT_COLUMNS`, `LABEL_COLUMNS`); without one the first of its two columns is the label.

    Raises:
        FileNotFoundError: it is not there.    ValueError: it is damaged or of another kind; the message says the line.
    """
    if path.is_dir():
        return _folder_texts(path)
    rows = _table(path)
    header = [cell.strip().lower() for cell in rows[0][1]]
    texts = [at for at, cell in enumerate(header) if cell in TEXT_COLUMNS]
    labels = [at for at, cell in enumerate(header) if cell in LABEL_COLUMNS]
    if texts and labels:
        text, label, width = texts[0], labels[0], len(header)
        rows = rows[1:]
    elif len(header) == 2:
        text, label, width = 1, 0, 2
    else:
        raise ValueError(
            f"{path}: the first line must name a column of texts, one of {list(TEXT_COLUMNS)}, and one of labels, one"
            f" of {list(LABEL_COLUMNS)}, or there must be two columns, label and text; got {header[:6]}"
        )
    found = []
    for line, cells in rows:
        if len(cells) != width:
            raise ValueError(f"{path}: line {line} must have {width} columns as the first, got {len(cells)}")
        if not cells[text] or not cells[label].strip():
            raise ValueError(f"{path}: line {line} has no {'label' if cells[text] else 'text'}")
        found.append((cells[text], cells[label].strip()))
    if not found:
        raise ValueError(f"{path} has a header and no texts")
    return found


def read_listops(path: Path) -> list[Row]:
    """Trees and their values, of a .tsv file of Long Range Arena with the header ``Source  Target``.

    Raises:
        FileNotFoundError: it is not there.    ValueError: it is damaged or of another kind; the message says the line.
    """
    rows = _table(path)
    if rows[0][1] != ["Source", "Target"]:
        raise ValueError(f"{path}: the first line must be Source and Target with a tab between, got {rows[0][1]!r:.60}")
    words = {"(", ")", "]", *OPERATORS, *map(str, range(10))}
    for line, cells in rows[1:]:
        if len(cells) != 2 or cells[1] not in map(str, range(10)):
            raise ValueError(f"{path}: line {line} must be a tree, a tab and a digit, got {cells!r:.60}")
        tree = cells[0].split()
        if unknown := set(tree) - words:
            raise ValueError(f"{path}: line {line} has {min(unknown)!r:.20}, which is no word of ListOps")
        if not tree or sum(word in OPERATORS for word in tree) != tree.count("]"):
            raise ValueError(f"{path}: line {line} is cut short: it must close as many operators as it opens")
    if len(rows) == 1:
        raise ValueError(f"{path} has a header and no trees")
    return [(cells[0], cells[1]) for _, cells in rows[1:]]


def split_rows(path: Path, split: Split, read: Callable[[Path], list[Row]]) -> list[Row]:
    """The rows of one split, of a folder with a file or folder for each, or of one file.

    In a folder their names end in a split's name or one of `SPLIT_WORDS`, as "basic_val.tsv". Where there is none for
    validation, it is a tenth of train; where there is but one file, a tenth is for validation and a tenth for the test.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    if path.is_file():
        rows = read(path)
        return [rows[at] for at in hold_out(len(rows), 0.1, 0.1)[split]]
    found = {name: _of_split(path, name) for name in SPLITS}
    for name in ("train", "test"):
        if found[name] is None:
            raise FileNotFoundError(f"{path} has no file or folder for the split {name!r}, as {name}.tsv")
    if (chosen := found[split]) is not None and (split == "test" or found["validation"] is not None):
        return read(chosen)
    train = found["train"]
    assert train is not None  # asked for above
    rows = read(train)
    return [rows[at] for at in hold_out(len(rows), 0.1, 0.0)[split]]


def hold_out(count: int, validation: float, test: float) -> dict[Split, np.ndarray]:
    """Numbers of 0 ... count - 1 for each split, always the same; in each share at least one if it is not 0."""
    order = np.random.default_rng(0).permutation(count)
    sizes = [max(1, round(count * share)) if share else 0 for share in (test, validation)]
    if sum(sizes) >= count:
        raise ValueError(f"hold_out: there must be more than {sum(sizes)} examples to split, got {count}")
    parts = np.split(order, np.cumsum(sizes))
    return {"train": np.sort(parts[2]), "validation": np.sort(parts[1]), "test": np.sort(parts[0])}


def split_enwik8(path: str | Path, folder: str | Path, expected: tuple[int, str] | None = ENWIK8) -> dict[Split, Path]:
    """enwik8 as files for ``--data``, ``--validation-data`` and ``evaluate``: its first 90 %, then 5 % and 5 %.

    Args:
        path:     enwik8, unpacked or as .gz, .bz2 or .xz.
        folder:   where enwik8.train, enwik8.validation and enwik8.test are written; they must not be there yet.
        expected: bytes and sha256; None takes any file.
    Raises:
        FileNotFoundError: it is not there.    FileExistsError: a part is there.    ValueError: it is another file.
    """
    data = read_bytes(Path(path))
    if expected is not None:
        size, sha256 = expected
        if len(data) != size:
            raise ValueError(f"{path} is not enwik8: it must have {size} bytes, got {len(data)}")
        if (got := hashlib.sha256(data).hexdigest()) != sha256:
            raise ValueError(f"{path} is not enwik8, or damaged: its sha256 must be {sha256}, got {got}")
    paths: dict[Split, Path] = {split: Path(folder) / f"enwik8.{split}" for split in SPLITS}
    for part in paths.values():
        if part.exists():
            raise FileExistsError(f"{part} is there already; remove it or give another folder")
    start = done = 0
    for split, part in paths.items():
        done += ENWIK8_PARTS[split]
        stop = len(data) * done // 100
        write_beside(part, data[start:stop])
        start = stop
    return paths


def wikitext103(folder: str | Path, counts: dict[str, int] = WIKITEXT103) -> dict[Split, Path]:
    """The files of a WikiText-103 folder by split, each checked by its number of words.

    Args:
        folder: with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens.
        counts: words and ends of lines that each must have.
    Raises:
        FileNotFoundError: a file is not there.    ValueError: one is damaged, cut short, or of another WikiText.
    """
    found: dict[Split, Path] = {}
    for split, word in WIKITEXT_WORDS.items():
        path = Path(folder) / f"wiki.{word}.tokens"
        check_file(path)
        with open(path, "rb") as stream:
            words = sum(len(line.split()) + 1 for line in stream)
        if words != counts[word]:
            raise ValueError(
                f"{path} is damaged or not of WikiText-103: it must have {counts[word]} words and ends of lines, got"
                f" {words}"
            )
        found[split] = path
    return found


def write_beside(path: Path, data: bytes) -> None:
    """The file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".writing-{os.getpid()}-{path.name}")
    try:
        with open(beside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _table(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a table with the numbers of their lines, empty ones left out."""
    commas = bare_name(path).endswith(".csv")
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    if commas:
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            rows = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num} is damaged: {error}") from None
    else:
        rows = [(at, line.split("\t")) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [(at, [*cells[:-1], cells[-1].rstrip("\r")]) for at, cells in rows]
    if not rows:
        raise ValueError(f"{path} has no lines")
    return rows


def _folder_texts(path: Path) -> list[Row]:
    labels = sorted(
        folder for folder in path.iterdir() if folder.is_dir() and folder.name != "unsup"
    )  # IMDB's unlabeled
    rows = []
    for folder in labels:
        for file in sorted(folder.glob("*.txt")):
            try:
                text = file.read_text("utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{file} is not text in UTF-8") from None
            if not text:
                raise ValueError(f"{file} is empty")
            rows.append((text, folder.name))
    if not rows:
        raise ValueError(f"{path} must hold a folder of .txt files for each label, as pos and neg, got none")
    return rows


def _of_split(folder: Path, split: Split) -> Path | None:
    """The file or folder of a split in a folder; None where there is none."""
    for word in SPLIT_WORDS[split]:
        for path in sorted(folder.iterdir()):
            stem = bare_name(path).rpartition(".")[0] if path.is_file() else path.name.lower()
            if (stem == word or stem.endswith((f"_{word}", f"-{word}", f".{word}"))) and (
                path.is_dir() or bare_name(path).endswith((".tsv", ".csv", ".txt"))
            ):
                return path
    return None
