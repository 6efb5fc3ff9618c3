"""The settings as command-line flags."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from longstream.train.presets import USUAL
from longstream.train.settings import nearest, setting_fields


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, and a help text that shows them by section."""
    add_setting_flags(parser, setting_fields())
    parser.format_help = lambda: _help(parser)


def add_setting_flags(parser: argparse._ActionsContainer, keys: Iterable[str]) -> None:
    """Flags for these settings, ``dest`` being the dotted name; they have no value where they are not given."""
    for key in keys:
        field, hint = setting_fields()[key]
        how: dict[str, Any] = {}
        if hint is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif get_origin(hint) is tuple:
            how = {"nargs": "+"}
        if get_origin(hint) is Literal:
            how["metavar"] = "|".join(filter(None, get_args(hint)))
        elif hint is not bool:
            how["metavar"] = "N" if hint in (int, float) else "NAME"
        how["help"] = field.metadata["help"]
        parser.add_argument(_flag(key, field), dest=key, default=argparse.SUPPRESS, **how)


def given(args: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """The settings given as flags, and as overrides such as ``train.steps=100`` among the words left over.

    Raises:
        ValueError: a word is neither; the message names the nearest flag.
    """
    found = {key: value for key, value in vars(args).items() if "." in key}
    swallowed = []  # a flag of several words, as --data, takes all that follow it
    for key, words in [*found.items()]:
        if isinstance(words, list):
            swallowed += filter(_is_override, words)
            found[key] = [word for word in words if not _is_override(word)]
            if not found[key]:
                del found[key]
    for word in (*swallowed, *rest):
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
    """A line for each setting; the rare ones share some. It has to fit a screen."""
    lines = [
        "usage: longstream train --data FILE... [options] [section.name=value ...]",
        "Later sources win: preset, TOML file, options, overrides such as train.learning_rate=1e-3.",
        "",
    ]
    for action in parser._actions:
        if "." not in action.dest and action.dest != "help":
            shown = f"{action.option_strings[0]} {action.metavar or ''}"
            choices = f": {', '.join(USUAL)}, paper-..." if action.dest == "preset" else ""
            lines.append(f"  {shown:<30}{action.help}{choices}")
    section, rare = "", []
    for key, (field, hint) in setting_fields().items():
        flag, default = _flag(key, field), field.default
        if field.metadata["rare"]:
            rare.append(flag if default in ("", (), False) else f"{flag}\N{NO-BREAK SPACE}[{default}]")
            continue
        if key.partition(".")[0] != section:
            section = key.partition(".")[0]
            lines.append(f"[{section}]")
        shown = f"--[no-]{flag[2:]}" if hint is bool else flag
        tail = "" if hint is bool or default in ("", ()) else f" [{default}]"
        lines.append(f"  {shown:<30}{field.metadata['help']}{tail}")
    also = textwrap.fill(" ".join(rare), 98, initial_indent="also: ", subsequent_indent=" " * 6, break_on_hyphens=False)
    return "\n".join([*lines, also.replace("\N{NO-BREAK SPACE}", " "), ""])
