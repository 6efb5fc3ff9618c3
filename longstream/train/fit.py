"""Training a model of sequences in memory: transformers' Trainer without a run directory."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

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
from longstream.sequences.chunks import backward_in_chunks, why_not_chunks
from longstream.sequences.collate import check_held_out
from longstream.train.callbacks import RunClock
from longstream.train.optimize import ENDLESS, OptimizingTrainer, schedule_arguments
from longstream.train.rundir import quiet_transformers

logger = logging.getLogger("longstream")

_ONE_AT_A_TIME = threading.Lock()  # accelerate keeps one state a process, which every new Trainer resets

WINDOW = 256  # frames that a forecaster is trained on at once, where nothing is said


@dataclass
class History:
    """What `fit_sequences` logged.

    Attributes:
        training:   rows of step, loss (the mean since the last row), learning_rate and seconds.
        validation: rows of step, score, loss and seconds, of what was held out.
        score_name: what the score is; higher is better.
        steps:      done.
        best_step:  whose weights the model has: the best evaluation's; without a held-out part the last step.
    """

    training: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    score_name: str = ""
    steps: int = 0
    best_step: int = 0


def fit_sequences(
    model: SequenceModel,
    train: Sequences,
    held_out: Sequences | None = None,
    *,
    steps: int = 1000,
    minutes: float = 0.0,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.1,
    schedule: str = "cosine",
    warmup_ratio: float = 0.02,
    seed: int = 0,
    patience: int = 0,
    eval_every: int = 0,
    class_weight: Tensor | str | None = None,
    sample_weight: np.ndarray | None = None,
    seq_len: int = 0,
    chunk: int = 0,
    verbose: bool = False,
) -> History:
    """Train ``model`` in place, with the optimizer, schedule and order of `longstream train`.

    Args:
        model:         of `longstream.sequences.make_model`; on a GPU it is trained there.
        train:         what to train on.
        held_out:      what the best weights are chosen by, and these are what the model has afterwards; None keeps the
                       last ones.
        steps:         optimizer steps; 0: as many as ``minutes`` allow.
        minutes:       training ends after so many; 0: no limit.
        batch_size:    sequences, or windows of a forecast, in a step.
        learning_rate: the highest.
        weight_decay:  of AdamW; none on norms, biases and gates' bounds.
        schedule:      "cosine", or "wsd": warm up, stay, decay.
        warmup_ratio:  part of the training spent warming up.
        seed:          of the order, and of dropout.
        patience:      evaluations without a better one that end the training; 0: it goes to the end.
        eval_every:    steps between evaluations of ``held_out``; 0: at the end only.
        class_weight:  (classes,) in the order of ``model.config.classes``, "balanced" or None.
        sample_weight: (n,) of the training sequences.
        seq_len:       frames of a window of a forecast; 0 is 256, or what the network takes.
        chunk:         frames that go through at once; longer sequences by truncated backpropagation. 0: all.
        verbose:       whether to log the loss and the evaluations (logger "longstream").
    Raises:
        ValueError: settings or data that do not fit.    FloatingPointError: the loss is not a number any more.
    """
    _refuse_unfit(model, held_out, steps, minutes, batch_size, patience, eval_every, chunk)
    config = model.config
    if config.task == "forecast" and not seq_len:
        seq_len = min(WINDOW, model.window or WINDOW)
    weights = _weights(train, model, class_weight, sample_weight)
    items = SequenceDataset(train, config, seq_len=seq_len, weights=weights)
    longest = int(items.sizes.max())
    if chunk and chunk < longest and (why := why_not_chunks(model, longest)) is not None:
        raise ValueError(f"fit_sequences: {why}")
    if chunk >= longest:
        chunk = 0
    clock = RunClock(steps or None, minutes)
    on_cpu = model.device.type == "cpu"
    with _ONE_AT_A_TIME, tempfile.TemporaryDirectory(prefix="longstream-") as nowhere, quiet_transformers():
        arguments = TrainingArguments(
            output_dir=nowhere,  # transformers makes the folder, whether it saves or not
            max_steps=steps or ENDLESS,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            **schedule_arguments(schedule, steps=steps or None, minutes=minutes, warmup_ratio=warmup_ratio),
            eval_strategy="no" if held_out is None else "steps",
            eval_steps=eval_every or ENDLESS,
            save_strategy="no",
            logging_steps=max(1, min(50, (steps or 500) // 10)),
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            train_sampling_strategy="sequential",  # LengthBuckets has shuffled
            remove_unused_columns=False,
        )
        trainer = _Trainer(
            clock=clock,
            held_out=held_out,
            patience=patience,
            chunk=chunk,
            verbose=verbose,
            model=model,
            args=arguments,
            train_dataset=LengthBuckets(items, (steps or ENDLESS) * batch_size, batch_size, seed),
            eval_dataset=[],  # there is an evaluation of its own, but transformers wants one
            data_collator=Collator(config),
            callbacks=[clock],
        )
        clock.start(0.0)
        trainer.train()
    return trainer.keep_best()


class _Trainer(OptimizingTrainer):
    """Evaluates on the held-out sequences, remembers the best weights, and stops when there are no better ones."""

    def __init__(
        self,
        *,
        held_out: Sequences | None,
        patience: int,
        chunk: int,
        verbose: bool,
        model: SequenceModel,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, **kwargs)
        self.network, self.held_out, self.patience, self.chunk, self.verbose = model, held_out, patience, chunk, verbose
        accelerator: Any = self.accelerator
        accelerator.free_memory = lambda *kept: (
            kept
        )  # a new one has nothing to free; to look takes longer than a small fit
        self.history = History()
        self.best: Report | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.waited = 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if self.chunk:
            model.train()
            loss = backward_in_chunks(self.network, self._prepare_inputs(inputs), self.chunk)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            row = {key: logs[key] for key in ("loss", "learning_rate") if key in logs}
            self._add(self.history.training, row)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self.held_out is not None
        if self.history.validation and self.history.validation[-1]["step"] == self.state.global_step:
            return {}  # the last step's, which transformers asks for once more
        report = evaluate(
            self.network, self.held_out, batch_size=self.args.per_device_train_batch_size, chunk=self.chunk
        )
        if not math.isfinite(report.loss):
            raise self._diverged(f"the held-out loss is {report.loss}")
        self.history.score_name = report.score_name
        self._add(self.history.validation, {"score": report.score, "loss": report.loss})
        if self.best is None or report.rank > self.best.rank:
            self.best, self.waited, self.history.best_step = report, 0, self.state.global_step
            self.best_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        else:
            self.waited += 1
            if self.patience and self.waited >= self.patience:
                self.control.should_training_stop = True
        return {"eval_loss": report.loss}

    def keep_best(self) -> History:
        """Give the model the best weights, where there was an evaluation."""
        self.history.steps = self.state.global_step
        if self.best is None:
            self.history.best_step = self.history.steps
        elif self.history.best_step < self.history.steps:
            self.network.load_state_dict(self.best_weights)
        self.network.eval()
        return self.history

    def _add(self, rows: list[dict[str, float]], row: dict[str, float]) -> None:
        rows.append({"step": self.state.global_step, **row, "seconds": self.clock.seconds})
        if self.verbose:
            logger.info("%s", "  ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()))

    def _diverged(self, what: str) -> FloatingPointError:
        step = self.state.global_step
        return FloatingPointError(f"training stopped at step {step}: {what}. Try a lower learning rate or more warmup")


def _refuse_unfit(
    model: SequenceModel,
    held_out: Sequences | None,
    steps: int,
    minutes: float,
    batch_size: int,
    patience: int,
    eval_every: int,
    chunk: int,
) -> None:
    for name, value, least in (
        ("steps", steps, 0),
        ("minutes", minutes, 0),
        ("batch_size", batch_size, 1),
        ("patience", patience, 0),
        ("eval_every", eval_every, 0),
        ("chunk", chunk, 0),
    ):
        if not value >= least:
            raise ValueError(f"fit_sequences: {name} must be >= {least}, got {value}")
    if not steps and not minutes:
        raise ValueError("fit_sequences: steps or minutes must be > 0, got neither")
    if patience and held_out is None:
        raise ValueError(f"fit_sequences: patience must be 0 without held-out sequences, got {patience}")
    if held_out is not None:
        check_held_out("fit_sequences", held_out, model.config)


def _weights(
    train: Sequences, model: SequenceModel, class_weight: Tensor | str | None, sample_weight: np.ndarray | None
) -> np.ndarray | None:
    """(n,) the share of each sequence in the loss: its own, times its class's."""
    if class_weight is None:
        return sample_weight
    classes = model.config.classes
    if model.config.task != "classify" or train.labels is None:
        raise ValueError("fit_sequences: class_weight must be None unless the task is to classify")
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"fit_sequences: class_weight must be 'balanced', numbers or None, got {class_weight!r}")
        class_weight = class_weights(train.labels, classes)
    of_class = np.asarray(class_weight, dtype=np.float64)
    if of_class.shape != (len(classes),) or not (of_class >= 0).all():
        raise ValueError(f"fit_sequences: class_weight must be {len(classes)} numbers >= 0, got {class_weight}")
    weights = of_class[label_numbers(train, classes)]
    return weights if sample_weight is None else weights * sample_weight
