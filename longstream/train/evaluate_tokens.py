"""What `longstream evaluate RUN` does for a run of the task `tokens`: its test split, or that of another difficulty."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from longstream.baselines.language import context_limit
from longstream.tasks import TokenTask, make_task
from longstream.train.commands import run_of
from longstream.train.loading import load_model
from longstream.train.rundir import write_text
from longstream.train.token_evaluation import evaluate_examples

EXAMPLES = 1000  # unless told


def evaluate_tokens(args: argparse.Namespace, changes: dict[str, Any], generator: str) -> list[str]:
    """How good the model of a run is, in lines; at the run's own difficulty it is written down, too.

    Args:
        changes:   settings given on the command line.
        generator: the run's own.
    Raises:
        ValueError: options that are not for such a run, or a task that the model cannot read.
    """
    asked = changes.pop("data.generator", "")
    rows = int(changes.pop("train.batch_size", 0))
    if unfit := [*changes, *(f"--{name}" for name in ("data", "out") if getattr(args, name))]:
        raise ValueError(f"evaluate: {unfit[0]} is for runs that read files; {args.model} is of {generator}")
    if args.examples < 0:
        raise ValueError(f"evaluate: --examples must be >= 1, got {args.examples}")
    if rows < 0:
        raise ValueError(f"evaluate: train.batch_size must be >= 1, got {rows}")
    model, run, task = load_model(args.model), run_of(args.model), make_task(asked or generator)
    notes = check_readable(model, task)
    seed = run.read_settings().data.split_seed if run is not None else 0
    size = task.size("test")
    count = args.examples or (EXAMPLES if size is None else min(EXAMPLES, size))
    started = time.monotonic()
    found = evaluate_examples(model, task.make(count, seed, "test"), rows=rows)
    seconds = time.monotonic() - started
    figures = {
        "generator": task.describe(),
        "split": "test",
        "examples": found.examples,
        "places": found.places,
        "accuracy": found.accuracy,
        "sequences": found.sequences,
        "loss": found.loss,
        "chance": task.chance,
        "seconds": round(seconds, 2),
    }
    if run is not None and run.path == Path(args.model) and not asked:
        write_text(run.evaluation, json.dumps(figures, indent=2) + "\n")
    return [
        f"{task.describe()}, test: {found.examples:,} examples of {task.length:,} tokens, {seconds:.1f} s",
        f"{'accuracy':<12}{found.accuracy:.4f}   of {found.places:,} labelled places; chance {task.chance:.4g}",
        f"{'sequences':<12}{found.sequences:.4f}   with all of them right",
        f"{'loss':<12}{found.loss:.4f}   nats a place",
        *notes,
    ]


def check_readable(model: Any, task: TokenTask, who: str = "evaluate") -> list[str]:
    """What has to be said of a model that reads a task.

    Raises:
        ValueError: another vocabulary than the model's, or longer examples than it takes.
    """
    if task.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{who}: --generator must be of the model's {model.config.vocab_size:,} tokens, got {task.describe()}"
            f" of {task.vocab_size:,}"
        )
    limit = context_limit(model)
    if limit is None or task.length <= limit:
        return []
    if model.config.model_type == "llama":  # rotary positions go on
        return [f"the examples are longer than the {limit:,} tokens that the model was trained on"]
    raise ValueError(
        f"{who}: --generator must be of at most the {limit:,} tokens that this model takes, got {task.describe()} of"
        f" {task.length:,}; train with a larger --max-seq-len"
    )
