"""HyenaDNA's classifier: the published layout, the token that it looks at, and its head."""

import json
import logging
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

from longstream.hf import HyenaDNAForSequenceClassification
from tests.golden_hyenadna import golden_port, load, write
from tests.hf.conftest import PEFT_WARNS


@pytest.fixture
def port(tmp_path):
    return golden_port(tmp_path)


def as_classifier(port, labels=3):
    weights = {name: x for name, x in port.weights.items() if name != "lm_head.weight"}
    weights["score.weight"] = torch.randn(labels, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = {str(i): f"class {i}" for i in range(labels)}
    config = port.config | {"architectures": ["HyenaDNAForSequenceClassification"], "id2label": names}
    config |= {"label2id": {name: int(i) for i, name in names.items()}}
    return write(port.directory, config, weights), weights


def test_classifies_by_the_last_token_that_is_no_pad(port, tmp_path):
    directory, weights = as_classifier(port)
    model = load(directory, AutoModelForSequenceClassification)
    assert type(model) is HyenaDNAForSequenceClassification
    ids, hidden = port.arrays["in.ids"].clone(), port.arrays["out.hidden"]
    ids[ids == 4] = 5  # no pads
    whole = model(ids)
    hidden = load(directory, AutoModel)(ids).last_hidden_state
    assert (whole.logits - hidden[:, -1] @ weights["score.weight"].T).abs().max() < 1e-12
    assert whole.past_key_values is None
    lengths = [50, 31]
    right = torch.full_like(ids, 4)
    left, mask = right.clone(), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        right[row, :length] = left[row, 64 - length :] = ids[row, :length]
        mask[row, :length] = 1
    expected = torch.stack([hidden[row, length - 1] for row, length in enumerate(lengths)]) @ weights["score.weight"].T
    for got in (model(right), model(right, mask), model(left, mask.flip(1))):
        assert (got.logits - expected).abs().max() < 1e-10
    # Without a mask the model reads pads on the left, as upstream's does; it takes the last token all the same.
    read = load(directory, AutoModel)(left).last_hidden_state[:, -1] @ weights["score.weight"].T
    assert (model(left).logits - read).abs().max() < 1e-12
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert set(saved) == set(weights)
    assert all(torch.equal(saved[name], x) for name, x in weights.items())


def test_a_classifiers_losses_are_transformers(port):
    directory, _ = as_classifier(port)
    model = load(directory, AutoModelForSequenceClassification)
    ids, labels = port.arrays["in.ids"], torch.tensor([2, 0])
    out = model(ids, labels=labels)
    assert torch.allclose(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="only pads in row 1"):
        model(ids, torch.tensor([[1] * 64, [0] * 64]))
    with pytest.raises(TypeError, match="cu_seqlens must be None"):
        model(ids[:1], cu_seqlens=torch.tensor([0, 64]))


def test_a_classifier_on_a_language_model_has_a_new_head(port, caplog):
    with caplog.at_level(logging.WARNING):
        model = load(port.directory, AutoModelForSequenceClassification, num_labels=4)
    assert "has another head: score.weight is new and untrained" in caplog.text
    assert model(port.arrays["in.ids"]).logits.shape == (2, 4)
    directory, weights = as_classifier(port)
    del weights["score.weight"]
    with pytest.raises(ValueError, match=r"score\.weight"):
        load(write(directory, json.loads((directory / "config.json").read_text()), weights), type(model))


@PEFT_WARNS
def test_lora_with_a_new_head_trains_loads_and_merges(port, tmp_path):
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = load(port.directory, AutoModelForSequenceClassification, num_labels=2)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["in_proj", "up_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(model, lora)
    ids = port.arrays["in.ids"]
    tuned(ids, labels=torch.tensor([0, 1])).loss.backward()
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    kinds = ("mixer.in_proj.lora_A", "mixer.in_proj.lora_B", "mlp.up_proj.lora_A", "mlp.up_proj.lora_B")
    assert all(sum(kind in name for name in trained) == 2 for kind in kinds)  # both layers
    assert len([name for name in trained if ".score." in name]) == 1
    assert len(trained) == 9
    out = tuned.eval()(ids).logits
    tuned.save_pretrained(tmp_path / "adapter")
    fresh = load(port.directory, AutoModelForSequenceClassification, num_labels=2)
    assert torch.allclose(
        peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(ids).logits, out, atol=1e-6
    )
    assert torch.allclose(tuned.merge_and_unload()(ids).logits, out, atol=1e-6)
