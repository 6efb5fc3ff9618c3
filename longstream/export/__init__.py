"""Graphs of trained models for other runtimes: a step or a chunk, the state as named inputs and outputs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longstream.export.run import ExportReport as ExportReport
    from longstream.export.run import export as export
    from longstream.export.runner import Runner as Runner

_HOME = {"ExportReport": "run", "export": "run", "Runner": "runner"}  # loaded when asked for: the command line need not


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"longstream.export.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
