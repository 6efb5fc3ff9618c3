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
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from longstream.models import decays, parameter_groups
from longstream.train.callbacks import RunClock
from longstream.train.corpus import Document
from longstream.train.evaluate import Evaluation, evaluate_documents
from longstream.train.rundir import RunDirectory, remove, replace
from longstream.train.sample import room_after, sample_text
from longstream.train.settings import Settings
from longstream.train.tokenizer import Tokenizer

PROGRESS = "progress.json"
SCHEDULE_POINTS = 10_000  # resolution of a schedule that follows the clock


class Diverged(FloatingPointError):
    """The loss or its gradient is no longer a number."""


class Trainer(transformers.Trainer):
    """The Trainer of one run.

    Args:
        settings:   what was asked for.
        run:        where it goes.
        clock:      decides when it ends; also one of the callbacks.
        tokenizer:  saved with every checkpoint.
        validation: documents to evaluate on, possibly none.
        **kwargs:   of transformers.Trainer.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        run: RunDirectory,
        clock: RunClock,
        tokenizer: Tokenizer,
        validation: Sequence[Document],
        model: PreTrainedModel,
        args: TrainingArguments,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.args, self.network = args, model  # self.model may become something that wraps it
        self.remove_callback(transformers.PrinterCallback)
        self.settings, self.run, self.clock, self.tokenizer, self.validation = (
            settings,
            run,
            clock,
            tokenizer,
            validation,
        )
        self.tokens = 0  # predicted so far, in all processes
        self.last_evaluation: Evaluation | None = None
        self._last_batch: dict[str, Tensor] = {}
        self._staging: Path | None = None
        self._bad_loss: float | None = None
        self._resumed: dict[str, Any] = {}

    # what the optimizer does

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and embeddings decay; norms, biases and the gates' lower bounds do not."""
        return [name for name, p in model.named_parameters() if decays(name, p)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' choice of optimizer, on groups that honor the hints of layers, as Hyena's filters give them."""
        if self.optimizer is None:
            network = self.network if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)
            groups = parameter_groups(network, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
            self.optimizer = kind([{k: v for k, v in group.items() if k != "names"} for group in groups], **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """transformers' own schedule, read at the run's progress in time where there is a time limit."""
        if not self.clock.budget:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler: Any = super().create_scheduler(SCHEDULE_POINTS, optimizer)  # a LambdaLR
        shape = scheduler.lr_lambdas[0]
        # a lambda and no object: schedulers save an object's attributes, and the clock is none of their business
        scheduler.lr_lambdas = [lambda step: shape(SCHEDULE_POINTS * self.clock.progress(step))] * len(
            scheduler.lr_lambdas
        )
        return scheduler

    # when it must stop

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            self._bad_loss = loss.item()
        return loss

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
        self.tokens += int(items or 0)
        return batches, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To the callbacks only: metrics.jsonl is the history, and no checkpoint need repeat it."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Exact figures on the validation documents, shared out among the processes."""
        started = time.monotonic()
        ranks, rank = self.args.world_size, self.args.process_index
        by_length = sorted(self.validation, key=lambda document: len(document.data), reverse=True)
        mine = evaluate_documents(self.network, self.tokenizer, by_length[rank::ranks])
        sums = torch.tensor(mine, dtype=torch.float64, device=self.args.device)
        if ranks > 1:
            dist.all_reduce(sums)
        nats, tokens, size = sums.tolist()
        if not math.isfinite(nats):
            raise self._diverged(self.state.global_step, f"the validation loss is {nats}")
        found = self.last_evaluation = Evaluation(nats, int(tokens), int(size))
        metrics = {
            "eval_loss": found.nats_per_token,
            "eval_bits_per_byte": found.bits_per_byte,
            "eval_perplexity": found.perplexity,
        }
        self.clock.evaluation_seconds = time.monotonic() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def sample(self) -> bytes:
        """The sample text of an evaluation, after its prompt."""
        train = self.settings.train
        prompt = train.sample_prompt.encode()
        length = min(train.sample_tokens, room_after(self.network, self.tokenizer, prompt))
        if length < 1:
            return b""
        return prompt + sample_text(
            self.network,
            self.tokenizer,
            prompt,
            max_new_tokens=length,
            temperature=0.8,
            seed=train.seed,
            may_end=False,
        )

    # how it is kept

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Model and tokenizer; not the pickled arguments that transformers would add."""
        if self.args.should_save:
            folder = output_dir or str(self.args.output_dir)
            self.network.save_pretrained(folder, state_dict=state_dict)
            self.tokenizer.save(folder)

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
                self.run.publish(self.run.checkpoints / name)
                self.run.drop_old_checkpoints(self.settings.train.keep)
        except (OSError, RuntimeError, SafetensorError) as error:  # for a full disk, each library has its own
            free = shutil.disk_usage(self.run.path).free
            what = f"could not save the checkpoint of step {step}, earlier ones are whole"
            raise OSError(f"{what}: {error} ({free:,} bytes were free)") from error
        finally:
            if self.args.should_save:
                remove(self._staging)
            self._staging = None

    def _refuse_to_save_nonsense(self) -> None:
        """Try the last batch on the weights: a step's loss only tells of those before it."""
        loss = self.network(**self._prepare_inputs(self._last_batch)).loss
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
