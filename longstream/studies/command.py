"""The verb `longstream study`."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from longstream.studies.study import SCALES

if TYPE_CHECKING:
    from longstream.studies.results import Outcome

MOST_JOBS = 1024
RESULTS = "runs/studies"
LEFT = 3  # exit code: a study has runs left, because its budget's time was used up


def add_study_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.usage = "longstream study NAME|list|all [options]"
    parser.description = (
        "Carry out a study: train its runs over several seeds, test its claims, and write tables, plots and a\n"
        "page to read into one folder. What is finished is not done again: the same command goes on."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME", help="of a study; list: what there is; all: one after another")
    parser.add_argument(
        "--budget", type=float, metavar="MINUTES", help="for all runs, on two cores: scales their steps [all steps]"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of every variant; intervals need two [3]")
    parser.add_argument(
        "--scale",
        choices=SCALES,
        default="small",
        help="small: two cores, half an hour; medium: a night or a GPU [small]",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the results [runs/studies/NAME]; all: of all of them")
    parser.add_argument("--data", metavar="DIR", help="folder with data that comes with no package [data]")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="runs at the same time [one a core]")
    parser.add_argument("--fresh", action="store_true", help="delete the results that are there, and begin anew")


def run_study_command(args: argparse.Namespace) -> int:
    """Carry out what was asked for and print where it is.

    Raises:
        ValueError: an unknown study, a value out of range, a budget too small, or a folder with another plan.
        FileExistsError: the folder holds other things.    FileNotFoundError: data are missing.
        ModuleNotFoundError: an optional package is missing.
    """
    from longstream.studies.registry import module_of

    if not 1 <= args.seeds <= 1000:
        raise ValueError(f"--seeds must be between 1 and 1000, got {args.seeds}")
    if not 0 <= args.jobs <= MOST_JOBS:
        raise ValueError(f"--jobs must be between 1 and {MOST_JOBS}, or 0 for one a core, got {args.jobs}")
    if args.budget is not None and not 0 < args.budget < math.inf:
        raise ValueError(f"--budget must be a positive number of minutes, got {args.budget:g}")
    if args.name == "list":
        return _list()
    module = "" if args.name == "all" else module_of(args.name)
    for name in ("matplotlib.figure", "rich.console", "scipy.stats"):  # better now than after an hour
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            package = name.partition(".")[0]
            raise ModuleNotFoundError(f"study needs {package}: pip install 'longstream[studies]'") from None
    if args.name == "all":
        return _run_all(args)
    return _code(_run(module, args, Path(args.out or f"{RESULTS}/{args.name}"), args.budget))


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    from longstream.studies.registry import STUDIES, load_study

    table = Table(box=None, pad_edge=False)
    for head in ("study", "question", "claims", *(f"{scale}, minutes" for scale in SCALES)):
        table.add_column(head, justify="left" if head in ("study", "question") else "right")
    for name, module in STUDIES.items():
        study = load_study(module)
        table.add_row(name, study.question, str(len(study.claims)), *(f"{study.minutes[scale]:g}" for scale in SCALES))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    console.print(table)
    return 0


def _run(module: str, args: argparse.Namespace, out: Path, budget: float | None) -> Outcome:
    """One study; its verdicts and files are printed."""
    from longstream.studies.registry import load_study
    from longstream.studies.runner import make_plan, run_study

    study = load_study(module)
    plan = make_plan(study, args.scale, args.seeds, budget, Path(args.data) if args.data else None)
    outcome = run_study(module, study, plan, out, budget=budget, jobs=args.jobs, fresh=args.fresh)
    sys.stdout.write("".join(f"{line}\n" for line in _summary(outcome)))
    sys.stdout.flush()
    if outcome.left:
        sys.stderr.write(f"{outcome.why}: {outcome.left} runs are left; the same command goes on\n")
    return outcome


def _run_all(args: argparse.Namespace) -> int:
    """One study after another; one that cannot be carried out is named at the end, and keeps no other from it.

    A budget is for all of them, in proportion to what each takes.
    """
    from longstream.studies.registry import STUDIES, load_study
    from longstream.studies.summary import write_summary

    out = Path(args.out or RESULTS)
    whole = sum(load_study(module).minutes[args.scale] for module in STUDIES.values())
    done: list[Outcome] = []
    refused: dict[str, str] = {}
    for name, module in STUDIES.items():
        sys.stderr.write(f"{name}\n")
        share = load_study(module).minutes[args.scale] / whole
        try:
            done.append(_run(module, args, out / name, args.budget and args.budget * share))
        except (ValueError, OSError, ImportError) as error:
            refused[name] = str(error)
            sys.stderr.write(f"{name}: {error}\n")
        if done and done[-1].interrupted_by:
            break
    if done:
        sys.stdout.write(f"{'summary':<12} {write_summary(done, refused, out)}\n")
    if done and done[-1].interrupted_by:
        return _code(done[-1])
    if refused:
        raise ValueError("; ".join(refused.values()))
    return max(map(_code, done))


def _code(outcome: Outcome) -> int:
    return 128 + outcome.interrupted_by if outcome.interrupted_by else LEFT if outcome.left else 0


def _summary(outcome: Outcome) -> list[str]:
    """Verdicts and files."""
    from longstream.studies.report import answers, verdict_text

    lines = [verdict_text(each, outcome.study.metrics) for each in answers(outcome)]
    files = {"report": "report.html", "tables": "results.md", "numbers": "results.csv", "runs": "runs"}
    return [*lines, *(f"{what:<12} {outcome.folder.path / name}" for what, name in files.items())]
