"""transformers' Trainer: it learns, resumes from what save_pretrained wrote, and counts tokens over several steps."""

from typing import Any

import pytest
import torch

from tests.hf.conftest import random_ids, tiny_config
from tests.numerics import assert_same

pytest.importorskip("accelerate")
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments


def train(tmp_path, steps, resume=None, kind="hgrn2", **options: Any):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind)).double()
    rows = random_ids(16, 9)
    data: Any = [{"input_ids": row, "labels": row.masked_fill(row == 0, -100)} for row in rows]
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 1,
    } | options
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            seed=1,
            **arguments,
        ),
        train_dataset=data,
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses


CHECKPOINTED = {"lr_scheduler_type": "constant", "activation_checkpointing": True}


@pytest.mark.parametrize("options", [{}, {"kind": "hgrn hybrid"} | CHECKPOINTED, {"kind": "hyena"} | CHECKPOINTED])
def test_resumes_where_it_stopped(tmp_path, options):
    whole, losses = train(tmp_path / "whole", 6, **options)
    assert losses[-1] < losses[0]
    resumed, later = train(tmp_path / "whole", 6, resume=str(tmp_path / "whole" / "checkpoint-3"), **options)
    assert_same("losses", torch.tensor(later[-3:]), torch.tensor(losses[3:]))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert_same(name, b, a)


def test_evaluates_and_predicts(tmp_path):
    model, _ = train(tmp_path, 1)
    rows = random_ids(6, 9)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    out: Any = Trainer(model=model, args=arguments).predict(data)
    with torch.no_grad():
        expected = model.eval()(rows, labels=rows)
    assert_same("loss", torch.tensor(out.metrics["test_loss"]), expected.loss, 1e-7)  # Trainer keeps it in float32
    assert_same("logits", out.predictions, expected.logits)


def test_accumulated_steps_are_one_batch(tmp_path):
    whole, _ = train(tmp_path / "whole", 2, per_device_train_batch_size=8)
    pieces, _ = train(tmp_path / "pieces", 2, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for (name, a), b in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert_same(name, b, a)
