"""The verb `longstream bench`: what it is asked for, and what it writes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

SUITES = {
    "all": "ops, layers and train",
    "ops": "every op with every backend, beside other ways to the same numbers",
    "layers": "every layer, beside those of other packages",
    "train": "training steps of a language model, beside a Llama of its size",
    "limits": "what the machine can do at most, and each kernel's share of it",
    "figures": "what the kernels are required to reach, and whether they do",
}
BUDGET, QUICK_BUDGET = 7200.0, 90.0  # seconds


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Time ops and layers, every backend here, and other packages in the same run, each checked\n"
        "against a float64 oracle first. A package that is missing is a row that says so:\n"
        "pip install 'longstream[bench]' adds them all."
    )
    parser.usage = "longstream bench [WHAT] [options]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    suites = "\n".join(f"  {name:<10}{text}" for name, text in SUITES.items())
    parser.epilog = f"what:\n{suites}\nOf one model step by step: longstream bench step, longstream bench decode."
    parser.add_argument("what", nargs="?", default="all", choices=SUITES, help="[all]", metavar="WHAT")
    parser.add_argument("--op", default="", metavar="A,B", help="these ops only, as gla,long_conv")
    parser.add_argument("--lengths", default="", metavar="A,B", help="tokens T [128 to 32768]")
    parser.add_argument("--batch", default="", metavar="A,B", help="sequences B [1,8]; B T is at most 65,536")
    parser.add_argument("--threads", default="", metavar="A,B", help="CPU threads [all CPUs, and 1]")
    parser.add_argument("--backends", default="", metavar="A,B", help="of our rows [all]")
    parser.add_argument("--quick", action="store_true", help="lengths 128,512, batch 1, all CPUs, under two minutes")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="when no more cases begin [7200; 90 with --quick]"
    )
    parser.add_argument("--out", default="runs/bench", metavar="DIR", help="folder of the results [runs/bench]")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that are there")


def run_bench(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the results.

    Raises:
        ValueError: a value is not one.    FileExistsError: there are results.
        ModuleNotFoundError: matplotlib or rich is missing.
    """
    for name in ("matplotlib.figure", "rich.console"):  # better now than after an hour
        importlib.import_module(name)
    from longstream.bench import report
    from longstream.bench.figures import figures
    from longstream.bench.run import Results, measure

    plan = make_plan(args)
    folder = Path(args.out)
    refuse_to_overwrite(folder, args.overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*report.FILES, *(f"{group}.png" for group in report.TITLES)):
        (folder / name).unlink(missing_ok=True)
    results = Results()

    def tell(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    try:
        with (folder / "worker.log").open("w", encoding="utf-8") as log:
            measure(plan, results, log, tell)
    finally:  # also of what was measured before Ctrl-C
        results.add_shares()
        if results.rows:
            found = [f for f in figures(results.rows) if args.what == "figures" or f.reached is not None]
            written = report.write(results, found, plan, folder)
            report.show(results, found)
            tell("\n".join(str(path) for path in written))
    return 0


def make_plan(args: argparse.Namespace):  # noqa: ANN201 - its type is imported with torch
    """The cases and how they are measured, from the arguments.

    Raises:
        ValueError: a value is not one.
    """
    from longstream.bench import registry
    from longstream.bench.measure import Effort
    from longstream.bench.run import Plan, cpus
    from longstream.ops import available_backends, op_names

    known = {name for op in op_names() for name in available_backends(op)}
    only, backends = among("--op", args.op, registry.OP_GROUPS), among("--backends", args.backends, sorted(known))
    quick = args.quick
    lengths = numbers("--lengths", args.lengths) or (registry.QUICK_LENGTHS if quick else registry.LENGTHS)
    batches = numbers("--batch", args.batch) or (registry.QUICK_BATCHES if quick else registry.BATCHES)
    if args.lengths and max(lengths) * min(batches) > registry.MOST_TOKENS:
        raise ValueError(f"--lengths times --batch must be at most {registry.MOST_TOKENS:,} tokens, got {args.lengths}")
    here = len(cpus())
    threads = numbers("--threads", args.threads) or ([here] if quick or args.what == "figures" else {here: 0, 1: 0})
    if max(threads) > here:
        raise ValueError(f"--threads must be at most {here}, the CPUs that may be used here, got {max(threads)}")
    if only and args.what not in ("all", "ops", "limits"):
        raise ValueError(f"--op goes with ops and limits, not with {args.what}")
    if args.budget is not None and not args.budget > 0:
        raise ValueError(f"--budget must be a number of seconds > 0, got {args.budget:g}")
    limited = args.what == "limits"
    cases = []
    if args.what in ("all", "ops"):
        cases += registry.op_cases(lengths, batches, only)
    if args.what in ("all", "layers") and not only:
        cases += registry.layer_cases(lengths, batches)
    cases = registry.in_order(cases)
    if args.what in ("all", "train") and not only:
        cases += registry.train_cases(lengths if args.lengths or quick else registry.TRAIN_LENGTHS)
    if limited:
        cases += registry.limit_cases(lengths, only)
    if args.what == "figures":
        cases += registry.figure_cases()
    if not cases:
        raise ValueError(
            f"nothing to measure: at most {registry.MOST_TOKENS:,} tokens (B T) are, and decoding from 1024"
        )
    effort = Effort(rounds=3, turn=0.03, limit=1.0) if quick else Effort(limit=20.0 if args.what == "figures" else 5.0)
    return Plan(
        cases=cases,
        threads=[*threads],
        effort=effort,
        backends=backends,
        ours_only=limited,
        budget=args.budget or (QUICK_BUDGET if quick else BUDGET),
        limits=0.3 if quick else 2.0,
        excluded=registry.SLOW_TO_COMPILE if quick else {},
    )


def refuse_to_overwrite(folder: Path, overwrite: bool, mark: str = "worker.log", what: str = "bench") -> None:
    """Raise unless results may be written here; ``mark`` is the file that tells results of ``what``."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / mark).is_file() or (what != "bench" and (folder / "worker.log").exists()):
            raise FileExistsError(f"{folder} exists and holds no results of {what}: choose another --out")
        if not overwrite:
            raise FileExistsError(
                f"{folder} already holds results: choose another --out, or replace them with --overwrite"
            )


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Positive integers between commas, each once."""
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{flag} must be positive integers with commas between them, got {text!r}")
    return tuple(dict.fromkeys(int(word) for word in words))


def among(flag: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Known names between commas."""
    names = tuple(word.strip() for word in text.split(",")) if text else ()
    for name in names:
        if name not in known:
            raise ValueError(f"{flag} must be among {', '.join(known)}, got {name!r}")
    return names
