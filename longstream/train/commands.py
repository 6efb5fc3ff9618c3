"""What `longstream evaluate` and `longstream info RUN` do, for every kind of run; the command line prints it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from longstream.train.flags import add_setting_flags, given
from longstream.train.harness import add_harness_flags, refuse_without_harness, run_harness
from longstream.train.loading import SEQUENCE_MODEL, load_model, load_run, read_generator, read_model_type
from longstream.train.rundir import RunDirectory, quiet_transformers, write_text
from longstream.train.settings import DataSettings, Settings, build_settings, flatten

# What `evaluate` may be told of other files than those of the run, or of how they are judged.
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
    "data.text_column",
    "data.stride",
    "data.season",
    "train.batch_size",
)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `longstream evaluate`."""
    parser.add_argument("model", metavar="RUN", help="run directory, or a checkpoint of one")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="files or 'builtin' [what the run held out]")
    parser.add_argument("--out", metavar="DIR", help="also write the report on --data or --harness there [only shown]")
    tokens = parser.add_argument_group("of a run of the task tokens")
    add_setting_flags(tokens, ["data.generator"])
    tokens.add_argument("--examples", type=int, default=0, metavar="N", help="of the test split [1000]")
    add_setting_flags(parser.add_argument_group("of --data, where they are not as the run's own"), READING)
    add_harness_flags(parser)


def run_evaluate(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """How good the model of a run is, in lines; of what the run held out it is written down, too."""
    if args.harness is not None:
        return run_harness(args, given(args, rest))
    refuse_without_harness(args)
    kind = read_model_type(args.model)
    if (generator := read_generator(args.model)) is not None:
        from longstream.train.evaluate_tokens import evaluate_tokens

        return evaluate_tokens(args, given(args, rest), generator)
    if args.examples or "data.generator" in given(args, rest):
        raise ValueError(f"evaluate: --generator and --examples are for runs of the task tokens; {args.model} is none")
    if kind == SEQUENCE_MODEL:
        return _evaluate_sequences(args, rest)
    return _evaluate_text(args, rest)


def _evaluate_sequences(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    from longstream.sequences import SequenceModel, read_sequences
    from longstream.train.report import write_report
    from longstream.train.sequence_task import measure, parts_digest, read_parts, read_spec

    model = SequenceModel.from_pretrained(args.model).eval()
    run = run_of(args.model)
    stored = flatten(run.read_settings()) if run is not None else {"data.task": model.config.task}
    changes = given(args, rest)
    if changes and not args.data:
        raise ValueError(f"evaluate: {next(iter(changes))} is about --data FILE..., which is missing")
    if not args.data and args.out:
        raise ValueError("evaluate: --out is for --data FILE...; what the run held out has its report in the run")
    if args.data and not {"data.labels_file"} & set(changes):
        stored.pop("data.labels_file", None)  # of the run's own files
    settings = build_settings(stored, changes)
    started = time.monotonic()
    if args.data:
        held_out, starts, what = (
            read_sequences(args.data, read_spec(settings.data), settings.data.task),
            None,
            args.data,
        )
    else:
        if run is None:
            raise ValueError(f"{args.model} has no settings.toml that says what was held out; give --data FILE...")
        train, held_out, starts = read_parts(settings.data)
        if held_out is None:
            raise ValueError(f"{run.path} held nothing out; give --data FILE...")
        refuse_changed(run, parts_digest(train, held_out, starts))
        what = settings.data.validation_files or [f"held out from {', '.join(settings.data.files)}"]
    found = measure(model, held_out, settings, starts)
    seconds = time.monotonic() - started
    head = f"{', '.join(map(str, what))}: {len(held_out):,} sequences, {seconds:.1f} s"
    lines = [head, "", *found.found.to_markdown().splitlines(), ""]
    if args.data and args.out:
        folder = RunDirectory(args.out)
        if folder.report.exists() or folder.settings.exists():
            raise FileExistsError(f"--out {args.out} already holds a run or report: choose another")
        folder.path.mkdir(parents=True, exist_ok=True)
        written = write_report(found.found, folder)
    else:
        its_own = not args.data and run is not None and run.path == Path(args.model)
        written = write_report(found.found, run) if its_own and run is not None else []
    return [*lines, *map(str, written)]


def _evaluate_text(args: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    from longstream.train.data import reference_compressors
    from longstream.train.evaluate import evaluate_documents
    from longstream.train.text_task import data_digest, read_data, read_files

    model, tokenizer = load_run(args.model)
    run = RunDirectory(args.model)
    changes = given(args, rest)
    if unfit := [key for key in changes if key != "data.text_column"] + ["--out"] * bool(args.out):
        raise ValueError(f"evaluate: {unfit[0]} is for runs of classify, regress and forecast; {run.path} is of text")
    if args.data:
        column = DataSettings(text_column=changes.get("data.text_column", ""))
        documents, what = read_files(args.data, column), ", ".join(args.data)
    else:
        if not run.settings.is_file():
            raise ValueError(f"{run.path} has no settings.toml that says what was held out; give --data FILE...")
        data = run.read_settings().data
        trained, documents = read_data(data)
        if not documents:
            raise ValueError(f"{run.path} held nothing out; give --data FILE...")
        what = ", ".join(data.validation_files) or f"held out from {', '.join(data.files)}"
        refuse_changed(run, data_digest(trained, documents))
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
    if not args.data:  # the run's own figure, which no other may stand in for
        write_text(run.evaluation, json.dumps(rows, indent=2) + "\n")
    return [
        f"{what}: {found.bytes:,} bytes, {found.tokens:,} tokens, {seconds:.1f} s",
        f"{'':<12}bits per byte   perplexity per token",
        f"{'this model':<12}{found.bits_per_byte:>13.4f}   {found.perplexity:>20.4f}",
        *(f"{label:<12}{compressors[name]:>13.4f}" for name, label in {"xz": "xz -9", "bz2": "bz2 -9"}.items()),
    ]


def refuse_changed(run: RunDirectory, digest: str) -> None:
    """Raise where the data are not those that the run was trained on."""
    if digest != run.read_data()["sha256"]:
        raise ValueError(
            f"{run.path}: the data have changed since this run began, and what is held out now may be what it was"
            " trained on; give --data FILE..."
        )


def run_of(path: str) -> RunDirectory | None:
    """The run of a run directory or of a checkpoint inside one."""
    places = [Path(path), Path(path).resolve().parent.parent]
    return next((RunDirectory(place) for place in places if RunDirectory(place).settings.is_file()), None)


def describe(path: str) -> list[str]:
    """What is known of a run, in lines: configuration, sizes, last figures."""
    run = RunDirectory(path)
    is_text = read_model_type(path) != SEQUENCE_MODEL
    said = _describe_text(path) if is_text else _describe_sequences(path)
    if run.settings.is_file():
        usual = flatten(Settings())
        asked = {key: value for key, value in flatten(run.read_settings()).items() if usual[key] != value}
        said["settings"] = ", ".join(f"{key}={value}" for key, value in asked.items())
    rows = run.read_metrics()
    for kind in ("train", "validation"):
        if last := [row for row in rows if row["kind"] == kind][-1:]:
            said[kind] = ", ".join(f"{key}={value}" for key, value in last[0].items() if key != "kind")
    return [path, *(f"{name:<12}{text}" for name, text in said.items())]


def _describe_text(path: str) -> dict[str, str]:
    from longstream.baselines.language import config_of, describe_state

    generator, tokenizer = read_generator(path), None
    if generator is None:
        model, tokenizer = load_run(path)
    else:
        model = load_model(path)
    with quiet_transformers():  # which has something to say of kernels that a CPU does not have
        state = describe_state(model)
    return {
        **({} if generator is None else {"task": f"tokens; {generator}"}),
        "parameters": f"{model.num_parameters():,}",
        "state": state,
        **_by_layer(backbone.init_state(1) if (backbone := getattr(model.base_model, "backbone", None)) else None),
        "tokenizer": f"none, {model.config.vocab_size} tokens"
        if tokenizer is None
        else f"{type(tokenizer).__name__}, {tokenizer.vocab_size} tokens",
        "config": _told(config_of(model)),
    }


def _describe_sequences(path: str) -> dict[str, str]:
    from longstream.sequences import SequenceModel

    model = SequenceModel.from_pretrained(path)
    config = model.config
    why_not = model.why_no_state
    limit = "" if model.max_frames is None else f", in sequences of at most {model.max_frames:,} frames"
    state = why_not or f"{model.init_state(1).nbytes:,} bytes per sequence{limit or ', however long'}"
    answers = {
        "classify": f"one of {len(config.classes)} classes: {_listed(config.classes)}",
        "regress": f"for each sequence: {_listed(config.target_names)}",
        "forecast": f"after each frame the next {config.horizon} of: {_listed(config.target_names)}",
    }
    missing = [config.channels[i] for i in config.indicators]
    return {
        "task": f"{config.task}; {answers[config.task]}",
        "parameters": f"{model.num_parameters():,}",
        "state": state,
        **_by_layer(model.init_state(1) if why_not is None else None),
        "channels": f"{len(config.channels)}: {_listed(config.channels)}",
        "missing": f"allowed in {_listed(missing)}" if missing else "no value may be missing",
        "config": f"{config.name}({', '.join(f'{key}={value!r}' for key, value in config.options.items())})",
    }


def _by_layer(state: Any) -> dict[str, str]:
    """Bytes of each layer's state before the first token or frame, of equal neighbors once; nothing without a state."""
    if state is None:
        return {}
    layers = [f"{type(layer).__name__} {size:,}" for layer, size in zip(state.layers, state.layer_nbytes, strict=True)]
    counted = [(len(list(same)), text) for text, same in groupby(layers)]
    said = ", ".join(f"{count} x {text}" if count > 1 else text for count, text in counted)
    return {"by layer": f"{said} bytes, and {state.position.nbytes} of the position"}


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _told(value: Any) -> str:
    """A configuration by the fields that are not their defaults; of a tuple, equal neighbors once."""
    if isinstance(value, tuple):
        runs = [(len(list(same)), _told(item)) for item, same in groupby(value)]
        return f"({', '.join(f'{count} x {text}' if count > 1 else text for count, text in runs)})"
    if not is_dataclass(value):
        return repr(value)
    told = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    return f"{type(value).__name__}({', '.join(f'{name}={_told(what)}' for name, what in told.items())})"
