"""The command line: ``longstream VERB``, of the verbs in COMMANDS.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 training diverged; 2 what was asked for cannot be
done, and one line says why (a traceback, where LONGSTREAM_TRACEBACK is set); 128 + n ended by signal n (130 is Ctrl-C).

A little over 300 lines, because every verb has its place here.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from longstream.bench.command import add_bench_flags
from longstream.bench.step_command import VERBS as BENCH_VERBS
from longstream.bench.step_command import add_step_flags, run_step
from longstream.convert.command import add_convert_flags, run_convert
from longstream.export.command import add_export_flags, run_export
from longstream.inspect.command import add_inspect_flags, run_inspect
from longstream.studies.command import add_study_flags, run_study_command
from longstream.train.commands import add_evaluate_flags, describe, run_evaluate
from longstream.train.compare import add_compare_flags, run_compare
from longstream.train.flags import add_train_flags, given, unknown_option
from longstream.train.presets import missing_data
from longstream.train.settings import MOST_THREADS, PRESETS, Settings, build_settings, flatten, read_toml

WEIGHTS = ("float32", "bfloat16", "int8")
USUAL_LENGTH = 500  # tokens that `generate` writes unless told
COMMANDS = {
    "train": "train a model on text, or on sequences of frames",
    "evaluate": "what a trained model makes of data: bits per byte, or a report",
    "generate": "continue a prompt",
    "info": "versions, threads, backends; of a run, what it is",
    "compare": "runs side by side: figures, pictures, what decoding costs",
    "convert": "write a checkpoint in another format, and prove it",
    "export": "write a graph for other runtimes, and prove it",
    "bench": "time ops and layers beside other packages, and check them",
    **BENCH_VERBS,
    "inspect": "why a model behaves as it does: gates, states, reach, filters, on a page",
    "study": "carry out a study of the papers' claims: runs, verdicts, a report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if (verb := " ".join(words[:2])) in COMMANDS:  # of two words
        words[:2] = [verb]
    args, rest = _parser().parse_known_args(words)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character, nor a file's name be text
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    logging.getLogger("longstream").setLevel(logging.INFO if first else logging.WARNING)
    for talkative in ("torchao", "torch.utils._pytree"):  # installed, they remark on themselves when transformers loads
        logging.getLogger(talkative).setLevel(logging.ERROR)
    commands = {
        "train": _train,
        "evaluate": _evaluate,
        "generate": _generate,
        "info": _info,
        "compare": _compare,
        "convert": lambda args, rest: run_convert(args),
        "export": lambda args, rest: run_export(args),
        "bench": _bench,
        **dict.fromkeys(BENCH_VERBS, lambda args, rest: run_step(args)),
        "inspect": _inspect,
        "study": lambda args, rest: run_study_command(args),
    }
    try:
        if args.command not in ("train", "evaluate", "inspect") and rest:
            raise ValueError(unknown_option(rest[0], args.options))
        return commands[args.command](args, rest)
    except KeyboardInterrupt:
        print("longstream: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `longstream ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, FloatingPointError) as error:
        if "LONGSTREAM_TRACEBACK" in os.environ:
            raise
        return _fail(error, 1 if isinstance(error, FloatingPointError) else 2)
    except ModuleNotFoundError as error:
        if "pip install" in str(error):
            return _fail(error, 2)
        if (error.name or "").partition(".")[0] not in (
            "transformers",
            "accelerate",
            "tokenizers",
            "tensorboard",
            "matplotlib",
            "rich",
        ):
            raise
        extra = "bench" if args.command.startswith("bench") else "train"
        return _fail(f"{args.command} needs more than the core install ({error}): pip install 'longstream[{extra}]'", 2)


def _fail(message: object, code: int) -> int:
    print(f"longstream: error: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"longstream: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="longstream", description="Train and run sequence models on a CPU.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"longstream {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in COMMANDS.items()
    }

    train = add["train"]
    train.add_argument("--out", default="runs/latest", help="directory to write [runs/latest]")
    train.add_argument("--preset", choices=PRESETS, help="start from the settings of a preset")
    train.add_argument("--config", metavar="FILE", help="then take those of a TOML file")
    train.add_argument("--resume", metavar="RUN", nargs="?", const="", help="go on where a run stopped [--out]")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    add_train_flags(train)

    evaluate = add["evaluate"]
    add_evaluate_flags(evaluate)
    generate = add["generate"]
    generate.add_argument("model", metavar="RUN", help="run directory, or a checkpoint of one")
    generate.add_argument("--prompt", default="", help="text to continue [none: a new document]")
    generate.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="at most [500, or Hyena's room]; bytes, for a model of bytes"
    )
    generate.add_argument("--temperature", type=float, default=0.8, metavar="X", help="0 is greedy [0.8]")
    generate.add_argument("--greedy", action="store_true", help="the likeliest token each time")
    generate.add_argument("--top-k", type=int, default=0, metavar="N", help="only the N likeliest tokens [all]")
    generate.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="only the likeliest with probability X [1]"
    )
    generate.add_argument("--seed", type=int, metavar="N", help="for the same text again")
    generate.add_argument("--no-end", action="store_true", help="write on instead of ending the document")
    generate.add_argument("--weights", choices=WEIGHTS, default="float32", help="kind of weights to read [float32]")
    generate.add_argument("--stats", action="store_true", help="then tell the speed, against the memory's, on stderr")
    for command in (evaluate, generate):
        command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads [torch's choice]")
    add["info"].add_argument("model", metavar="RUN", nargs="?", help="run directory, or a checkpoint of one")
    add_compare_flags(add["compare"])
    add_bench_flags(add["bench"])
    for verb in BENCH_VERBS:
        add_step_flags(add[verb], text=verb == "bench decode")
    add_convert_flags(add["convert"])
    add_export_flags(add["export"])
    add_inspect_flags(add["inspect"])
    add_study_flags(add["study"])
    for command in add.values():
        command.set_defaults(options=[option for action in command._actions for option in action.option_strings])
    return parser


def _version() -> str:
    from longstream import __version__

    return __version__


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from longstream.train.rundir import RunDirectory

    path = Path(args.resume or args.out)
    stored = {} if args.resume is None else flatten(RunDirectory(path).read_settings())
    preset = PRESETS[args.preset] if args.preset else {}
    settings = build_settings(stored, preset, read_toml(Path(args.config)) if args.config else {}, given(args, rest))
    if not settings.data.files and settings.data.task != "tokens":
        raise ValueError(missing_data(args.preset or ""))
    return _run(settings, path, args)


def _run(settings: Settings, path: Path, args: argparse.Namespace) -> int:
    from longstream.train.run import train
    from longstream.train.rundir import RunDirectory

    result = train(settings, path, resume=args.resume is not None, overwrite=args.overwrite)
    if os.environ.get("RANK", "0") != "0":
        return 128 + result.interrupted_by if result.interrupted_by else 0
    run = RunDirectory(path)
    if result.interrupted_by:
        print(f"stopped and saved at step {result.step}; go on with: longstream train --resume {path}", file=sys.stderr)
        return 128 + result.interrupted_by
    if not result.trained:
        print(f"{path} is finished; give more with --steps or --minutes")
    if result.measured is not None:
        print(f"step {result.step if result.interrupted_by else result.kept_step}: {result.measured.brief}")
    for what, where in {
        "model": path / "model.safetensors",
        "report": run.report.with_suffix(".md"),
        "metrics": run.metrics,
        "loss plot": run.plot,
        "samples": run.samples,
        "TensorBoard": run.tensorboard,
        "checkpoints": run.checkpoints,
    }.items():
        if where.exists():
            print(f"{what:<12} {where}")
    return 0


def _set_threads(threads: int) -> None:
    import torch

    if not 0 <= threads <= MOST_THREADS:
        raise ValueError(f"--threads must be between 1 and {MOST_THREADS}, or 0 for torch's choice, got {threads}")
    if threads:
        torch.set_num_threads(threads)


def _evaluate(args: argparse.Namespace, rest: list[str]) -> int:
    _set_threads(args.threads)
    print(*run_evaluate(args, rest), sep="\n")
    return 0


def _generate(args: argparse.Namespace, rest: list[str]) -> int:
    import torch

    from longstream.baselines.language import context_limit
    from longstream.train.loading import load_run
    from longstream.train.sample import Speed, room_after, sample_text, use_weights

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    _set_threads(args.threads)
    model, tokenizer = load_run(args.model)
    prompt = os.fsencode(args.prompt)  # the bytes that were typed, whatever the locale made of them
    room = room_after(model, tokenizer, prompt)
    length = min(USUAL_LENGTH, max(room, 1)) if args.max_new_tokens is None else args.max_new_tokens
    if length > room:
        limit = context_limit(model) or 0
        raise ValueError(
            f"--prompt and --max-new-tokens must fit into the {limit:,} tokens that this model takes, got"
            f" {limit - room:,} + {length:,}; shorten them, or train with a larger --max-seq-len"
        )
    use_weights(model, args.weights)
    speed = Speed()
    write(prompt.decode("utf-8", "replace"))
    sample_text(
        model,
        tokenizer,
        prompt,
        max_new_tokens=length,
        temperature=0.0 if args.greedy else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=torch.seed() if args.seed is None else args.seed,
        may_end=not args.no_end,
        write=write,
        speed=speed,
    )
    write("\n")
    if args.stats:
        from longstream.bench.limits import BYTES, measure_limits

        print(speed.describe(model, measure_limits(0.3, matrix=256)[BYTES] or 1.0), file=sys.stderr)
    return 0


def _info(args: argparse.Namespace, rest: list[str]) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from longstream import ops

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    print(
        f"longstream {_version()}, Python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}"
    )
    print(
        ", ".join(
            f"{name} {installed(name)}" for name in ("transformers", "accelerate", "tokenizers", "safetensors", "numpy")
        )
    )
    print(f"{torch.get_num_threads()} threads on {os.cpu_count()} CPUs, {torch.backends.cpu.get_cpu_capability()}")
    print(f"native kernels: {ops.native_kernels()}")
    for name in ops.op_names():
        backends = ops.available_backends(name)  # in order of preference
        used = next((backend for backend, why_not in backends.items() if why_not is None), None)
        for backend, why_not in backends.items():
            print(f"{name:<20}{backend:<12}{'used' if backend == used else why_not or 'available'}")
    if args.model is not None:
        print("", *describe(args.model), sep="\n")
    return 0


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    _set_threads(args.threads)
    return run_compare(args)


def _inspect(args: argparse.Namespace, rest: list[str]) -> int:
    _set_threads(args.threads)
    print(*run_inspect(args, rest), sep="\n")
    return 0


def _bench(args: argparse.Namespace, rest: list[str]) -> int:
    from longstream.bench.command import run_bench

    return run_bench(args)
