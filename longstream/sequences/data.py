"""Sequences in memory, as every reader returns them and every task takes them; and how they are split in two.

Values are numbers in the user's units. A missing one is NaN and stays NaN: nothing here fills it in.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class Sequences:
    """n sequences of frames, of any lengths, with what is known of each.

    Args:
        values:       n arrays (T_i, C) float32, or (height, width, C) for images as grids. NaN: missing.
        channels:     the C names; none given: "0", "1", ...
        labels:       (n,) of str, the class of each sequence. Numbers are written as text: "3", not "3.0".
        targets:      (n, K) float32, the numbers to predict of each sequence. NaN: unknown.
        target_names: the K names; none given: "target", or "target 0", "target 1", ...
        groups:       (n,) of str: the subject, recording ... of each, which a split keeps together.
        names:        of the sequences, for messages and reports; none given: "0", "1", ...
    Raises:
        ValueError: no sequences, one without frames, mixed channel counts, an infinite value, a missing label, counts
            that disagree. The message names the sequence.
    """

    values: list[np.ndarray]
    channels: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    targets: np.ndarray | None = None
    target_names: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.values)
        if n == 0:
            raise ValueError("Sequences: there must be at least one sequence, got none")
        names = tuple(map(str, self.names)) or tuple(map(str, range(n)))
        _require_count("names", len(names), n)
        values = [_frames(value, name) for value, name in zip(self.values, names, strict=True)]
        _require_alike(values, names)
        width = values[0].shape[-1]
        channels = tuple(map(str, self.channels)) or tuple(map(str, range(width)))
        if len(channels) != width:
            raise ValueError(
                f"Sequences: channels must name the {width} channels of the values, got {len(channels)} names"
            )
        _require_unique("channels", channels)
        for value, name in zip(values, names, strict=True):
            if not np.isfinite(value).all():
                _refuse_infinite(value, name, channels)
        targets, target_names = _targets(self.targets, self.target_names, names)
        fields = {
            "values": values,
            "channels": channels,
            "names": names,
            "targets": targets,
            "target_names": target_names,
        }
        for key, given in (("labels", self.labels), ("groups", self.groups)):
            fields[key] = None if given is None else as_labels(given, key, names)
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        frames = sorted({value.shape[:-1] for value in self.values})
        sizes = f"{frames[0]}" if len(frames) == 1 else f"{frames[0]} to {frames[-1]}"
        known = [key for key in ("labels", "targets", "groups") if getattr(self, key) is not None]
        return f"Sequences({len(self)} of {sizes} frames, channels {list(self.channels)}, with {known or 'no labels'})"

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int64: the frames of each sequence; of a grid, its pixels."""
        return np.array([int(np.prod(value.shape[:-1])) for value in self.values])

    @property
    def is_grid(self) -> bool:
        """Whether the values are images, (height, width, C)."""
        return self.values[0].ndim == 3

    @property
    def classes(self) -> list[str]:
        """The labels that occur, numbers in their order and then the other words in theirs."""
        return [] if self.labels is None else sorted(set(self.labels.tolist()), key=label_order)

    def select(self, indices: Iterable[int] | np.ndarray) -> Sequences:
        """The sequences of these numbers, or where a mask of n booleans is True. Values are shared, not copied."""
        chosen = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        if chosen.dtype == bool:
            _require_count("the mask of select", len(chosen), len(self))
            chosen = np.flatnonzero(chosen)
        if len(chosen) == 0:
            raise ValueError("Sequences: there must be at least one sequence, got none")
        part = copy.copy(self)  # it has been checked: not again
        fields: dict[str, Any] = {
            "values": [self.values[i] for i in chosen],
            "names": tuple(self.names[i] for i in chosen),
        }
        for key in ("labels", "targets", "groups"):
            if getattr(self, key) is not None:
                fields[key] = getattr(self, key)[chosen]
        for key, value in fields.items():
            object.__setattr__(part, key, value)
        return part

    def sha256(self) -> str:
        """A digest of everything but the names of the sequences; the order counts."""
        digest = hashlib.sha256()

        def add(*parts: object) -> None:
            digest.update(repr(parts).encode() + b"\n")

        add("channels", self.channels)
        for value in self.values:
            add(value.shape)
            digest.update(_canonical(value))
        for key in ("labels", "groups"):
            given = getattr(self, key)
            add(key, None if given is None else given.tolist())
        add("targets", self.target_names, None if self.targets is None else self.targets.shape)
        if self.targets is not None:
            digest.update(_canonical(self.targets))
        return digest.hexdigest()


def concatenate(parts: Sequence[Sequences]) -> Sequences:
    """One set from several, in the order given.

    Raises:
        ValueError: they have other channels or targets, or only some of them have labels, targets or groups.
    """
    if not parts:
        raise ValueError("concatenate: parts must hold at least one set of sequences, got none")
    first = parts[0]
    if len(parts) == 1:
        return first
    joined: dict[str, Any] = {"channels": first.channels, "target_names": first.target_names}
    for part in parts[1:]:
        for key in joined:
            if getattr(part, key) != joined[key]:
                where = f"{part.names[0]!r} has {list(getattr(part, key))}, {first.names[0]!r} {list(joined[key])}"
                kind = "mixed channel counts: " if len(getattr(part, key)) != len(joined[key]) else ""
                raise ValueError(f"concatenate: {key} must be the same everywhere; {kind}{where}")
    for key in ("labels", "targets", "groups"):
        given = [getattr(part, key) for part in parts]
        without = [part.names[0] for part, value in zip(parts, given, strict=True) if value is None]
        if without and len(without) < len(parts):
            raise ValueError(f"concatenate: {key} must be given for all or for none, but {without[0]!r} has none")
        joined[key] = None if without else np.concatenate(given)
    names = tuple(name for part in parts for name in part.names)
    return Sequences([value for part in parts for value in part.values], names=names, **joined)


def as_labels(given: Any, key: str = "labels", names: Sequence[str] | None = None) -> np.ndarray:
    """(n,) of str from labels of any kind; whole numbers lose their ".0".

    Raises:
        ValueError: a label is missing (None, NaN, empty), or there are not as many as ``names``.
    """
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu":
        given = given.astype(str)
    items = given.tolist() if isinstance(given, np.ndarray) else list(given)  # not by numpy: it makes "nan" of NaN
    if any(isinstance(item, (list, tuple, np.ndarray)) for item in items):
        raise ValueError(
            f"Sequences: {key} must have one entry a sequence, shape (n,), got {items[0]!r:.60} for the first"
        )
    if names is not None:
        _require_count(key, len(items), len(names))
    texts = [_label_text(item) for item in items]
    if "" in texts:
        at = texts.index("")
        sequence = f"sequence {names[at]!r}" if names else f"number {at}"
        missing = texts.count("")
        raise ValueError(f"Sequences: {key} must not be missing or NaN, got {missing} such, first {sequence}")
    return np.array(texts, dtype=str)


def label_order(label: str) -> tuple[int, float, str]:
    """The key by which classes are sorted: numbers by value, then the other words."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _label_text(item: object) -> str:
    """A label as text; "" when it is missing."""
    if isinstance(item, (float, np.floating)) and float(item).is_integer():
        return str(int(item))
    text = item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
    missing = item is None or text.lower() == "nan" or text in ("NaT", "<NA>")
    return "" if missing else text.strip()


def _frames(value: Any, name: str) -> np.ndarray:
    """One sequence as a writable, contiguous float32 array, its shape checked."""
    try:
        with np.errstate(over="ignore"):  # too large for float32: refused as infinite below
            array = np.require(value, np.float32, ["C", "W"])
    except (TypeError, ValueError):
        raise ValueError(f"Sequences: values of sequence {name!r} must be numbers (T, C), got {value!r:.60}") from None
    if array.ndim not in (2, 3):
        raise ValueError(
            f"Sequences: values of sequence {name!r} must have shape (T, C) or (height, width, C), got {array.shape}"
        )
    if 0 in array.shape:
        what = "frames" if 0 in array.shape[:-1] else "channels"
        raise ValueError(f"Sequences: sequence {name!r} has no {what}: its shape is {array.shape}")
    return array


def _require_alike(values: list[np.ndarray], names: tuple[str, ...]) -> None:
    for value, name in zip(values, names, strict=True):
        if value.shape[-1] != values[0].shape[-1]:
            raise ValueError(
                f"Sequences: mixed channel counts: {names[0]!r} has {values[0].shape[-1]}, {name!r} {value.shape[-1]}"
            )
        if value.ndim != values[0].ndim:
            raise ValueError(
                f"Sequences: series (T, C) and images (height, width, C) are mixed: {names[0]!r} has shape"
                f" {values[0].shape}, {name!r} {value.shape}"
            )


def _require_count(key: str, count: int, n: int) -> None:
    if count != n:
        raise ValueError(f"Sequences: {key} must be one a sequence, {n}, got {count}")


def _require_unique(key: str, names: tuple[str, ...]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"Sequences: {key} must have different names, got {twice[0]!r} twice")


def _refuse_infinite(value: np.ndarray, name: str, channels: tuple[str, ...]) -> None:
    """Raise for the first infinite value, if there is one; NaN may stand."""
    infinite = np.argwhere(np.isinf(value))
    if len(infinite):
        *frame, channel = (int(i) for i in infinite[0])
        where = frame[0] if len(frame) == 1 else tuple(frame)
        raise ValueError(
            f"Sequences: values must be finite or NaN (missing), got an infinite one (or one beyond float32) in"
            f" sequence {name!r}, frame {where}, channel {channels[channel]!r}; {len(infinite)} such in this sequence"
        )


def _targets(
    given: Any, target_names: tuple[str, ...], names: tuple[str, ...]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The targets as (n, K) float32 and their names, checked."""
    if given is None:
        if target_names:
            raise ValueError(f"Sequences: target_names {list(target_names)} were given without targets")
        return None, ()
    try:
        with np.errstate(over="ignore"):
            targets = np.require(given, np.float32, ["C", "W"])
    except (TypeError, ValueError):
        raise ValueError("Sequences: targets must be numbers; words are labels, of a classification") from None
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.ndim != 2 or targets.shape[1] == 0:
        raise ValueError(f"Sequences: targets must have shape (n, K), got {targets.shape}")
    _require_count("targets", len(targets), len(names))
    many = targets.shape[1] > 1
    named = tuple(map(str, target_names)) or tuple(f"target {k}" if many else "target" for k in range(targets.shape[1]))
    if len(named) != targets.shape[1]:
        raise ValueError(f"Sequences: target_names must name the {targets.shape[1]} targets, got {len(named)} names")
    _require_unique("target_names", named)
    if np.isinf(targets).any():
        row, column = (int(i) for i in np.argwhere(np.isinf(targets))[0])
        raise ValueError(
            f"Sequences: targets must be finite or NaN (unknown), got an infinite one: {named[column]!r} of sequence"
            f" {names[row]!r}"
        )
    return targets, named


def _canonical(array: np.ndarray) -> bytes:
    """The bytes of a float32 array, the same whatever the machine's byte order and the bits of its NaNs."""
    if np.isnan(array).any():
        array = np.where(np.isnan(array), np.float32("nan"), array)
    return array.astype("<f4", copy=False).tobytes()
