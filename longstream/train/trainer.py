"""transformers' Trainer with its own evaluation, checkpoints that are whole or absent, and an exact way to resume.

The training loop is the library's.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from longstream.train.callbacks import RunClock
from longstream.train.optimize import OptimizingTrainer
from longstream.train.rundir import RunDirectory, checkpoint_step, remove, replace
from longstream.train.settings import Settings
from longstream.train.task import Measured, Task

PROGRESS = "progress.json"


class Diverged(FloatingPointError):
    """The loss or its gradient is no longer a number."""


@dataclass
class Best:
    """The best evaluation so far."""

    rank: list[float] = field(default_factory=list)
    step: int = 0
    waited: int = 0  # evaluations since

    def take(self, rank: Sequence[float], step: int) -> bool:
        """Whether this evaluation is better than all before."""
        better = [*rank] > self.rank  # and more than no evaluation
        self.rank, self.step, self.waited = ([*rank], step, 0) if better else (self.rank, self.step, self.waited + 1)
        return better


class Trainer(OptimizingTrainer):
    """The Trainer of one run.

    Args:
        settings: what was asked for.
        run:      where it goes.
        clock:    decides when it ends; also one of the callbacks.
        task:     what it is about: evaluates, and saves what it needs with every checkpoint.
        **kwargs: of transformers.Trainer.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        run: RunDirectory,
        clock: RunClock,
        task: Task,
        model: PreTrainedModel,
        args: TrainingArguments,
        **kwargs: Any,
    ) -> None:
        super().__init__(clock=clock, model=model, args=args, **kwargs)
        self.args, self.network = args, model  # self.model may become something that wraps it
        self.settings, self.run, self.task = settings, run, task
        self.tokens = 0  # predicted so far, or frames seen, in all processes
        self.best = Best()
        self.last_measured: Measured | None = None
        self.measured_at = -1  # step of that
        self._last_batch: dict[str, Tensor] = {}
        self._staging: Path | None = None
        self._bad_loss: float | None = None
        self._resumed: dict[str, Any] = {}

    # when it must stop

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        if chunk := self.settings.train.chunk:
            model.train()
            batch = self._prepare_inputs(inputs)
            scale = 1 / self.current_gradient_accumulation_steps
            context = self.compute_loss_context_manager
            loss = self.task.backward_in_chunks(model, batch, chunk, num_items_in_batch, scale, context)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._bad_loss = loss.item()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's own loss, if it has one. transformers averages gradients over processes, and items are of all."""
        loss = self.task.loss(model, inputs, num_items_in_batch)
        if loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss if num_items_in_batch is None else loss * self.args.world_size

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called before every optimizer step; gradients are summed over processes, so a NaN of one is a NaN of all."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        value = 0.0 if norm is None else float(norm)
        if self._bad_loss is not None or not math.isfinite(value):
            what = f"the loss is {self._bad_loss}" if self._bad_loss is not None else f"the gradient's norm is {value}"
            raise self._diverged(self.state.global_step + 1, what)
        return norm

    def _diverged(self, step: int, what: str) -> Diverged:
        found = self.run.list_checkpoints()
        kept = f"{found[-1]} is the last good checkpoint" if found else "no checkpoint had been saved"
        return Diverged(f"training stopped at step {step}: {what}; {kept}. Try a lower learning rate or more warmup")

    # what is measured

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._last_batch = batches[-1]
        self.tokens += self.task.count(batches, items, self.args)
        return batches, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To the callbacks only: metrics.jsonl is the history, and no checkpoint need repeat it."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The task's figures on what is held out. With patience, a better model is kept, and none for long ends it."""
        started = time.monotonic()
        step, patience = self.state.global_step, self.settings.train.patience
        found = self.task.evaluate(self.network, self.args)
        if not all(map(math.isfinite, found.rank)):
            raise self._diverged(step, f"the validation figure is {found.rank[0]}")
        self.last_measured, self.measured_at = found, step
        better = self.best.take(found.rank, step)
        metrics = {f"eval_{name}": value for name, value in found.row.items()}
        self.clock.evaluation_seconds = time.monotonic() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if patience and better:
            self.control.should_save = True
        elif patience and self.best.waited >= patience:
            self.control.should_save = self.control.should_training_stop = True
        return metrics

    # how it is kept

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model and what the task adds; not the pickled arguments that transformers would add."""
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            self.network.save_pretrained(folder, state_dict=state_dict)
            self.task.save(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Into a folder beside, which gets its name once every process has written its part; then older ones may go."""
        step = self.state.global_step
        self._refuse_to_save_nonsense()
        self._staging = self.run.checkpoints / ".writing"
        if self.args.should_save:
            remove(self._staging)
        self._wait_for_all()
        name, progress = f"checkpoint-{step}", self._progress()
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                (self._staging / name / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            self._wait_for_all()
            if self.args.should_save:
                replace(self._staging / name, self.run.checkpoints / name)
                self._publish_and_drop(self.run.checkpoints / name)
        except (OSError, RuntimeError, SafetensorError) as error:  # for a full disk, each library has its own
            free = shutil.disk_usage(self.run.path).free
            what = f"could not save the checkpoint of step {step}, earlier ones are whole"
            raise OSError(f"{what}: {error} ({free:,} bytes were free)") from error
        finally:
            if self.args.should_save:
                remove(self._staging)
            self._staging = None

    def _publish_and_drop(self, checkpoint: Path) -> None:
        """Make a new checkpoint the run's model, unless an earlier one is to stay that; then older ones may go."""
        best = self.best.step if self.settings.train.patience else 0
        if best in (0, checkpoint_step(checkpoint)):
            self.run.publish(checkpoint)
        self.run.drop_old_checkpoints(self.settings.train.keep, spare=best)

    @property
    def has_last_batch(self) -> bool:
        """Whether this session has trained on a batch yet."""
        return bool(self._last_batch)

    def loss_of_last_batch(self) -> Tensor:
        """The loss of the last batch, or of its first chunk, on the weights as they are now; with a graph."""
        chunk = self.settings.train.chunk
        batch = self.task.shorten(self._last_batch, chunk) if chunk else self._last_batch
        inputs = self._prepare_inputs(batch)
        loss = self.task.loss(self.network, inputs, None)
        return self.network(**inputs).loss if loss is None else loss

    def _refuse_to_save_nonsense(self) -> None:
        """Try the last batch on the weights: a step's loss only tells of those before it."""
        loss = self.loss_of_last_batch()
        # autograd.grad leaves alone what the processes share gradients by
        trained = [p for p in self.network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        size = sum((g.double().square().sum() for g in gradients if g is not None), loss.detach().double())
        if self.args.world_size > 1:
            dist.all_reduce(size)
        if not torch.isfinite(size):
            raise self._diverged(self.state.global_step, "what it made of the weights has no finite loss or gradient")

    def _progress(self) -> dict[str, Any]:
        """What a resumed run must know beyond what transformers keeps."""
        unlogged = torch.clone(self._tr_loss)
        if self.args.world_size > 1:
            dist.all_reduce(unlogged)
        return {
            "seconds": self.clock.seconds,
            "tokens": self.tokens,
            "unlogged_loss": unlogged.item() / self.args.world_size,
            "last_logged_step": self._globalstep_last_logged,
            "evaluation_due": self.clock.evaluation_due,
            "best": asdict(self.best),
        }

    def _wait_for_all(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()

    # how it goes on

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The weights, from safetensors only, all of them."""
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
        saved = type(self.network).from_pretrained(resume_from_checkpoint, **options)
        self.network.load_state_dict(saved.state_dict())
        self._resumed = json.loads((Path(resume_from_checkpoint) / PROGRESS).read_text(encoding="utf-8"))
        self.tokens = self._resumed["tokens"]
        self.best = Best(**self._resumed.get("best", {}))  # runs of earlier versions have none
        self.clock.start(self._resumed["seconds"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _named(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _named(checkpoint):
            super()._load_rng_state(checkpoint)

    def on_train_begin(self) -> None:
        """Take up what the checkpoint left open; transformers has just reset it."""
        if self._resumed:
            self._tr_loss += self._resumed["unlogged_loss"]
            self._globalstep_last_logged = self._resumed["last_logged_step"]
            self.state.compute_steps(self.args, self.state.max_steps)
            if self._resumed["evaluation_due"]:
                self.evaluate()
                if self.args.should_save:  # the checkpoint of this step is there already
                    self._publish_and_drop(self.run.checkpoints / f"checkpoint-{self.state.global_step}")


@contextmanager
def _named(checkpoint: str | None) -> Iterator[None]:
    """transformers reads these files with torch's weights-only loader, whose refusals do not name them."""
    try:
        yield
    except Exception as error:  # of many kinds, some of them private
        raise ValueError(f"{checkpoint} cannot be loaded: {str(error).splitlines()[0]}") from error


class OnTrainBegin(transformers.TrainerCallback):
    """Calls `Trainer.on_train_begin`; the last callback, so that the others are ready when it evaluates."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.on_train_begin()
