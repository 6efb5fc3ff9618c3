"""The .ts files of the UEA and UCR archives, as sktime and aeon write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longstream.sequences.data import Sequences
from longstream.sequences.spec import ReadSpec, Task, outcomes, read_bytes


def read_ts(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """Series ``1,2,?:3,4,?:walk``: a colon between channels and before the label or target, ? where one is missing."""
    fields, lines = _header(read_bytes(path), path)
    if fields.get("timestamps", "false").lower() == "true":
        raise ValueError(f"{path} has time stamps; longstream reads .ts files of evenly spaced frames")
    by_class = fields.get("classlabel", "false").lower().startswith("true")
    by_target = fields.get("targetlabel", "false").lower().startswith("true")
    values, last = [], []
    for row, line in enumerate(lines):
        parts = line.split(":")
        if by_class or by_target:
            last.append(parts.pop().strip())
        if not parts:
            raise ValueError(f"{path}: case {row} has no values but {line!r:.60}")
        try:
            channels = [np.array([float(x.strip().replace("?", "nan")) for x in part.split(",")]) for part in parts]
        except ValueError as error:
            raise ValueError(f"{path}: case {row} is not of numbers: {error}") from None
        if len({len(channel) for channel in channels}) > 1:
            lengths = [len(channel) for channel in channels]
            raise ValueError(f"{path}: the channels of case {row} must have one length, got {lengths}")
        values.append(np.stack(channels, axis=1))
    known = {}
    if by_class and task != "regress":
        known = {"labels": last}
    elif last:
        try:
            y = np.array([float(word.replace("?", "nan")) for word in last])
        except ValueError as error:
            raise ValueError(f"{path}: the last field of each case must be a number: {error}") from None
        known = outcomes(y, f"{path}: the last fields", len(values), task)
    return Sequences(values, names=tuple(f"{path}:{row}" for row in range(len(values))), **known)


def _header(data: bytes, path: Path) -> tuple[dict[str, str], list[str]]:
    """The ``@`` fields in lower case, and the lines below ``@data``."""
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8, so no .ts file") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    fields: dict[str, str] = {}
    for number, line in enumerate(lines):
        if not line.startswith("@"):
            break
        name, _, value = line[1:].partition(" ")
        if name.lower() == "data":
            if number + 1 == len(lines):
                raise ValueError(f"{path} has no cases below @data")
            return fields, lines[number + 1 :]
        fields[name.lower()] = value.strip()
    raise ValueError(f"{path} is no .ts file: a line @data must follow the other @ lines")
