"""The verbs `longstream bench step` and `longstream bench decode`: what they are asked for, and what they write."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from longstream.bench.command import among, numbers, refuse_to_overwrite

KINDS = ("float32", "bfloat16", "int8")
OTHERS = ("eager", "window", "exported", "gru", "lstm", "mingru", "mamba", "mamba2")
COUNTED = ("stream", "eager", "window", "gru", "lstm", "mingru")  # whose allocations are; the others load for long
STEPS, OTHERS_STEPS = 20000, 600
QUICK_STEPS, QUICK_OTHERS = 600, 60
TEXT_STEPS = 200
VERBS = {
    "bench step": "latency of a model frame by frame, beside other packages",
    "bench decode": "tokens a second of a language model, against memory",
}


def add_step_flags(parser: argparse.ArgumentParser, *, text: bool = False) -> None:
    """The arguments of either verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if text:
        parser.usage = "longstream bench decode [options]"
        parser.description = (
            "Time a language model token by token: streams of each kind of weights beside its own eager step,\n"
            "each checked against float64 first, and the time in which memory can be read so often."
        )
    else:
        parser.usage = "longstream bench step [options]"
        parser.description = (
            "Time a model frame by frame: one after another, and at a frame rate, on free and on pinned CPUs.\n"
            "Beside it in turn: its own eager step, a window run anew, the exported step in onnxruntime, and other\n"
            "packages' models as wide and as deep. Each is checked against float64 first; who is wrong or missing is\n"
            "a row that says so: pip install 'longstream[bench]' adds them all."
        )
    own = "hgrn2-text" if text else "edifice-hgrn"
    sizes: list[tuple[str, int, str]] = [("--hidden-size", 768 if text else 256, "width")]
    sizes += [("--layers", 12 if text else 2, "blocks")]
    sizes += [("--vocab-size", 32000, "tokens")] if text else [("--embed-dim", 287, "numbers of a frame")]
    parser.add_argument("--model", default=own, metavar="NAME", help=f"name, or the folder of a run [{own}]")
    for flag, usual, what in sizes:
        parser.add_argument(flag, type=int, default=usual, metavar="N", help=f"{what} [{usual}]")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="rows that go on together [1]")
    if not text:
        parser.add_argument("--window", type=int, default=60, metavar="N", help="frames that are run anew [60]")
        parser.add_argument("--rate", type=float, default=60.0, metavar="X", help="frames a second; 0: no rate [60]")
    steps = TEXT_STEPS if text else STEPS
    parser.add_argument("--steps", type=int, metavar="N", help=f"of each row, if time allows [{steps}]")
    parser.add_argument("--weights", default="", metavar="A,B", help=f"of streams [{','.join(KINDS)}]")
    others = ("eager",) if text else OTHERS
    parser.add_argument("--peers", default="", metavar="A,B", help=f"{','.join(others)}, or none [all]")
    parser.add_argument("--threads", default="", metavar="A,B", help="CPU threads [all CPUs, and 1]")
    parser.add_argument("--pin", default="", metavar="A,B", help="CPUs of the pinned half [the first ones]")
    parser.add_argument("--no-pin", action="store_true", help="leave the pinned half out")
    parser.add_argument("--gc", action="store_true", help="leave Python's garbage collector on while measuring")
    if not text:
        parser.add_argument("--figures", action="store_true", help="what streaming is required to reach: many models")
    parser.add_argument("--quick", action="store_true", help="few steps, in a minute or two")
    folder = "runs/bench-decode" if text else "runs/bench-step"
    parser.add_argument("--out", default=folder, metavar="DIR", help=f"folder of the results [{folder}]")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that are there")
    parser.set_defaults(text=text)


def run_step(args: argparse.Namespace) -> int:
    """Measure, print the tables and write the results.

    Raises:
        ValueError: a value is not one.    FileExistsError: there are results.
        ModuleNotFoundError: matplotlib or rich is missing.
    """
    for name in ("matplotlib.figure", "rich.console"):  # better now than after ten minutes
        importlib.import_module(name)
    from longstream.bench import step_report

    effort, plan = make_effort(args), make_plan(args)
    folder = Path(args.out)
    refuse_to_overwrite(folder, args.overwrite, step_report.FILES[0], "bench step")
    from longstream.bench.step_subject import prepare

    first = prepare(plan[0][0])  # a model that is not there is told before a folder is made
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*step_report.FILES, *(path.name for path in folder.glob("latency-*.png"))):
        (folder / name).unlink(missing_ok=True)
    results = step_report.StepResults(text=args.text)

    def tell(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    try:
        with _quiet({"mamba", "mamba2"}.isdisjoint(plan[0][1] or OTHERS[: 0 if args.text else None])):
            for i, (subject, chosen) in enumerate(plan):
                once = replace(effort, rate=0.0) if i else effort  # of figures, at a rate the first subject only
                measure(results, subject, chosen, args, once, tell, first if i == 0 else None)
    finally:  # also of what was measured before Ctrl-C
        if results.rows:
            finish(results, args, effort)
            written = step_report.write(results, folder)
            step_report.show(results)
            tell("\n".join(str(path) for path in written))
    return 0


def make_effort(args: argparse.Namespace):  # noqa: ANN201 - its type is imported with torch
    """How much is measured, from the arguments.

    Raises:
        ValueError: a value is not one.
    """
    from longstream.bench.run import cpus
    from longstream.bench.step_clock import may_pin
    from longstream.bench.step_run import Effort

    here = cpus()
    for flag in ("hidden_size", "layers", "batch", "steps", "embed_dim", "window", "vocab_size"):
        if (value := getattr(args, flag, None)) is not None and value < 1:
            raise ValueError(f"--{flag.replace('_', '-')} must be an integer >= 1, got {value}")
    rate = 0.0 if args.text else args.rate
    if not 0 <= rate <= 1e5:
        raise ValueError(f"--rate must be frames a second between 0 and 100000, got {rate:g}")
    threads = numbers("--threads", args.threads) or tuple(dict.fromkeys((len(here), 1)))
    if max(threads) > len(here):
        raise ValueError(f"--threads must be at most {len(here)}, the CPUs that may be used here, got {max(threads)}")
    if args.pin and args.no_pin:
        raise ValueError("--pin and --no-pin exclude each other")
    wanted = [word.strip() for word in args.pin.split(",")] if args.pin else [str(cpu) for cpu in here]
    if not all(word.isdecimal() and int(word) in here for word in wanted):
        raise ValueError(f"--pin must be among the CPUs {','.join(map(str, here))}, got {args.pin!r}")
    if args.pin and (why := may_pin()):
        raise ValueError(f"--pin: {why}")
    pinned = () if args.no_pin or may_pin() else tuple(dict.fromkeys(int(word) for word in wanted))
    usual = TEXT_STEPS if args.text else QUICK_STEPS if args.quick else STEPS
    return Effort(
        steps=args.steps or (max(usual // 5, 10) if args.text and args.quick else usual),
        others=QUICK_OTHERS if args.quick else OTHERS_STEPS,
        rate=rate,
        rounds=3 if args.quick else 5,
        threads=threads[:1] if args.quick and not args.threads else threads,
        cpus=pinned,
        collector=args.gc,
        limits=0.1 if args.quick else 0.5,
    )


def make_plan(args: argparse.Namespace) -> list[tuple[Any, tuple[str, ...]]]:
    """Subjects and the rows of others beside each; empty for all.

    Raises:
        ValueError: a value is not one.
    """
    from longstream.bench.step_figures import figure_subjects
    from longstream.bench.step_subject import Subject

    among("--weights", args.weights, KINDS)
    others = ("eager",) if args.text else OTHERS
    chosen = among("--peers", args.peers, (*others, "none"))
    if args.text:
        sizes = {"hidden_size": args.hidden_size, "layers": args.layers, "vocab_size": args.vocab_size}
        return [(Subject(args.model, batch=args.batch, **sizes), chosen)]
    if args.figures:
        return figure_subjects()
    sizes = {"embed_dim": args.embed_dim, "hidden_size": args.hidden_size, "layers": args.layers}
    return [(Subject(args.model, batch=args.batch, window=args.window, **sizes), chosen)]


def measure(
    results: Any,
    subject: Any,
    chosen: Sequence[str],
    args: argparse.Namespace,
    effort: Any,
    tell: Callable[[str], object],
    given: Any = None,
) -> None:
    """Measure one subject into the results; ``given``: it is made already, and the first, of which all is measured."""
    from longstream.bench.measure import Skip
    from longstream.bench.step_memory import measure_allocations, why_not
    from longstream.bench.step_ours import our_contenders
    from longstream.bench.step_peers import other_contenders
    from longstream.bench.step_rollback import measure_rollback
    from longstream.bench.step_run import measure_subject
    from longstream.bench.step_subject import is_tokens, prepare

    kinds = among("--weights", args.weights, KINDS) or KINDS
    contenders = [*our_contenders(kinds), *other_contenders()]
    wanted = chosen or (("eager",) if args.text else OTHERS)
    contenders = [one for one in contenders if one.key == "stream" or one.key in wanted]
    tell(subject.title)
    whole, given = given is not None, prepare(subject) if given is None else given
    if is_tokens(given.module):
        effort = replace(effort, steps=min(effort.steps, TEXT_STEPS), rate=0.0)
    results.rates[subject.title] = measure_subject(given, contenders, effort, results.rows, tell)
    if is_tokens(given.module) or not whole:
        return
    try:
        tell("  going back")
        results.costs[subject.title] = measure_rollback(given, effort.threads[0], 100 if args.quick else 300)
    except Skip:
        pass  # the rows of the streams say why
    if why_not() is None:
        tell("  counting allocations, in a process of its own")
        names = [one.name for one in contenders if one.key in COUNTED]
        counted = measure_allocations(subject, kinds, names, sys.stderr)
        for row in results.rows:
            if row.name in counted and row.p50 is not None:
                row.allocations, row.mallocs = counted[row.name].tensors, counted[row.name].mallocs


def finish(results: Any, args: argparse.Namespace, effort: Any) -> None:
    """Verdicts, figures, and how it was measured."""
    from longstream.bench.step_clock import SPIN, WARM, may_pin
    from longstream.bench.step_figures import step_figures
    from longstream.bench.step_memory import STEPS as TRACED
    from longstream.bench.step_memory import why_not
    from longstream.bench.step_run import verdict_of

    if not args.text and args.figures:
        results.figures = step_figures(results.rows, results.costs, effort.rate)
    said = [verdict_of(row) for row in results.rows if row.rate and row.name == "Stream, float32"]
    if args.text:
        said += [
            f"{row.name}, {row.threads} thread{'s' * (row.threads > 1)}: {row.batch * 1e6 / row.p50:,.1f} tokens a"
            " second"
            for row in results.rows
            if row.p50 and not row.pinned
        ]
    if effort.rate and not args.text:
        said.append(
            f"At a rate a thread sleeps until {SPIN * 1e3:g} ms before a frame is due and then asks the clock; an"
            " answer counts from when its frame was due. began late: the latest begin of a step after that."
        )
    said.append(
        f"Rows take turns, {effort.rounds} rounds; before each turn {WARM} steps count for nothing. Python's garbage"
        f" collector was {'on' if effort.collector else 'off (gc.freeze, gc.disable)'} while measuring, for all rows."
    )
    said.append(
        f"pinned: the stepping thread on the first of these CPUs, all others on the rest. {may_pin() or ''}".strip()
    )
    said.append(
        "error: largest, relative to the largest output, against the row's own float64 oracle (results.json names it);"
        " lost: of rounded weights, against float32 ones. Nothing is timed before it has passed."
    )
    said.append(
        "x limit: p50 over the time in which a buffer of as many bytes as the weights is read once, at the higher of"
        " the rates at which it is read and copied again and again by as many threads."
    )
    if not args.text:
        said.append(
            why_not()
            or f"tensors, mallocs: blocks of memory that a step asks for, mean of {TRACED}, counted by glibc's malloc"
            " trace in a process of its own. tensors: those of torch's allocator; the others are of the call: torch"
            " makes a few for the arguments of any op."
        )
    results.said = said


def _quiet(unused: bool) -> AbstractContextManager[Any]:
    """transformers says for each kernel that it is the slow one, which the tables show; it loads for seconds."""
    if unused or importlib.util.find_spec("transformers") is None:
        return nullcontext()
    from longstream.train.rundir import quiet_transformers

    return quiet_transformers()
