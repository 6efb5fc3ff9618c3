"""What is said of a checkpoint that does not fit its model, and of a name under which there is none."""

import os
import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

_LAYER = re.compile(r"(?<=\blayers\.)\d+")


def describe_misfits(**kinds: Iterable[str]) -> str:
    """``"2 missing: a, b; 1 spare: c"`` of ``missing=["a", "b"], spare=["c"]``; "" where there are none.

    All are named; of those that differ in nothing but the number of the layer, as one: ``layers.{0-3,7}.weight``.
    """
    found = [(kind, list(names)) for kind, names in kinds.items()]
    return "; ".join(f"{len(names)} {kind}: {', '.join(_by_layer(names))}" for kind, names in found if names)


def _by_layer(names: list[str]) -> list[str]:
    numbers: dict[str, list[int]] = {}
    for name in names:
        number = _LAYER.search(name)
        numbers.setdefault(_LAYER.sub("N", name, count=1), []).extend([int(number[0])] if number else [])
    return sorted(_of_layers(name, layers) for name, layers in numbers.items())


def _of_layers(name: str, layers: list[int]) -> str:
    ranges = []
    for _, run in groupby(enumerate(sorted(layers)), lambda place: place[1] - place[0]):
        numbers = [layer for _, layer in run]
        ranges.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    number = ranges[0] if len(layers) == 1 else "{" + ",".join(ranges) + "}"
    return re.sub(r"(?<=\blayers\.)N", number, name, count=1)


def refuse_misfits(
    who: str, missing: Iterable[str], spare: Iterable[str], misshapen: Iterable[tuple[str, Any, Any]] = ()
) -> None:
    """Raise a ValueError that names all that does not fit; a misshapen tensor is name, shape and shape wanted."""
    shapes = [f"{name} {tuple(got)}, not {tuple(wanted)}" for name, got, wanted in misshapen]
    if misfits := describe_misfits(missing=missing, spare=spare, misshapen=shapes):
        raise ValueError(f"{who}, got tensors that do not fit, {misfits}")


def describe_absence(path: Any, error: OSError) -> str:
    """Why there is no checkpoint: no such folder, and nothing from the hub; and what to do without a network."""
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"there is no such folder here, and the hub did not give it: {why} Without a network, fetch it on another "
        f"machine, hf download {os.fspath(path)} --local-dir FOLDER, and give the folder in place of the name"
    )
