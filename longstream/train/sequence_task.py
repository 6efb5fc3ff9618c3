"""The tasks `classify`, `regress` and `forecast`: sequences of frames in, a report on those held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from longstream.sequences import (
    Collator,
    LengthBuckets,
    Report,
    SequenceDataset,
    SequenceModel,
    Sequences,
    class_weights,
    evaluate,
    label_numbers,
)
from longstream.sequences.chunks import backward_in_chunks
from longstream.sequences.collate import check_held_out
from longstream.sequences.read import read_sequences
from longstream.sequences.spec import ReadSpec
from longstream.sequences.split import split_sequences, split_time
from longstream.train.report import write_report
from longstream.train.rundir import RunDirectory
from longstream.train.sequence_models import build_sequence_model
from longstream.train.settings import DataSettings, Settings
from longstream.train.task import Curve, Measured, Task

CURVES = {
    "classify": Curve("accuracy", "accuracy"),
    "regress": Curve("r2", "R2"),
    "forecast": Curve("mae", "mean absolute error"),
}


class SequenceTask(Task):
    """Predict a class or numbers of each sequence, or the frames that follow each frame."""

    unit = "frames"

    def __init__(self, settings: Settings, checkpoint: Path | None = None) -> None:
        self.settings, self.curve = settings, CURVES[settings.data.task]
        self.train, self.held_out, self.starts = read_parts(settings.data)
        self._model: SequenceModel | None = None

    @property
    def has_validation(self) -> bool:
        return self.held_out is not None

    def facts(self) -> dict[str, Any]:
        held_out = self.held_out
        return {
            "sha256": parts_digest(self.train, held_out, self.starts),
            "validation_sha256": parts_digest(None, held_out, self.starts),
            "training_sequences": len(self.train),
            "training_frames": int(self.train.lengths.sum()),
            "validation_sequences": 0 if held_out is None else len(held_out),
            "validation_frames": 0 if held_out is None else int(held_out.lengths.sum() - sum(self.starts or ())),
            "channels": list(self.train.channels),
        }

    def describe_data(self, facts: dict[str, Any]) -> str:
        return f"{facts['training_frames']:,} + {facts['validation_frames']:,} frames"

    def summarize(self, model: Any, facts: dict[str, Any], per_step: int) -> str:
        items = len(self.dataset(model))
        named = f", classes {', '.join(model.config.classes[:12])}" if model.config.classes else ""
        if len(model.config.classes) > 12:
            named += f" ... ({len(model.config.classes)})"
        train = f"{_count(facts['training_sequences'], 'sequence')}, {_count(facts['training_frames'], 'frame')}"
        kept = f"{_count(facts['validation_sequences'], 'sequence')}, {_count(facts['validation_frames'], 'frame')}"
        return (
            f"{self.settings.model.name} of {model.num_parameters():,} parameters; {train} of"
            f" {_count(len(facts['channels']), 'channel')} to train on, {kept} held out{named};"
            f" {per_step} a step, {_count(max(1, items // per_step), 'step')} a pass"
        )

    def make_model(self) -> PreTrainedModel:
        self._model = build_sequence_model(self.settings, self.train, self.held_out)
        if self.held_out is not None:
            check_held_out(f"task {self.settings.data.task}", self.held_out, self._model.config)
        self.collator = Collator(self._model.config)
        return self._model

    def dataset(self, model: SequenceModel) -> SequenceDataset:
        """The training data as items."""
        weights = None
        if self.settings.train.class_weights:
            assert self.train.labels is not None
            of_class = class_weights(self.train.labels, model.config.classes).numpy()
            weights = of_class[label_numbers(self.train, model.config.classes)]
        return SequenceDataset(self.train, model.config, seq_len=self.settings.data.seq_len, weights=weights)

    def make_items(self, length: int) -> Dataset[Any]:
        assert self._model is not None, "make_model comes first"
        train = self.settings.train
        return LengthBuckets(self.dataset(self._model), length, train.batch_size, train.seed)

    def count(self, batches: Sequence[dict[str, Tensor]], items: Any, args: TrainingArguments) -> int:
        frames = 0
        for batch in batches:
            mask = batch.get("mask")
            frames += batch["values"][..., 0].numel() if mask is None else int(mask.sum())
        total = torch.tensor(frames, device=args.device)
        if args.world_size > 1:
            dist.all_reduce(total)
        return int(total)

    def evaluate(self, model: Any, args: TrainingArguments) -> Measured:
        """Every process takes all that is held out; the first one's figures count."""
        found = self.measure(model)
        rank = torch.tensor(found.rank, dtype=torch.float64, device=args.device)
        if args.world_size > 1:
            dist.broadcast(rank, 0)
        return found._replace(rank=tuple(rank.tolist()))

    def measure(self, model: SequenceModel) -> Measured:
        """The report on what is held out."""
        assert self.held_out is not None
        return measure(model, self.held_out, self.settings, self.starts)

    def backward_in_chunks(
        self, model: Any, batch: dict[str, Tensor], chunk: int, items: Any, scale: float, forward_context: Any
    ) -> Tensor:
        with forward_context():
            return backward_in_chunks(model, batch, chunk, scale) * scale

    def shorten(self, batch: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
        short = dict(batch)
        ahead = 0 if self._model is None else self._model.config.horizon - 1
        for key, size in (("values", chunk), ("mask", chunk), ("targets", chunk + ahead)):
            if key in batch and (key != "targets" or self.settings.data.task == "forecast"):
                short[key] = batch[key][:, :size]
        return short

    def finish(self, run: RunDirectory, measured: Measured | None, device: Any) -> Measured | None:
        if self.held_out is None:
            return None
        if measured is None:
            measured = self.measure(SequenceModel.from_pretrained(run.path).to(device))
        write_report(measured.found, run)
        return measured


def measure(model: SequenceModel, data: Sequences, settings: Settings, starts: list[int] | None) -> Measured:
    """A report on sequences; ``starts`` are the frames from which series are forecast."""
    report = evaluate(
        model,
        data,
        batch_size=settings.train.batch_size,
        chunk=settings.train.chunk,
        stride=settings.data.stride,
        season=settings.data.season,
        start=starts,
    )
    figures = {name: value for name, value in report.metrics.items() if isinstance(value, float)}
    return Measured(report.rank, {"loss": report.loss, **figures}, _brief(report), report)


def _brief(report: Report) -> str:
    """The report in a line."""
    metrics = report.metrics
    if report.task == "classify":
        on = f"{metrics['sequences']:,} held-out sequences"
        return f"accuracy {metrics['accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f} on {on}"
    if report.task == "regress":
        on = f"{metrics['sequences']:,} held-out sequences"
        return f"R2 {metrics['r2']:.4f}, mean absolute error {metrics['mae']:.4g} on {on}"
    errors = {name.replace("_", "-"): row["mae"] for name, row in metrics["errors"].items() if name != "model"}
    others = ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
    return f"mean absolute error {metrics['mae']:.4g} ({others}) over {metrics['origins']:,} forecasts"


def read_parts(data: DataSettings) -> tuple[Sequences, Sequences | None, list[int] | None]:
    """What to train on; what is held out, or None; and of a forecast the frames where its ends begin.

    A forecast's held-out part is the whole series, whose beginning the model has trained on.
    """
    spec = read_spec(data)
    sequences = read_sequences(data.files, spec, data.task)
    if data.validation_files:
        spec = replace(spec, labels_file=data.validation_labels_file)
        held_out = read_sequences(data.validation_files, spec, data.task)
        return sequences, held_out, [0] * len(held_out) if data.task == "forecast" else None
    if data.task == "forecast":
        if not data.validation_fraction:
            return sequences, None, None
        train = split_time(sequences, data.validation_fraction)[0]
        return train, sequences, train.lengths.tolist()
    if not data.validation_fraction and not data.hold_out_groups:
        return sequences, None, None
    parts = split_sequences(
        sequences,
        data.validation_fraction,
        data.split_seed,
        data.hold_out_groups,
        stratify=data.task == "classify",
    )
    return *parts, None


def read_spec(data: DataSettings) -> ReadSpec:
    """What the settings say of how files are read."""
    return ReadSpec(**{f.name: getattr(data, f.name) for f in fields(ReadSpec)})


def parts_digest(train: Sequences | None, held_out: Sequences | None, starts: list[int] | None) -> str:
    """The sha256 that a run's data.json knows its data by."""
    parts = [None if part is None else part.sha256() for part in (train, held_out)]
    return hashlib.sha256(repr((*parts, starts)).encode()).hexdigest()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
