"""The optimizer's groups and the schedule of the learning rate, the same for a run and for training in memory."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from longstream.models import decays, parameter_groups
from longstream.train.callbacks import RunClock

ENDLESS = 10**9  # steps of a training that only time ends
SCHEDULE_POINTS = 10_000  # resolution of a schedule that follows the clock


class OptimizingTrainer(transformers.Trainer):
    """transformers' Trainer with this library's groups of parameters, and a schedule that may follow the clock.

    Args:
        clock:    how far the training is; also one of the callbacks.
        **kwargs: of transformers.Trainer.
    """

    def __init__(self, *, clock: RunClock, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clock = clock
        self.remove_callback(transformers.PrinterCallback)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and embeddings decay; norms, biases and the gates' lower bounds do not."""
        return [name for name, p in model.named_parameters() if decays(name, p)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' choice of optimizer, on groups that honor the hints of layers, as Hyena's filters give them."""
        if self.optimizer is None:
            network = self.model if model is None else model
            assert isinstance(network, nn.Module)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)  # type: ignore[arg-type]
            groups = parameter_groups(network, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
            self.optimizer = kind([{k: v for k, v in group.items() if k != "names"} for group in groups], **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """transformers' own schedule, read at the training's progress in time where there is a time limit."""
        if not self.clock.budget:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler: Any = super().create_scheduler(SCHEDULE_POINTS, optimizer)  # a LambdaLR
        shape = scheduler.lr_lambdas[0]
        # a lambda and no object: schedulers save an object's attributes, and the clock is none of their business
        scheduler.lr_lambdas = [lambda step: shape(SCHEDULE_POINTS * self.clock.progress(step))] * len(
            scheduler.lr_lambdas
        )
        return scheduler


def schedule_arguments(
    schedule: str,
    *,
    steps: int | None,
    minutes: float,
    warmup_ratio: float,
    decay_ratio: float = 0.2,
    min_lr_ratio: float = 0.1,
) -> dict[str, Any]:
    """The fields of TrainingArguments that say how the learning rate goes.

    Args:
        schedule:     "cosine", or "wsd": warm up, stay, decay.
        steps:        of the whole training; None where only time ends it.
        minutes:      after which it ends; 0 for no limit.
        warmup_ratio: part of it spent warming up.
        decay_ratio:  part of it spent decaying, of "wsd".
        min_lr_ratio: last learning rate over the highest.
    Raises:
        ValueError: an unknown schedule.
    """
    points = SCHEDULE_POINTS if minutes else steps or ENDLESS
    shapes = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": min_lr_ratio}),
        # 1-sqrt: the decay that Hägele et al. 2024 (arXiv:2405.18392) found best
        "wsd": (
            "warmup_stable_decay",
            {"num_decay_steps": round(decay_ratio * points), "min_lr_ratio": min_lr_ratio, "decay_type": "1-sqrt"},
        ),
    }
    if schedule not in shapes:
        raise ValueError(f"schedule must be one of {list(shapes)}, got {schedule!r}")
    kind, options = shapes[schedule]
    return {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": options,
        "warmup_steps": round(warmup_ratio * points),
    }
