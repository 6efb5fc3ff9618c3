"""Token tasks in the studies: what a run is trained on, and the harder and easier forms that it is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

TOKENS = 2**16  # of a test, roughly: the longer its examples, the fewer
LEAST, MOST = 128, 500  # examples


class Ladder(NamedTuple):
    """A token task, and one of its fields at several values; the model is trained at the task's own."""

    task: str  # as `longstream.tasks.make_task` reads it
    field: str = ""  # "": no other difficulty is tested
    values: tuple[float, ...] = ()

    def at(self, value: float) -> str:
        """The task with another value of the field."""
        name, _, fields = self.task.partition(":")
        kept = [part for part in fields.split(",") if part and part.partition("=")[0] != self.field]
        return f"{name}:{','.join([*kept, f'{self.field}={value:g}'])}"

    @property
    def prefix(self) -> str:
        """Of the figures' keys."""
        return f"{self.field}="


def tokens_settings(ladder: Ladder, **more: Any) -> dict[str, Any]:
    """Settings that runs on token tasks have in common; names in ``more`` have "__" where settings have a point."""
    return {
        "data.task": "tokens",
        "data.generator": ladder.task,
        "train.eval_every": 0,
        "train.save_every": 200,
        "train.keep": 1,
        "train.sample_tokens": 0,
        **{key.replace("__", "."): value for key, value in more.items()},
    }


# How all models begin that are to recall in few steps, found by trial on MQAR: tied, with larger weights.
RECALL_START: dict[str, Any] = {
    "model.tie_word_embeddings": True,
    "model.block_options": ("initializer_range=0.06",),
}


def measure_ladder(ladder: Ladder, folder: Path) -> dict[str, float]:
    """The accuracy of a trained run at each value of the field, on test examples that are the same for all runs.

    Lengths that a model does not take, as those past Hyena's filters, have no figure.
    """
    from longstream.baselines.language import context_limit
    from longstream.tasks import make_task
    from longstream.train.loading import load_model
    from longstream.train.token_evaluation import evaluate_examples

    if not ladder.field:
        return {}
    model, found = load_model(folder), {}
    limit = None if model.config.model_type == "llama" else context_limit(model)  # rotary positions go on
    for value in ladder.values:
        task = make_task(ladder.at(value))
        if limit is not None and task.length > limit:
            continue
        examples = task.make(min(MOST, max(LEAST, TOKENS // task.length)), 0, "test")
        found[f"{ladder.prefix}{value:g}"] = evaluate_examples(model, examples).accuracy
    return found
