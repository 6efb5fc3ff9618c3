"""An fla checkpoint gives fla's numbers, and is saved as it came; HyenaDNA's numbers under transformers."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import longstream.hf as hf
from longstream.hf import from_fla, to_fla
from longstream.models import HyenaConfig, ModelConfig
from tests import golden_hyena
from tests.golden_lm import language_model_case
from tests.numerics import SAME_AS_GOLDEN, assert_same

CLASSES = {
    "hgrn": (hf.HGRNConfig, hf.HGRNModel, hf.HGRNForCausalLM),
    "hgrn2": (hf.HGRN2Config, hf.HGRN2Model, hf.HGRN2ForCausalLM),
}


def load(golden) -> Any:
    model = AutoModelForCausalLM.from_pretrained(golden.directory, dtype=torch.float64)
    assert type(model) is CLASSES[golden.config["model_type"]][2]
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
        state = layer.S.mT if golden.config["model_type"] == "hgrn2" else layer.h  # fla's S is value first
        assert_same(f"state.{n}", state, a[f"state.{n}"], SAME_AS_GOLDEN)


def test_gradients(golden):
    model = load(golden)
    model.train()
    model(golden.arrays["input_ids"], labels=golden.arrays["input_ids"]).loss.backward()
    grads = to_fla({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model.config)
    assert grads.keys() == golden.grads.keys()
    for name, grad in grads.items():
        assert_same(name, grad, golden.grads[name], SAME_AS_GOLDEN)


def test_left_padded_logits(golden):
    model, mask = load(golden), golden.arrays["attention_mask_leftpad"]
    logits = model(golden.arrays["input_ids"], attention_mask=mask).logits
    assert_same("logits", logits * mask[..., None], golden.arrays["logits_leftpad"], SAME_AS_GOLDEN)


def test_prefill_and_decode(golden):
    model, ids = load(golden), golden.arrays["input_ids"]
    out = model(ids[:, :20])
    logits = [out.logits]
    for t in range(20, ids.shape[1]):
        logits.append(model(ids[:, t : t + 1], past_key_values=out.past_key_values).logits)
    assert_same("logits", torch.cat(logits, 1), golden.arrays["logits"], SAME_AS_GOLDEN)


def test_names_agree_with_a_table_written_apart(golden):
    model = load(golden)
    expected = {f"model.{name}": array for name, array in language_model_case(golden.name).params.items()}
    if "model.lm_head.weight" in expected:
        expected["lm_head.weight"] = expected.pop("model.lm_head.weight")
    ours = from_fla(golden.weights, model.config)
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        assert ours[name].equal(torch.from_numpy(array)), name
        assert model.state_dict()[name].equal(torch.from_numpy(array)), name


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
    config_class, model_class, causal_lm_class = CLASSES[golden.config["model_type"]]
    config = AutoConfig.from_pretrained(golden.directory)
    assert type(config) is config_class
    base = AutoModel.from_pretrained(golden.directory, dtype=torch.float64)
    assert type(base) is model_class
    y = base(golden.arrays["input_ids"]).last_hidden_state
    last = golden.config["num_hidden_layers"]
    assert_same("last hidden state", y, golden.arrays[f"hidden.{last}"], SAME_AS_GOLDEN)
    assert type(AutoModelForCausalLM.from_config(config)) is causal_lm_class


@pytest.mark.parametrize("name", golden_hyena.LANGUAGE_MODELS)
def test_hyena_dna(name):
    """Logits and loss over all classes, those that pad the vocabulary included, and every gradient."""
    a = golden_hyena.load(name)
    cfg = json.loads(str(a["_meta"]))["cfg"]
    mixer = HyenaConfig(**golden_hyena.config({"shift": 0.05} | cfg["layer"]))
    model_config = ModelConfig(
        **{"hidden_size": cfg["d_model"], "num_layers": cfg["n_layer"], "intermediate_size": cfg["d_inner"]},
        **{"mlp": "gelu", "norm": "layer", "norm_eps": 1e-5, "embed_dropout": cfg["embed_dropout"], "mixer": mixer},
        **{"vocab_size": cfg["vocab_size"], "vocab_multiple": cfg["pad_vocab_size_multiple"], "tie_embeddings": True},
    )
    model = AutoModelForCausalLM.from_config(hf.LongstreamConfig.from_model_config(model_config)).double().eval()
    assert type(model) is hf.LongstreamForCausalLM
    weights = {name: torch.from_numpy(array) for name, array in hyena_dna_names(golden_hyena.below(a, "w.")).items()}
    weights["lm_head.weight"] = weights["model.embeddings.weight"]
    model.load_state_dict(weights)
    ids = torch.from_numpy(a["in.ids"])
    out = model(ids, labels=ids)
    assert_same("logits", out.logits, a["out.logits_tied"], SAME_AS_GOLDEN)
    assert_same("loss", out.loss, a["out.loss"], SAME_AS_GOLDEN)
    out.loss.backward()
    grads = hyena_dna_names(golden_hyena.below(a, "grad.w."))
    assert grads.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert_same(name, parameter.grad, grads[name], SAME_AS_GOLDEN)


def hyena_dna_names(w):
    """HyenaDNA's tensors under our names."""
    renamed = {
        "model.embeddings.weight": w["backbone.embeddings.word_embeddings.weight"],
        **{f"model.backbone.norm.{kind}": w[f"backbone.ln_f.{kind}"] for kind in ("weight", "bias")},
    }
    parts = {"norm1": "mixer_norm", "norm2": "mlp_norm", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    for n in range(sum(name.endswith("norm1.weight") for name in w)):
        layer, ours = golden_hyena.below(w, f"backbone.layers.{n}."), f"model.backbone.layers.{n}."
        for part, word in parts.items():
            renamed |= {f"{ours}{word}.{kind}": layer[f"{part}.{kind}"] for kind in ("weight", "bias")}
        mixer = golden_hyena.params(golden_hyena.below(layer, "mixer."))
        renamed |= {f"{ours}mixer.{name}": array for name, array in mixer.items()}
    return renamed
