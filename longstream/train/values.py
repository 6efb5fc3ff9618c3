"""Values of settings: from words and TOML to their types, and back to TOML."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin


def convert(key: str, value: Any, hint: Any) -> Any:
    """``value`` as ``hint``; strings come from the command line, everything else from TOML or Python.

    Raises:
        ValueError: it is of another type; the message names ``key``.
    """
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{key} must be one of {', '.join(filter(None, get_args(hint)))}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"{key} must be a list of strings, got {value!r}")
        return tuple(items)
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    try:
        if hint is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        if hint in (int, float) and isinstance(value, str):
            return hint(value)
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    except (KeyError, ValueError):
        pass
    else:
        if type(value) is hint:
            return value
    raise ValueError(f"{key} must be {words[hint]}, got {value!r}")


def toml_value(value: Any) -> str:
    """A setting's value as TOML."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL; surrogate pairs are avoided by ensure_ascii
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def is_unicode(text: str) -> bool:
    """Whether a string is free of the surrogates that stand for bytes of a file name or command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
