"""The command line: ``longstream train | evaluate | generate | info | bench``.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 training diverged; 2 what was asked for cannot be
done, and one line says why (a traceback, where LONGSTREAM_TRACEBACK is set); 128 + n ended by signal n (130 is Ctrl-C).

All commands stand in this one file, a little over the usual length, because they share their flags and their errors.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from longstream.bench.command import add_bench_flags
from longstream.train.flags import add_setting_flags, given, unknown_option
from longstream.train.settings import MOST_THREADS, PRESETS, Settings, build_settings, flatten, read_toml

USUAL_LENGTH = 500  # tokens that `generate` writes unless told
COMMANDS = {
    "train": "train a language model on files",
    "evaluate": "bits per byte of a trained model, beside xz and bz2",
    "generate": "continue a prompt",
    "info": "versions, threads, backends; of a run, what it is",
    "bench": "time ops and layers beside other packages, and check them",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character, nor a file's name be text
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    logging.getLogger("longstream").setLevel(logging.INFO if first else logging.WARNING)
    commands = {"train": _train, "evaluate": _evaluate, "generate": _generate, "info": _info, "bench": _bench}
    try:
        if args.command != "train" and rest:
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
        if (error.name or "").partition(".")[0] not in (
            "transformers",
            "accelerate",
            "tokenizers",
            "tensorboard",
            "matplotlib",
            "rich",
        ):
            raise
        extra = "bench" if args.command == "bench" else "train"
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
    add_setting_flags(train)

    evaluate = add["evaluate"]
    evaluate.add_argument("model", metavar="RUN", help="run directory, or a checkpoint of one")
    evaluate.add_argument("--data", nargs="+", metavar="FILE", help="files or 'builtin' [what the run held out]")
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
    for command in (evaluate, generate):
        command.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads [torch's choice]")
    add["info"].add_argument("model", metavar="RUN", nargs="?", help="run directory, or a checkpoint of one")
    add_bench_flags(add["bench"])
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
    if not settings.data.files:
        raise ValueError("train: nothing to train on: give --data FILE..., or --data builtin")
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
    if result.evaluation is not None:
        held_out = result.evaluation
        print(f"step {result.step}: {held_out.bits_per_byte:.4f} bits per byte on {held_out.bytes:,} held-out bytes")
    for what, where in {
        "model": path / "model.safetensors",
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
    from longstream.train.data import read_documents, reference_compressors
    from longstream.train.evaluate import evaluate_documents
    from longstream.train.run import data_digest, read_data
    from longstream.train.rundir import RunDirectory, load_run, write_text

    _set_threads(args.threads)
    model, tokenizer = load_run(args.model)
    run = RunDirectory(args.model)
    if args.data:
        documents, what = read_documents(args.data), ", ".join(args.data)
    else:
        if not run.settings.is_file():
            raise ValueError(f"{run.path} has no settings.toml that says what was held out; give --data FILE...")
        data = run.read_settings().data
        if not data.validation_fraction:
            raise ValueError(f"{run.path} held nothing out; give --data FILE...")
        trained, documents = read_data(data)
        what = f"held out from {', '.join(data.files)}"
        if data_digest(trained, documents) != run.read_data()["sha256"]:
            raise ValueError(
                f"{run.path}: the data have changed since this run began, and what is held out now may be what it was"
                " trained on; give --data FILE..."
            )
    started = time.monotonic()
    found = evaluate_documents(model, tokenizer, documents)
    seconds = time.monotonic() - started
    compressors = reference_compressors(b"".join(document.data for document in documents))
    rows = {
        "data": what,
        "bytes": found.bytes,
        "tokens": found.tokens,
        "bits_per_byte": found.bits_per_byte,
        "perplexity": found.perplexity,
        "nats_per_token": found.nats_per_token,
        **{f"{name}_bits_per_byte": value for name, value in compressors.items()},
        "seconds": round(seconds, 2),
    }
    print(f"{what}: {found.bytes:,} bytes, {found.tokens:,} tokens, {seconds:.1f} s")
    print(f"{'':<12}bits per byte   perplexity per token")
    print(f"{'this model':<12}{found.bits_per_byte:>13.4f}   {found.perplexity:>20.4f}")
    for name, label in {"xz": "xz -9", "bz2": "bz2 -9"}.items():
        print(f"{label:<12}{compressors[name]:>13.4f}")
    if not args.data:  # the run's own figure, which no other may stand in for
        write_text(run.evaluation, json.dumps(rows, indent=2) + "\n")
    return 0


def _generate(args: argparse.Namespace, rest: list[str]) -> int:
    import torch

    from longstream.train.rundir import load_run
    from longstream.train.sample import room_after, sample_text

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    _set_threads(args.threads)
    model, tokenizer = load_run(args.model)
    prompt = os.fsencode(args.prompt)  # the bytes that were typed, whatever the locale made of them
    room = room_after(model, tokenizer, prompt)
    length = min(USUAL_LENGTH, max(room, 1)) if args.max_new_tokens is None else args.max_new_tokens
    if length > room:
        limit = model.config.to_model_config().max_seq_len
        raise ValueError(
            f"--prompt and --max-new-tokens must fit into the {limit:,} tokens that this model takes, got"
            f" {limit - room:,} + {length:,}; shorten them, or train with a larger --max-seq-len"
        )
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
    )
    write("\n")
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
        _describe(args.model)
    return 0


def _bench(args: argparse.Namespace, rest: list[str]) -> int:
    from longstream.bench.command import run_bench

    return run_bench(args)


def _told(value: Any) -> str:
    """A configuration by the fields that are not their defaults; of a tuple, equal neighbors once."""
    if isinstance(value, tuple):
        runs = [(len(list(same)), _told(item)) for item, same in groupby(value)]
        return f"({', '.join(f'{count} x {text}' if count > 1 else text for count, text in runs)})"
    if not is_dataclass(value):
        return repr(value)
    given = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return f"{type(value).__name__}({', '.join(f'{name}={_told(what)}' for name, what in given.items())})"


def _describe(path: str) -> None:
    """What is known of a run: configuration, sizes, last figures."""
    from longstream.train.rundir import RunDirectory, load_run

    run = RunDirectory(path)
    model, tokenizer = load_run(path)
    state = model.model.backbone.init_state(1)
    print(f"\n{path}")
    print(f"parameters  {model.num_parameters():,}")
    limit = model.config.to_model_config().max_seq_len
    grows = "" if limit is None else f", more with the text, which may have {limit:,} tokens"
    print(f"state       {state.nbytes:,} bytes per sequence{grows or ', however long'}")
    print(f"tokenizer   {type(tokenizer).__name__}, {tokenizer.vocab_size} tokens")
    print(f"config      {_told(model.config.to_model_config())}")
    if run.settings.is_file():
        usual = flatten(Settings())
        asked = {key: value for key, value in flatten(run.read_settings()).items() if usual[key] != value}
        print("settings    " + ", ".join(f"{key}={value}" for key, value in asked.items()))
    rows = run.read_metrics()
    for kind in ("train", "validation"):
        if last := [row for row in rows if row["kind"] == kind][-1:]:
            print(f"{kind:<12}" + ", ".join(f"{key}={value}" for key, value in last[0].items() if key != "kind"))
