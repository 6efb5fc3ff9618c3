"""The tasks by name, and tasks from a line such as ``mqar:num_pairs=8,seq_len=128``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from longstream.tasks._base import TokenTask

# Class names by the name of the task, which is its module's too. A module is imported when its task is looked up.
_CLASSES = {
    "mqar": "MQAR",
    "associative_recall": "AssociativeRecall",
    "induction_heads": "InductionHeads",
    "selective_copying": "SelectiveCopying",
    "copying": "Copying",
    "in_context_recall": "InContextRecall",
    "fuzzy_recall": "FuzzyRecall",
    "noisy_recall": "NoisyRecall",
    "compression": "Compression",
    "memorization": "Memorization",
    "listops": "ListOps",
    "passages": "Passages",
    "pixels": "Pixels",
}


class _Tasks(Mapping[str, type[TokenTask]]):
    """Task classes by name, imported when they are asked for."""

    def __getitem__(self, name: str) -> type[TokenTask]:
        class_name = _CLASSES[name]
        return getattr(import_module(f"longstream.tasks.{name}"), class_name)

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


TASKS: Mapping[str, type[TokenTask]] = _Tasks()


def make_task(text: str) -> TokenTask:
    """The task that a line names: a name of `TASKS`, and behind a colon the fields that are not as by default.

    Args:
        text: as ``"mqar"`` or ``"mqar:num_pairs=8,seq_len=128"``; what `TokenTask.describe` writes. No value may have
              a comma in it.
    Raises:
        ValueError: an unknown task or field (the message says the nearest), one said twice, a value of another type
            than the field's or out of its range.
    """
    name, _, rest = (part.strip() for part in text.partition(":"))
    if name not in TASKS:
        raise ValueError(f"make_task: unknown task {name!r}{_nearest(name, TASKS)}; tasks are {', '.join(TASKS)}")
    task = TASKS[name]
    hints, known = get_type_hints(task), [field.name for field in fields(task)]
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ValueError(f"{name}: fields are written as field=value, got {part!r}")
        if key not in known:
            said = f"{_nearest(key, known)}; its fields are {', '.join(known)}"
            raise ValueError(f"{name}: unknown field {key!r}{said}")
        if key in given:
            raise ValueError(f"{name}: {key} is given twice")
        given[key] = _convert(f"{name}: {key}", value, hints[key])
    return task(**given)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def _convert(who: str, text: str, hint: Any) -> Any:
    """``text`` as a value of the type ``hint``: int, float, bool, str, a Literal of strings, or one of them or None."""
    if get_origin(hint) in (Union, UnionType):
        if text.lower() == "none":
            return None
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError(f"{who} must be one of {list(get_args(hint))}, got {text!r}")
        return text
    if hint is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(f"{who} must be true or false, got {text!r}")
        return _BOOLS[text.lower()]
    try:
        return hint(text)
    except ValueError:
        expected = {int: "an integer", float: "a number"}.get(hint, hint.__name__)
        raise ValueError(f"{who} must be {expected}, got {text!r}") from None


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
