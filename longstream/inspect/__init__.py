"""What a trained model does with its data: gates, states, reach, filters, and signs of failure.

``longstream inspect RUN`` on the command line; for a program, `inspect_model` of what `read_subject` has read. Names
are loaded when they are asked for: `--help` needs none.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longstream.inspect.page import Inspection as Inspection
    from longstream.inspect.page import write_inspection as write_inspection
    from longstream.inspect.run import inspect_model as inspect_model
    from longstream.inspect.signs import Sign as Sign
    from longstream.inspect.subject import Subject as Subject
    from longstream.inspect.subject import read_subject as read_subject

_WHERE = {
    "Inspection": "page",
    "write_inspection": "page",
    "inspect_model": "run",
    "Sign": "signs",
    "Subject": "subject",
    "read_subject": "subject",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"longstream.inspect.{_WHERE[name]}"), name)
