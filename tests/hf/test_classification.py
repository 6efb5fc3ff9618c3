"""The classifiers on HGRN, HGRN2 and longstream's own models."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments

from longstream.hf import (
    HGRN2ForSequenceClassification,
    HGRNForSequenceClassification,
    LongstreamConfig,
    LongstreamForSequenceClassification,
)
from longstream.models import HGRN2Config as HGRN2MixerConfig
from longstream.models import ModelConfig
from tests.hf.conftest import left_padded, random_ids, tiny_config, tiny_model

CLASSES = {
    "hgrn2": HGRN2ForSequenceClassification,
    "hgrn": HGRNForSequenceClassification,
    "hgrn2 hybrid": HGRN2ForSequenceClassification,
    "mixture": LongstreamForSequenceClassification,
}


def classifier(kind, **fields):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(kind, **fields)).double().eval()
    assert type(model) is CLASSES[kind]
    return model


@pytest.mark.parametrize("kind", CLASSES)
def test_pads_change_nothing(kind):
    model = classifier(kind)
    texts = [random_ids(n, seed=n).tolist() for n in (7, 1, 4)]
    single = torch.cat([model(torch.tensor([text])).logits for text in texts])
    ids, mask = left_padded(texts)
    assert torch.allclose(model(ids, mask).logits, single, atol=1e-12)
    right = torch.stack([row.roll(-int((m == 0).sum())) for row, m in zip(ids, mask, strict=True)])
    assert torch.allclose(model(right, mask.flip(1)).logits, single, atol=1e-12)
    embeds = model.get_input_embeddings()(ids)
    assert torch.allclose(model(inputs_embeds=embeds, attention_mask=mask).logits, single, atol=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
def test_saves_and_loads(kind, tmp_path):
    model = classifier(kind)
    model.save_pretrained(tmp_path)
    assert "score.weight" in load_file(tmp_path / "model.safetensors")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again) is CLASSES[kind]
    ids = random_ids(2, 9)
    assert torch.allclose(again.eval()(ids).logits, model(ids).logits, atol=1e-12)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_language_model_gets_a_new_head(kind, tmp_path, caplog):
    language_model = tiny_model(kind)
    language_model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64, num_labels=3).eval()
    assert "score.weight is new and untrained" in caplog.text
    ids = random_ids(2, 9)
    hidden = language_model.model(ids).last_hidden_state
    assert torch.allclose(model(ids).logits, hidden[:, -1] @ model.score.weight.T, atol=1e-12)
    model.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "classifier")


def test_takes_a_mixer_that_looks_both_ways():
    mixer = HGRN2MixerConfig(expand_ratio=4, direction="bidirectional")
    config = ModelConfig(hidden_size=8, num_layers=1, mixer=mixer, vocab_size=5, intermediate_size=8)
    model = (
        LongstreamForSequenceClassification(LongstreamConfig.from_model_config(config, num_labels=3)).double().eval()
    )
    texts = [[1, 2, 3], [4]]
    ids, mask = left_padded(texts)
    single = torch.cat([model(torch.tensor([text])).logits for text in texts])
    assert torch.allclose(model(ids, mask).logits, single, atol=1e-12)


def test_losses_follow_the_labels():
    model = classifier("hgrn2", num_labels=1)
    ids = random_ids(2, 5)
    out = model(ids, labels=torch.tensor([1.0, -2.0], dtype=torch.float64))
    assert torch.allclose(out.loss, ((out.logits[:, 0] - torch.tensor([1.0, -2.0])) ** 2).mean())
    model = classifier("hgrn2", num_labels=3, problem_type="multi_label_classification")
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]], dtype=torch.float64)
    out = model(ids, labels=labels)
    assert torch.allclose(out.loss, torch.nn.functional.binary_cross_entropy_with_logits(out.logits, labels))


def test_a_prompt_in_two_calls():
    model = classifier("hgrn2")
    ids = random_ids(2, 9)
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:], past_key_values=first.past_key_values)
    assert torch.allclose(second.logits, model(ids).logits, atol=1e-12)
    assert model(ids).past_key_values is None


def test_refuses_rows_without_a_token():
    model = classifier("hgrn2")
    with pytest.raises(ValueError, match="only pads in row 1"):
        model(random_ids(2, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="rows of length 0"):
        model(torch.zeros(1, 0, dtype=torch.long))


def test_trains_in_the_trainer(tmp_path):
    model = classifier("hgrn2", num_labels=2).float()
    texts = [{"input_ids": random_ids(6, seed=n), "labels": n % 2} for n in range(8)]
    for text in texts:
        text["input_ids"][-1] = text["labels"]  # the last token says which class it is
    arguments = TrainingArguments(
        tmp_path, max_steps=25, per_device_train_batch_size=8, learning_rate=3e-2, report_to=[], use_cpu=True, seed=0
    )
    trainer = Trainer(model, arguments, train_dataset=texts)  # type: ignore[arg-type]
    trainer.train()
    assert trainer.evaluate(texts)["eval_loss"] < 0.1  # type: ignore[arg-type]
