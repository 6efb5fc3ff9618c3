"""Checkpoints, and states, from one format into another; a checkpoint is proved to be the same model.

`convert` is the function behind ``longstream convert``. Names are loaded when they are asked for: `--help` needs none.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longstream.convert.frames import load_frames as load_frames
    from longstream.convert.run import Report as Report
    from longstream.convert.run import convert as convert
    from longstream.convert.states import state_from_fla as state_from_fla
    from longstream.convert.states import state_to_fla as state_to_fla

_WHERE = {
    "load_frames": "frames",
    "Report": "run",
    "convert": "run",
    "state_from_fla": "states",
    "state_to_fla": "states",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"longstream.convert.{_WHERE[name]}"), name)
