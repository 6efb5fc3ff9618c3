"""One training run from settings to a run directory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from longstream.train.batches import Collator, ShuffledWindows
from longstream.train.callbacks import ProgressLine, RunClock, RunLog
from longstream.train.corpus import Document
from longstream.train.data import read_documents, split, token_stream, windows
from longstream.train.evaluate import Evaluation
from longstream.train.models import build_model
from longstream.train.rundir import RunDirectory, checkpoint_step, quiet_transformers, write_text
from longstream.train.settings import DEFAULT_STEPS, DataSettings, Settings, flatten, setting_fields, to_toml
from longstream.train.tokenizer import learned_size, load_tokenizer, make_tokenizer
from longstream.train.trainer import PROGRESS, SCHEDULE_POINTS, OnTrainBegin, Trainer

logger = logging.getLogger("longstream")

ENDLESS = 10**9  # steps of a run that only time ends


@dataclass(frozen=True)
class RunResult:
    """What came of a call of `train`."""

    run: Path
    step: int
    trained: bool = True  # False: the run was finished before
    interrupted_by: int = 0  # signal number
    evaluation: Evaluation | None = None  # the last one of this session


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

    train_documents, validation = read_data(settings.data)
    # A resumed run takes its own: the file it came from may have changed since.
    tokenizer = load_tokenizer(checkpoint) if checkpoint else make_tokenizer(settings.data.tokenizer, train_documents)
    stream = token_stream(train_documents, tokenizer)
    sequences = windows(stream, settings.data.seq_len)
    facts = _facts(train_documents, validation, len(sequences), processes)
    if resume:
        _refuse_other_data(run, facts)
    torch.manual_seed(settings.train.seed)
    sizes = {"vocab_size": tokenizer.vocab_size, "boundary_id": tokenizer.boundary_id, "seq_len": settings.data.seq_len}
    model = build_model(settings.model, **sizes)

    total = settings.train.steps or (None if settings.train.minutes else DEFAULT_STEPS)
    clock = RunClock(total, settings.train.minutes)
    length = (total or ENDLESS) * settings.train.batch_size * settings.train.gradient_accumulation * processes
    trainer = Trainer(
        settings=settings,
        run=run,
        clock=clock,
        tokenizer=tokenizer,
        validation=validation,
        model=model,
        args=_arguments(settings, run, total, bool(validation)),
        train_dataset=ShuffledWindows(sequences, length, settings.train.seed),
        eval_dataset=validation,
        data_collator=Collator(tokenizer.boundary_id),
        callbacks=[clock],
    )
    log = RunLog(run, clock, stream, trainer)
    line = ProgressLine(clock, log)
    if rank == 0:
        trainer.add_callback(log)
        trainer.add_callback(line)
    trainer.add_callback(OnTrainBegin(trainer))
    if rank == 0:  # not before everything is ready: this deletes an earlier run
        if resume:
            write_text(run.settings, to_toml(settings))
        else:
            run.create(settings, facts)
        network = f"{settings.model.name} of {model.num_parameters():,} parameters"
        if settings.model.params:
            network += f", {model.config.hidden_size} wide, {model.config.num_hidden_layers} layers"
        logger.info("%s; %s", network, _summary(settings, facts))
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
    return RunResult(
        run.path,
        trainer.state.global_step,
        interrupted_by=clock.interrupted_by,
        evaluation=trainer.last_evaluation,
    )


def _with_absolute_paths(settings: Settings) -> Settings:
    """So that a run can be resumed from anywhere."""
    data = settings.data
    files = tuple(name if name == "builtin" else os.path.abspath(name) for name in data.files)
    is_file = data.tokenizer != "bytes" and not learned_size(data.tokenizer)
    tokenizer = os.path.abspath(data.tokenizer) if is_file else data.tokenizer
    return replace(settings, data=replace(data, files=files, tokenizer=tokenizer))


def read_data(data: DataSettings) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and documents held out from the end: a fraction of all, but not too many bytes."""
    documents = read_documents(data.files)
    size = sum(len(document.data) for document in documents)
    if data.tokenizer == "bytes" and size < data.seq_len:
        raise ValueError(f"{size} bytes of data are fewer than one sequence of seq_len={data.seq_len}; give more text")
    fraction = min(data.validation_fraction, (data.validation_bytes or size) / size)
    return split(documents, fraction) if fraction else (documents, [])


def _arguments(settings: Settings, run: RunDirectory, total: int | None, has_validation: bool) -> TrainingArguments:
    train = settings.train
    points = SCHEDULE_POINTS if train.minutes else total or ENDLESS
    shapes = {
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": train.min_lr_ratio}),
        # 1-sqrt: the decay that Hägele et al. 2024 (arXiv:2405.18392) found best
        "wsd": (
            "warmup_stable_decay",
            {
                "num_decay_steps": round(train.decay_ratio * points),
                "min_lr_ratio": train.min_lr_ratio,
                "decay_type": "1-sqrt",
            },
        ),
    }
    scheduler, scheduler_kwargs = shapes[train.schedule]
    on_cpu = train.device == "cpu"
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=total or ENDLESS,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=scheduler_kwargs,
        warmup_steps=round(train.warmup_ratio * points),
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
        train_sampling_strategy="sequential",  # ShuffledWindows has shuffled
        remove_unused_columns=False,
    )


def data_digest(train: Sequence[Document], validation: Sequence[Document]) -> str:
    """The sha256 that a run's data.json knows its data by."""
    digest = hashlib.sha256()
    for part in (train, validation):
        for document in part:
            digest.update(len(document.data).to_bytes(8, "big") + document.data)
    return digest.hexdigest()


def _facts(train: Sequence[Document], validation: Sequence[Document], sequences: int, processes: int) -> dict[str, Any]:
    """What a resumed run must find unchanged."""
    return {
        "sha256": data_digest(train, validation),
        "training_bytes": sum(len(document.data) for document in train),
        "validation_bytes": sum(len(document.data) for document in validation),
        "documents": len(train) + len(validation),
        "sequences": sequences,
        "processes": processes,
    }


def _summary(settings: Settings, facts: dict[str, Any]) -> str:
    train = settings.train
    per_step = train.batch_size * train.gradient_accumulation * facts["processes"]
    return (
        f"{facts['training_bytes']:,} bytes to train on, {facts['validation_bytes']:,} held out;"
        f" {facts['sequences']:,} sequences of {settings.data.seq_len} tokens, {per_step} a step,"
        f" {max(1, facts['sequences'] // per_step):,} steps a pass"
    )


def _checkpoint_to_resume(run: RunDirectory, settings: Settings, processes: int) -> Path:
    before, now, known = flatten(run.read_settings()), flatten(settings), setting_fields()
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
    seconds = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))["seconds"]
    out_of_time = train.minutes > 0 and seconds >= 60 * train.minutes
    return out_of_time or (steps > 0 and checkpoint_step(checkpoint) >= steps)


def _refuse_other_data(run: RunDirectory, facts: dict[str, Any]) -> None:
    before = run.read_data()
    if before["sha256"] != facts["sha256"]:
        sizes = [f"{of['training_bytes']:,} + {of['validation_bytes']:,} bytes" for of in (before, facts)]
        raise ValueError(
            f"{run.path}: the data have changed since this run began ({sizes[0]} then, {sizes[1]} now); start a new run"
        )
