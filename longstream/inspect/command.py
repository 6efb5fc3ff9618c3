"""The verb `longstream inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from longstream.train.flags import add_setting_flags, given

# What may be said of --data, where it is not as the run's own files.
READING = (
    "data.rows",
    "data.layout",
    "data.as_grid",
    "data.channels",
    "data.sequence_column",
    "data.label_column",
    "data.labels_file",
    "data.label_from",
    "data.target_columns",
    "data.group_column",
)


def add_inspect_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    parser.description = (
        "Show why a model of hgrn, hgrn2, hyena or hybrid behaves as it does, in one page of pictures: what its gates\n"
        "remember, what its states hold, how far back it looks, Hyena's filters, and three signs of failure."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="RUN", help="run directory, or a checkpoint of one")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="files or 'builtin' [what the run held out]")
    parser.add_argument("--generator", default="", metavar="TASK", help="of a run of tokens: another task [its own]")
    parser.add_argument("--out", metavar="DIR", help="folder to write [RUN/inspect]")
    parser.add_argument("--overwrite", action="store_true", help="replace the inspection that is there")
    parser.add_argument(
        "--length", type=int, default=0, metavar="N", help="of a sequence [text: twice that of training]"
    )
    parser.add_argument("--sequences", type=int, default=8, metavar="N", help="to look at [8]")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads [torch's choice]")
    add_setting_flags(parser.add_argument_group("of --data, where it is not as the run's own"), READING)


def run_inspect(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Inspect, write the page, and say in lines what was found and where it is.

    Raises:
        ValueError: the model or the data are of another kind, or damaged.    FileNotFoundError: one is missing.
        FileExistsError: there is an inspection.    ModuleNotFoundError: matplotlib is missing.
    """
    import importlib

    importlib.import_module("matplotlib.figure")  # better now than after the measuring
    from longstream.inspect.page import refuse_to_overwrite, write_inspection
    from longstream.inspect.run import inspect_model
    from longstream.inspect.subject import read_subject

    folder = Path(args.out or Path(args.model) / "inspect")
    if Path(args.model).is_dir():
        refuse_to_overwrite(folder, args.overwrite)
    subject = read_subject(
        args.model,
        data=args.data or (),
        reading=given(args, rest),
        generator=args.generator,
        length=args.length,
        count=args.sequences,
    )
    found = inspect_model(subject)
    written = write_inspection(found, folder)
    lines = []
    for sign in found.signs:
        lines += [f"{sign.name}: {sign.verdict}. {sign.measured}", *(f"  {advice}" for advice in sign.advice)]
    return [*lines, *map(str, written)]
