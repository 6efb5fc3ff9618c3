"""One training run from settings to a run directory."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from longstream.train.callbacks import ProgressLine, RunClock, RunLog
from longstream.train.layer_scalars import LayerLog
from longstream.train.optimize import ENDLESS, schedule_arguments
from longstream.train.rundir import RunDirectory, checkpoint_step, quiet_transformers, write_text
from longstream.train.settings import DEFAULT_STEPS, Settings, flatten, setting_fields, to_toml
from longstream.train.task import Measured, Task, make_task
from longstream.train.tokenizer import is_file
from longstream.train.trainer import PROGRESS, OnTrainBegin, Trainer

logger = logging.getLogger("longstream")


@dataclass(frozen=True)
class RunResult:
    """What came of a call of `train`."""

    run: Path
    step: int
    kept_step: int = 0  # whose model the run has: with patience the best one's
    trained: bool = True  # False: the run was finished before
    interrupted_by: int = 0  # signal number
    measured: Measured | None = None  # the figures of the model that is kept; of an interrupted session, the last ones


def train(settings: Settings, run_path: str | Path, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Train a model as ``settings`` say and leave everything about it in the directory ``run_path``.

    Under ``torchrun`` the processes share the work: a step then takes as many sequences more as there are processes.

    Args:
        resume:    go on from the newest whole checkpoint of the run; only settings marked resumable may differ.
        overwrite: replace a run that is there already.
    Raises:
        FileExistsError: the directory holds a run, and neither resume nor overwrite is given.
        ValueError:      settings, data or checkpoint do not fit.
        Diverged:        the loss is not a number any more; the last checkpoint stands.
        OSError:         something could not be read or written; checkpoints that were there are whole.
    """
    settings = _with_absolute_paths(settings)
    to_toml(settings)  # refuses what could not be written down
    run = RunDirectory(run_path)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    checkpoint = None
    if resume:
        checkpoint = _checkpoint_to_resume(run, settings, processes)
        if _is_last(checkpoint, settings):
            return RunResult(run.path, checkpoint_step(checkpoint), trained=False)
    elif rank == 0:
        run.refuse_to_overwrite(overwrite)
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)

    task = make_task(settings, checkpoint)
    if settings.train.chunk and processes > 1:
        raise ValueError("TrainSettings.chunk must be 0 under torchrun: chunks are trained in one process")
    if settings.train.patience and not task.has_validation:
        raise ValueError("TrainSettings.patience must be 0 where nothing is held out to be patient with")
    facts = {**task.facts(), "processes": processes}
    if resume:
        _refuse_other_data(run, task, facts)
    torch.manual_seed(settings.train.seed)
    model = task.make_model()

    total = settings.train.steps or (None if settings.train.minutes else DEFAULT_STEPS)
    clock = RunClock(total, settings.train.minutes)
    length = (total or ENDLESS) * settings.train.batch_size * settings.train.gradient_accumulation * processes
    trainer = Trainer(
        settings=settings,
        run=run,
        clock=clock,
        task=task,
        model=model,
        args=_arguments(settings, run, total, task.has_validation),
        train_dataset=task.make_items(length),
        eval_dataset=[],  # the task has its own, but transformers wants one
        data_collator=task.collator,
        callbacks=[clock],
    )
    log = RunLog(run, clock, trainer)
    line = ProgressLine(clock, log)
    if rank == 0:
        trainer.add_callback(log)
        trainer.add_callback(LayerLog(log.write, trainer))
        trainer.add_callback(line)
    trainer.add_callback(OnTrainBegin(trainer))
    if rank == 0:  # not before everything is ready: this deletes an earlier run
        if resume:
            write_text(run.settings, to_toml(settings))
        else:
            run.create(settings, facts)
        per_step = settings.train.batch_size * settings.train.gradient_accumulation * processes
        logger.info("%s", task.summarize(model, facts, per_step))
    clock.start(0.0)
    try:
        with clock.listening(), quiet_transformers():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        line.close()
        log.close()
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    step, kept = trainer.state.global_step, trainer.last_measured
    kept_step = (settings.train.patience and trainer.best.step) or step
    if rank == 0 and not clock.interrupted_by:
        kept = task.finish(run, kept if trainer.measured_at == kept_step else None, trainer.args.device)
    return RunResult(run.path, step, kept_step=kept_step, interrupted_by=clock.interrupted_by, measured=kept)


def _with_absolute_paths(settings: Settings) -> Settings:
    """So that a run can be resumed from anywhere."""
    data = settings.data
    files, held_out = (
        tuple(name if name == "builtin" else os.path.abspath(name) for name in names)
        for names in (data.files, data.validation_files)
    )
    labels, held_out_labels = (
        name and os.path.abspath(name) for name in (data.labels_file, data.validation_labels_file)
    )
    tokenizer = os.path.abspath(data.tokenizer) if is_file(data.tokenizer) else data.tokenizer
    paths = {"files": files, "validation_files": held_out, "labels_file": labels, "tokenizer": tokenizer}
    paths["validation_labels_file"] = held_out_labels
    return replace(settings, data=replace(data, **paths))


def _arguments(settings: Settings, run: RunDirectory, total: int | None, has_validation: bool) -> TrainingArguments:
    train = settings.train
    on_cpu = train.device == "cpu"
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=total or ENDLESS,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        **schedule_arguments(
            train.schedule,
            steps=total,
            minutes=train.minutes,
            warmup_ratio=train.warmup_ratio,
            decay_ratio=train.decay_ratio,
            min_lr_ratio=train.min_lr_ratio,
        ),
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        bf16=train.bf16,
        activation_checkpointing=train.gradient_checkpointing,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=train.eval_every or ENDLESS,
        save_strategy="steps",
        save_steps=train.save_every or ENDLESS,
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=train.seed,
        use_cpu=on_cpu,
        use_cache=True,  # what is written to config.json, where it is about generation
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
        train_sampling_strategy="sequential",  # make_items has shuffled
        remove_unused_columns=False,
    )


def _checkpoint_to_resume(run: RunDirectory, settings: Settings, processes: int) -> Path:
    before, now, known = flatten(run.read_settings()), flatten(settings), setting_fields()
    if now["data.generator_start"] and before["train.steps"] != now["train.steps"]:
        raise ValueError(
            f"a resumed run with a curriculum, data.generator_start={now['data.generator_start']!r}, cannot change"
            f" train.steps from {before['train.steps']} to {now['train.steps']}: it is spread over them"
        )
    for key in before:
        if before[key] != now[key] and not known[key][0].metadata["resumable"]:
            raise ValueError(
                f"a resumed run cannot change {key} from {before[key]!r} to {now[key]!r}; start a new run for that"
            )
    if (then := run.read_data()["processes"]) != processes:
        how = f"under torchrun --nproc_per_node {then}" if then > 1 else "without torchrun"
        raise ValueError(f"{run.path} was trained with WORLD_SIZE={then}, not {processes}: resume it {how}")
    checkpoint = run.newest_checkpoint(processes)
    if checkpoint is None:
        raise ValueError(f"{run.path}: no checkpoint has been saved yet; start again with --overwrite")
    return checkpoint


def _is_last(checkpoint: Path, settings: Settings) -> bool:
    """Whether a run of these settings ends with this checkpoint."""
    train = settings.train
    steps = train.steps or (0 if train.minutes else DEFAULT_STEPS)
    progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    seconds = progress["seconds"]
    out_of_time = train.minutes > 0 and seconds >= 60 * train.minutes
    out_of_patience = 0 < train.patience <= progress.get("best", {}).get("waited", 0)
    return out_of_time or out_of_patience or (steps > 0 and checkpoint_step(checkpoint) >= steps)


def _refuse_other_data(run: RunDirectory, task: Task, facts: dict[str, Any]) -> None:
    before = run.read_data()
    if before["sha256"] != facts["sha256"]:
        sizes = [task.describe_data(of) for of in (before, facts)]
        raise ValueError(
            f"{run.path}: the data have changed since this run began ({sizes[0]} then, {sizes[1]} now); start a new run"
        )
