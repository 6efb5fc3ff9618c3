"""Generators of token sequences with known answers, seeded and documented with the source of their rules.

Each is a module of its own, ``longstream.tasks.<name>``, and is made by name: ``make_task("mqar:num_pairs=8")``.
"""

from importlib import import_module
from types import ModuleType

from longstream.tasks._base import IGNORED as IGNORED
from longstream.tasks._base import Examples as Examples
from longstream.tasks._base import TokenTask as TokenTask
from longstream.tasks.registry import TASKS as TASKS
from longstream.tasks.registry import make_task as make_task


def __getattr__(name: str) -> ModuleType:
    """The module of a task, imported when it is asked for."""
    if name in TASKS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
