"""The settings as command-line flags."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longstream.train.settings import PRESETS, nearest, setting_fields


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, its ``dest`` being the dotted name, and a help text that shows them by section."""
    for key, (field, hint) in setting_fields().items():
        how: dict[str, Any] = {}
        if hint is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif key == "data.files":
            how = {"nargs": "+"}
        parser.add_argument(_flag(key, field), dest=key, default=argparse.SUPPRESS, **how)
    parser.format_help = lambda: _help(parser)


def given(args: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """The settings given as flags, and as overrides such as ``train.steps=100`` among the words left over.

    Raises:
        ValueError: a word is neither; the message names the nearest flag.
    """
    found = {key: value for key, value in vars(args).items() if "." in key}
    files = found.pop("data.files", [])  # --data takes all words that follow it
    if named := [word for word in files if not _is_override(word)]:
        found["data.files"] = named
    for word in (*(word for word in files if _is_override(word)), *rest):
        if not _is_override(word):
            raise ValueError(unknown_option(word, args.options))
        key, _, value = word.partition("=")
        found[key] = value
    return found


def unknown_option(word: str, options: Sequence[str]) -> str:
    """The message for a word that no command knows."""
    return f"unknown option {word!r}{nearest(word.partition('=')[0], options)}"


def _is_override(word: str) -> bool:
    return "=" in word and "." in word.partition("=")[0] and not word.startswith("-") and not Path(word).exists()


def _flag(key: str, field: Any) -> str:
    return field.metadata["flag"] or "--" + key.partition(".")[2].replace("_", "-")


def _help(parser: argparse.ArgumentParser) -> str:
    """A line for each setting; the rare ones share two. It has to fit a screen."""
    lines = [
        "usage: longstream train --data FILE... [options] [section.name=value ...]",
        "Later sources win: preset, TOML file, options, overrides such as train.learning_rate=1e-3.",
        "",
    ]
    for action in parser._actions:
        if "." not in action.dest and action.dest != "help":
            shown = f"{action.option_strings[0]} {action.metavar or ''}"
            choices = f": {', '.join(PRESETS)}" if action.dest == "preset" else ""
            lines.append(f"  {shown:<30}{action.help}{choices}")
    section, rare = "", []
    for key, (field, hint) in setting_fields().items():
        flag, default = _flag(key, field), field.default
        if field.metadata["rare"]:
            rare.append(f"{flag}\N{NO-BREAK SPACE}[{default}]".replace("\N{NO-BREAK SPACE}[]", ""))
            continue
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines.append(f"[{section}]")
        shown = f"--[no-]{flag[2:]}" if hint is bool else flag
        tail = "" if hint is bool or default in ("", ()) else f" [{default}]"
        lines.append(f"  {shown:<30}{field.metadata['help']}{tail}")
    also = textwrap.fill(" ".join(rare), 98, initial_indent="also: ", subsequent_indent=" " * 6, break_on_hyphens=False)
    return "\n".join([*lines, also.replace("\N{NO-BREAK SPACE}", " "), ""])
