"""An fla checkpoint gives fla's numbers, and is saved as it came."""

import json
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from longstream.hf import HGRN2Config, HGRN2ForCausalLM, HGRN2Model, to_fla
from tests.numerics import SAME_AS_GOLDEN, assert_same


def load(golden) -> Any:
    model = AutoModelForCausalLM.from_pretrained(golden.directory, dtype=torch.float64)
    assert type(model) is HGRN2ForCausalLM
    return model


def test_logits_loss_and_hidden_states(golden):
    model, a = load(golden), golden.arrays
    out = model(a["input_ids"], labels=a["input_ids"], output_hidden_states=True)
    assert_same("logits", out.logits, a["logits"], SAME_AS_GOLDEN)
    assert_same("loss", out.loss, a["loss"], SAME_AS_GOLDEN)
    assert len(out.hidden_states) == golden.config["num_hidden_layers"] + 1
    for n, hidden in enumerate(out.hidden_states):
        assert_same(f"hidden.{n}", hidden, a[f"hidden.{n}"], SAME_AS_GOLDEN)
    for n, layer in enumerate(out.past_key_values.state.layers):
        assert_same(f"state.{n}", layer.S.mT, a[f"state.{n}"], SAME_AS_GOLDEN)  # fla's is value first


def test_gradients(golden):
    model = load(golden)
    model.train()
    model(golden.arrays["input_ids"], labels=golden.arrays["input_ids"]).loss.backward()
    grads = to_fla({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads.keys() == golden.grads.keys()
    for name, grad in grads.items():
        assert_same(name, grad, golden.grads[name], SAME_AS_GOLDEN)


def test_left_padded_logits(golden):
    model, mask = load(golden), golden.arrays["attention_mask_leftpad"]
    logits = model(golden.arrays["input_ids"], attention_mask=mask).logits
    assert_same("logits", logits * mask[..., None], golden.arrays["logits_leftpad"], SAME_AS_GOLDEN)


def test_greedy_tokens(golden):
    model, expected = load(golden), golden.arrays["generated_greedy_from12"]
    prompt = golden.arrays["input_ids"][:, :12]
    options = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert model.generate(prompt, max_new_tokens=16, **options).equal(expected)


def test_saved_as_it_came(golden, tmp_path):
    model = load(golden)
    model.save_pretrained(tmp_path / "ours")
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert saved.keys() == golden.weights.keys()
    for name, tensor in saved.items():
        assert tensor.equal(golden.weights[name]), name
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    known_to_fla = set(golden.config) | {"dtype", "architectures"}
    assert set(config) <= known_to_fla
    fields = set(config) - {"dtype", "architectures", "transformers_version"}
    assert {key: config[key] for key in fields} == {key: golden.config[key] for key in fields}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    ids = golden.arrays["input_ids"]
    assert_same("outputs", again(ids).logits, model(ids).logits)


def test_auto_classes(golden):
    config = AutoConfig.from_pretrained(golden.directory)
    assert type(config) is HGRN2Config
    base = AutoModel.from_pretrained(golden.directory, dtype=torch.float64)
    assert type(base) is HGRN2Model
    y = base(golden.arrays["input_ids"]).last_hidden_state
    last = golden.config["num_hidden_layers"]
    assert_same("last hidden state", y, golden.arrays[f"hidden.{last}"], SAME_AS_GOLDEN)
    assert type(AutoModelForCausalLM.from_config(config)) is HGRN2ForCausalLM
