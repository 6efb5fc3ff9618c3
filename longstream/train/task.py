"""What a run can be about: all that the harness (`run.py`, `trainer.py`, `callbacks.py`) knows of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from longstream.train.rundir import RunDirectory
from longstream.train.settings import Settings


class Measured(NamedTuple):
    """What an evaluation found."""

    rank: tuple[float, ...]  # higher is better; not finite: the model is lost
    row: dict[str, float]  # of metrics.jsonl
    brief: str  # for a line in the terminal
    found: Any  # the task's own result


class Curve(NamedTuple):
    """The figure of metrics.jsonl that a run's plot shows."""

    key: str
    label: str


class Task(ABC):
    """Data, model and measure of a run.

    Args of a task's own constructor: the settings, and the checkpoint to go on from or None. It reads the data, and
    raises ValueError or OSError where they do not fit.
    """

    settings: Settings
    curve: Curve
    unit: str  # of what is counted: "tokens", "frames"
    collator: Callable[[Any], dict[str, Tensor]]

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether something is held out."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What data.json says of the data: sha256 of all, validation_sha256 of what is held out, and sizes."""

    @abstractmethod
    def describe_data(self, facts: dict[str, Any]) -> str:
        """The sizes in ``facts``, short enough to say in brackets what has changed."""

    @abstractmethod
    def summarize(self, model: Any, facts: dict[str, Any], per_step: int) -> str:
        """The line that a run begins with; ``per_step`` sequences make a step."""

    @abstractmethod
    def make_model(self) -> PreTrainedModel:
        """A new model, its weights drawn from torch's random state."""

    @abstractmethod
    def make_items(self, length: int) -> Dataset[Any]:
        """``length`` items for the collator, pass after pass over the data; item i depends on the seed and i alone."""

    @abstractmethod
    def count(self, batches: Sequence[dict[str, Tensor]], items: Any, args: TrainingArguments) -> int:
        """How many tokens or frames a step takes, in all processes; ``items`` is transformers' count of labels."""

    def loss(self, model: Any, batch: dict[str, Tensor], items: Any) -> Tensor | None:
        """The loss of a batch where the task computes it itself; None is the model's own.

        ``items`` is transformers' count of the labels of a step in all processes, by which to divide the sum; None asks
        for the mean.
        """
        return None

    @abstractmethod
    def evaluate(self, model: Any, args: TrainingArguments) -> Measured:
        """The figures on what is held out, the same in every process."""

    @abstractmethod
    def backward_in_chunks(
        self, model: Any, batch: dict[str, Tensor], chunk: int, items: Any, scale: float, forward_context: Any
    ) -> Tensor:
        """Forward and backward of ``scale`` times the loss in chunks of so many frames, the state carried on between.

        Gradients go no further back than the chunk. ``forward_context()`` surrounds each forward pass. Returns the
        scaled loss.
        """

    @abstractmethod
    def shorten(self, batch: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
        """The batch without what comes after the first chunk."""

    def training_row(self, loss: float) -> dict[str, float]:
        """What metrics.jsonl says beside a training loss."""
        return {}

    def brief(self, row: dict[str, Any]) -> str:
        """The figure of a row of training, for the progress line; may be empty."""
        return ""

    def save(self, folder: str) -> None:
        """Write what a checkpoint needs beside the model."""
        return None

    def show(self, model: Any, run: RunDirectory, step: int) -> None:
        """Leave an impression of the model after an evaluation."""
        return None

    def finish(self, run: RunDirectory, measured: Measured | None, device: Any) -> Measured | None:
        """Write the report of a run that has ended.

        Args:
            measured: the last evaluation, if it was of the model that the run has kept; else None.
        Returns:
            The figures of the model that the run has kept.
        """
        return measured


def make_task(settings: Settings, checkpoint: Path | None = None) -> Task:
    """The task that the settings name, its data read."""
    if settings.data.task == "next-token":
        from longstream.train.text_task import TextTask

        return TextTask(settings, checkpoint)
    if settings.data.task == "tokens":
        from longstream.train.token_task import TokenRun

        return TokenRun(settings, checkpoint)
    from longstream.train.sequence_task import SequenceTask

    return SequenceTask(settings, checkpoint)
