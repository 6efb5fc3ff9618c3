"""The task `tokens`: generated token sequences in, the accuracy at their labelled places out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from longstream.tasks import IGNORED, Examples, TokenTask
from longstream.tasks import make_task as make_token_task
from longstream.train.batches import ShuffledWindows
from longstream.train.curriculum import Curriculum, read_curriculum
from longstream.train.loading import load_model
from longstream.train.models import build_model, describe_model
from longstream.train.rundir import GENERATOR, RunDirectory, write_text
from longstream.train.settings import DataSettings, Settings
from longstream.train.task import Curve, Measured, Task
from longstream.train.token_evaluation import TokenEvaluation, evaluate_examples, labelled_logits

BLOCK_TOKENS = 2**19  # fresh examples are made so many tokens at a time: some megabytes
STAGES = 100  # of a curriculum, at least
PROBED = 8  # examples by which a run knows its generator

Item = tuple[np.ndarray, np.ndarray]  # inputs and labels, (T,) each


class TokenRun(Task):
    """Learn a `longstream.tasks.TokenTask`: say the labels at the places that have one."""

    curve = Curve("accuracy", "accuracy")
    unit = "tokens"

    def __init__(self, settings: Settings, checkpoint: Path | None = None) -> None:
        self.settings = settings
        data = settings.data
        self.task = make_token_task(data.generator)
        longest = settings.model.max_seq_len
        if settings.model.name in ("hyena", "llama") and 0 < longest < self.task.length:
            raise ValueError(
                f"ModelSettings.max_seq_len must be 0 or >= the {self.task.length} tokens of {self.task.describe()},"
                f" got {longest}"
            )
        self.fixed = fixed_examples(self.task, data.train_examples, settings.train.seed)
        self.curriculum = None
        if data.generator_start:
            if self.fixed is not None:
                raise ValueError("DataSettings.generator_start must be left out where the examples are a fixed set")
            self.curriculum = read_curriculum(self.task, data.generator_start, data.ramp_ratio)
        self.held_out = held_out_examples(self.task, data)

    def collator(self, batch: Sequence[Item]) -> dict[str, Tensor]:  # type: ignore[override]
        """(B, T) ids and labels; `shift_labels` is transformers' word for labels that stand where they are asked."""
        longest = max(len(ids) for ids, _ in batch)  # a curriculum may go from one length to the next within a batch
        ids, labels = (
            torch.from_numpy(np.stack([_padded(row, longest, filler) for row in part]).astype(np.int64))
            for part, filler in zip(zip(*batch, strict=True), (0, IGNORED), strict=True)
        )
        return {"input_ids": ids, "labels": labels, "shift_labels": labels}

    @property
    def has_validation(self) -> bool:
        return self.held_out is not None

    def facts(self) -> dict[str, Any]:
        held_out = digest(self.held_out)
        # What is read depends on the seed, which settings.toml has; a generator that has changed shows in the probe.
        read = digest(self.fixed if self.task.size("train") is not None else self.task.make(PROBED, 0))
        return {
            "sha256": hashlib.sha256(f"{self.task.describe()} {read} {held_out}".encode()).hexdigest(),
            "validation_sha256": held_out,
            "generator": self.task.describe(),
            "tokens_per_example": self.task.length,
            "training_examples": 0 if self.fixed is None else len(self.fixed.inputs),
            "validation_examples": 0 if self.held_out is None else len(self.held_out.inputs),
        }

    def describe_data(self, facts: dict[str, Any]) -> str:
        return f"{facts['generator']}, {facts['validation_examples']:,} examples held out"

    def summarize(self, model: Any, facts: dict[str, Any], per_step: int) -> str:
        count = facts["training_examples"]
        passes = f", {max(1, count // per_step):,} steps a pass" if count else ""
        return (
            f"{describe_model(self.settings.model, model)}; {facts['generator']}:"
            f" {f'{count:,}' if count else 'ever fresh'} examples of {self.task.length:,} tokens to train on,"
            f" {facts['validation_examples']:,} held out, chance {self.task.chance:.3g}; {per_step} a step{passes}"
        )

    def make_model(self) -> PreTrainedModel:
        return build_model(self.settings.model, vocab_size=self.task.vocab_size, seq_len=self.task.length)

    def make_items(self, length: int) -> Dataset[Any]:
        seed = self.settings.train.seed
        if self.fixed is not None:
            return ShuffledWindows(FixedExamples(self.fixed), length, seed)
        return FreshExamples(self.curriculum or self.task, length, seed)

    def count(self, batches: Sequence[dict[str, Tensor]], items: Any, args: TrainingArguments) -> int:
        return sum(batch["input_ids"].numel() for batch in batches) * args.world_size

    def loss(self, model: Any, batch: dict[str, Tensor], items: Any) -> Tensor:
        labels = batch["shift_labels"]
        logits = labelled_logits(model, batch["input_ids"], labels).float()
        wanted = labels[labels != IGNORED]
        if items is None:
            return F.cross_entropy(logits, wanted)
        return F.cross_entropy(logits, wanted, reduction="sum") / items

    def evaluate(self, model: Any, args: TrainingArguments) -> Measured:
        """Exact figures, the examples shared out among the processes."""
        assert self.held_out is not None
        if args.world_size == 1:
            return as_measured(evaluate_examples(model, self.held_out))
        mine = Examples(*(part[args.process_index :: args.world_size] for part in self.held_out))
        found = evaluate_examples(model, mine)
        sums = torch.tensor([*found[:5]], dtype=torch.float64, device=args.device)
        by_place = torch.from_numpy(found.by_place).to(args.device)
        for part in (sums, by_place):
            dist.all_reduce(part)
        nats, *counts = sums.tolist()
        return as_measured(TokenEvaluation(nats, *map(int, counts), by_place.cpu().numpy()))  # type: ignore[arg-type]

    def finish(self, run: RunDirectory, measured: Measured | None, device: Any) -> Measured | None:
        if measured is None and self.held_out is not None:
            measured = as_measured(evaluate_examples(load_model(run.path).to(device), self.held_out))
        return measured

    def backward_in_chunks(
        self, model: Any, batch: dict[str, Tensor], chunk: int, items: Any, scale: float, forward_context: Any
    ) -> Tensor:
        raise NotImplementedError("settings refuse chunks for token tasks, whose answers are all far from the question")

    def shorten(self, batch: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
        return batch

    def save(self, folder: str) -> None:
        """Beside the model, so that a checkpoint says what it can be asked."""
        write_text(Path(folder) / GENERATOR, json.dumps({"generator": self.task.describe()}, indent=2) + "\n")


class FixedExamples(Dataset[Item]):
    """A set of examples, in small integers."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples.inputs)

    def __getitem__(self, index: int) -> Item:
        return self.examples.inputs[index], self.examples.labels[index]


class FreshExamples(Dataset[Item]):
    """``length`` examples of which none comes twice; item i depends on the task, the seed and i alone.

    They are made in blocks, for a generator is fast on many at once. With a curriculum i also says how far it is.
    """

    def __init__(self, task: TokenTask | Curriculum, length: int, seed: int) -> None:
        self.task, self.length, self.seed = task, length, seed
        if isinstance(task, Curriculum):
            self.block = max(1, min(BLOCK_TOKENS // task.task.length, length // STAGES))
        else:
            self.block = max(1, BLOCK_TOKENS // task.length)
        self._number, self._made = -1, Examples(np.empty((0, 0)), np.empty((0, 0)))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        number, place = divmod(index, self.block)
        if number != self._number:
            self._number, self._made = number, self.make_block(number)
        return self._made.inputs[place], self._made.labels[place]

    def make_block(self, number: int) -> Examples:
        """The examples from ``number * block`` on."""
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)[0]
        first = number * self.block
        task = self.task.at(first / self.length) if isinstance(self.task, Curriculum) else self.task
        return task.make(self.block, int(seed))


def fixed_examples(task: TokenTask, count: int, seed: int) -> Examples | None:
    """The examples that a run passes over again and again: the first of the fresh ones; None where those are read.

    Of a task of real data these are all that it has, unless ``count`` says fewer.
    """
    size = task.size("train")
    if size is not None:
        return _small(task, task.make(count or size, seed))
    if not count:
        return None
    fresh = FreshExamples(task, count, seed)
    parts = [_small(task, fresh.make_block(number)) for number in range(-(-count // fresh.block))]
    return Examples(*(np.concatenate(part)[:count] for part in zip(*parts, strict=True)))


def held_out_examples(task: TokenTask, data: DataSettings) -> Examples | None:
    """What every run of a comparison is measured on, whatever its seed; of real data at most what there is."""
    size = task.size("validation")
    count = data.validation_examples if size is None else min(data.validation_examples, size)
    return _small(task, task.make(count, data.split_seed, "validation")) if count else None


def as_measured(found: TokenEvaluation) -> Measured:
    """An evaluation as the harness takes it: more right places are better, and of equally many the smaller loss."""
    is_number = np.isfinite(found.loss)
    return Measured(
        rank=(found.accuracy, -found.loss) if is_number else (found.loss,),
        row={"loss": found.loss, "accuracy": found.accuracy, "sequences": found.sequences},
        brief=(
            f"accuracy {found.accuracy:.4f}, {found.sequences:.4f} of {found.examples:,} held-out sequences all right"
        ),
        found=found,
    )


def digest(examples: Examples | None) -> str:
    """A sha256 that does not depend on the order of the examples."""
    if examples is None:
        return hashlib.sha256(b"").hexdigest()
    inputs, labels = (np.ascontiguousarray(part, dtype=np.int64) for part in examples)
    rows = sorted(hashlib.sha256(a.tobytes() + b.tobytes()).digest() for a, b in zip(inputs, labels, strict=True))
    return hashlib.sha256(b"".join(rows)).hexdigest()


def _padded(row: np.ndarray, length: int, filler: int) -> np.ndarray:
    """Pads behind a sequence, which no place of it sees."""
    return row if len(row) == length else np.pad(row, (0, length - len(row)), constant_values=filler)


def _small(task: TokenTask, examples: Examples) -> Examples:
    """The same in the smallest integers that hold them, and `IGNORED`: such sets are kept whole."""
    kind = next(kind for kind in (np.int8, np.int16, np.int32) if task.vocab_size <= np.iinfo(kind).max)
    return Examples(*(part.astype(kind) for part in examples))
