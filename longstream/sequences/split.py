"""Holding part of the sequences out: whole groups together, classes in proportion; or the end of every series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from longstream.sequences.data import Sequences


def split_sequences(
    data: Sequences,
    fraction: float,
    seed: int,
    hold_out_groups: Sequence[str] = (),
    stratify: bool = True,
) -> tuple[Sequences, Sequences]:
    """Split into (train, held_out), each in the order of ``data``. The same arguments give the same split.

    Args:
        data:            where it has groups, each of them is wholly on one side.
        fraction:        of the sequences that are held out, as nearly as groups and classes allow; in (0, 1).
        hold_out_groups: exactly these groups are held out; then ``fraction`` and ``seed`` say nothing.
        stratify:        keep the proportions of the classes, and one sequence at least of each in training; off for
                         other tasks than classification.
    Raises:
        ValueError: a set of one sequence, one group, unknown groups (the message lists those there are), a class that
            would be in the held-out part only.
    """
    if len(data) < 2:
        raise ValueError(f"split_sequences: a set of one sequence ({data.names[0]!r}) cannot be split in two")
    if hold_out_groups:
        held_out = _named_groups(data, hold_out_groups)
    else:
        _require_fraction("split_sequences", fraction)
        random = np.random.default_rng(seed)
        labels = data.labels if stratify else None
        if data.groups is not None:
            held_out = _whole_groups(data.groups, labels, fraction, random)
        else:
            held_out = _by_class(len(data), labels, fraction, random)
    train, rest = data.select(~held_out), data.select(held_out)
    if unseen := [label for label in rest.classes if label not in set(train.classes)] if stratify else []:
        raise ValueError(
            f"split_sequences: of {_some(unseen)} all sequences would be held out, and a model cannot learn what it has"
            " never seen; hold out other groups or leave these labels out"
        )
    return train, rest


def split_time(data: Sequences, fraction: float) -> tuple[Sequences, Sequences]:
    """Split every series in time, for forecasting: (beginnings, ends), the last ``fraction`` of each held out.

    The end of series i begins at frame ``beginnings.lengths[i]``.

    Raises:
        ValueError: images, or a series of one frame.
    """
    _require_fraction("split_time", fraction)
    if data.is_grid:
        raise ValueError("split_time: images (height, width, C) have no end in time; read them without as_grid")
    cuts = []
    for value, name in zip(data.values, data.names, strict=True):
        if len(value) < 2:
            raise ValueError(f"split_time: series {name!r} has one frame and cannot be split in two")
        cuts.append(len(value) - min(max(round(len(value) * fraction), 1), len(value) - 1))
    begin = [value[:cut] for value, cut in zip(data.values, cuts, strict=True)]
    end = [value[cut:] for value, cut in zip(data.values, cuts, strict=True)]
    return replace(data, values=begin), replace(data, values=end)


def _require_fraction(who: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"{who}: fraction must be between 0 and 1, got {fraction}")


def _some(names: list[str]) -> str:
    """A list of names for a message, cut where it becomes long."""
    shown = ", ".join(repr(name) for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} ... ({len(names)} in all)"


def _named_groups(data: Sequences, wanted: Sequence[str]) -> np.ndarray:
    """(n,) bool: the sequences of these groups."""
    if isinstance(wanted, str):
        raise ValueError(f"split_sequences: hold_out_groups must be a list of names, got the string {wanted!r}")
    if data.groups is None:
        raise ValueError("split_sequences: hold_out_groups was given, but the data have no groups (group_column)")
    known = sorted(set(data.groups.tolist()))
    if unknown := [str(name) for name in wanted if str(name) not in known]:
        raise ValueError(f"split_sequences: hold_out_groups must be of {_some(known)}, got {_some(unknown)}")
    held_out = np.isin(data.groups, [str(name) for name in wanted])
    if held_out.all():
        raise ValueError(f"split_sequences: holding out {_some(known)} leaves nothing for training")
    return held_out


def _by_class(n: int, labels: np.ndarray | None, fraction: float, random: np.random.Generator) -> np.ndarray:
    """(n,) bool: round(n * fraction) of the sequences, from each class in proportion."""
    _, of = np.unique(np.zeros(n) if labels is None else labels, return_inverse=True)
    counts = np.bincount(of)
    most = counts - 1  # one of each class stays
    if not most.any():
        raise ValueError("split_sequences: every class has one sequence only, so that none can be held out")
    wanted = counts * fraction
    take = np.minimum(wanted.astype(int), most)
    total = min(max(round(n * fraction), 1), int(most.sum()))
    while take.sum() < total:  # to the class that is furthest below its share; among equals, chance decides
        short = np.where(take < most, wanted - take, -np.inf)
        take[random.choice(np.flatnonzero(short >= short.max() - 1e-9))] += 1
    held_out = np.zeros(n, bool)
    for number, count in enumerate(take):
        held_out[random.permutation(np.flatnonzero(of == number))[:count]] = True
    return held_out


def _whole_groups(
    groups: np.ndarray, labels: np.ndarray | None, fraction: float, random: np.random.Generator
) -> np.ndarray:
    """(n,) bool: groups, the large ones first, as long as each brings every class nearer to its share."""
    names, of_group = np.unique(groups, return_inverse=True)
    _, of_class = np.unique(np.zeros(len(groups)) if labels is None else labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"split_sequences: all sequences are of the group {str(names[0])!r}, which would be on one side"
        )
    table = np.zeros((len(names), of_class.max() + 1))  # (groups, classes): sequences of each
    np.add.at(table, (of_group, of_class), 1)
    wanted = table.sum(0) * fraction
    order = random.permutation(len(names))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    taken, best = np.zeros(len(names), bool), None
    held = np.zeros_like(wanted)
    for group in order:
        if ((table.sum(0) > 0) & (held + table[group] >= table.sum(0))).any():
            continue  # a class would have no sequence left in training
        if best is None or _distance(table[group], wanted) < _distance(table[best], wanted):
            best = group
        if _distance(held + table[group], wanted) < _distance(held, wanted):
            taken[group] = True
            held += table[group]
    if not taken.any():
        if best is None:
            raise ValueError(
                "split_sequences: no group can be held out, since each has all sequences of some class; name those to"
                " hold out anyway with hold_out_groups, or split without groups"
            )
        taken[best] = True
    return taken[of_group]


def _distance(held: np.ndarray, wanted: np.ndarray) -> float:
    """How far counts of classes are from those wanted; squared, so that no one class pays for the others."""
    return float(((held - wanted) ** 2).sum())
