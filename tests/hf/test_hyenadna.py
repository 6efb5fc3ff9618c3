"""HyenaDNA's checkpoints in the Auto classes, against numbers made by the authors' code."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from longstream.hf import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAModel,
    to_hyenadna,
)
from longstream.hf.convert_hyenadna import from_hyenadna, from_ours, rows, to_ours
from tests.golden_hyenadna import FILTER, golden_port, load, write


@pytest.fixture
def port(tmp_path):
    return golden_port(tmp_path)


def test_golden_numbers(port):
    model = load(port.directory)
    assert type(model) is HyenaDNAForCausalLM
    ids = port.arrays["in.ids"]
    out = model(ids, labels=ids)
    assert (out.logits - port.arrays["out.logits_tied"]).abs().max() < 1e-12
    assert abs(out.loss - port.arrays["out.loss"]) < 1e-12
    assert not any("z" in name or "positions" in name for name, _ in model.named_parameters())


def test_golden_gradients(port):
    model = load(write(port.directory, port.config | {"tie_word_embeddings": True}, port.weights))
    ids = port.arrays["in.ids"]
    model(ids, labels=ids).loss.backward()
    mine = to_hyenadna({name: p.grad for name, p in model.named_parameters()}, model.config)
    expected = {f"hyena.{name[7:]}": x for name, x in port.arrays.items() if name.startswith("grad.w.") and x.numel()}
    assert set(mine) == set(expected)
    for name, grad in expected.items():
        assert (mine[name] - grad).abs().max() < 1e-10, name


@pytest.mark.parametrize("tied", [False, True])
def test_saves_back_the_same_file(port, tmp_path, tied):
    config = port.config | {"tie_word_embeddings": tied}
    load(write(port.directory, config, port.weights)).save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    expected = {name: x for name, x in port.weights.items() if not (tied and name == "lm_head.weight")}
    assert set(saved) == set(expected)
    assert all(torch.equal(saved[name], x) for name, x in expected.items())
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    for key, value in config.items():
        if key not in ("_name_or_path", "torch_dtype", "transformers_version", "auto_map"):
            assert written[key] == value, key
    ids = port.arrays["in.ids"]
    assert (load(tmp_path / "again")(ids).logits - load(port.directory)(ids).logits).abs().max() < 1e-12


def test_a_new_model_saves_the_same_names(port, tmp_path):
    config = AutoConfig.from_pretrained(port.directory)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "new")
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert {name: tuple(x.shape) for name, x in saved.items()} == {
        name: tuple(x.shape) for name, x in port.weights.items()
    }


@pytest.mark.parametrize("copies", [(3,), (5,), (1, 3, 5)])
def test_frequencies_are_one_tensor_by_any_of_its_names(port, copies):
    weights = {name: x for name, x in port.weights.items() if not name.endswith(".freq")}
    for layer in range(2):
        freq = port.weights[FILTER.format(layer) + "implicit_filter.1.freq"]
        weights |= {f"{FILTER.format(layer)}implicit_filter.{copy}.freq": freq.clone() for copy in copies}
    model = load(write(port.directory, port.config, weights))
    assert (model(port.arrays["in.ids"]).logits - port.arrays["out.logits_tied"]).abs().max() < 1e-12


def test_frequencies_that_differ_are_refused(port):
    odd = FILTER.format(1) + "implicit_filter.3.freq"
    weights = port.weights | {odd: port.weights[odd.replace("3.freq", "1.freq")] + 1}
    with pytest.raises(ValueError, match=r"must be equal in the file, got different hyena.*1\.filter.*|1\.freq"):
        load(write(port.directory, port.config, weights))
    with pytest.raises(ValueError, match=r"1\.freq and .*3\.freq must be equal"):
        from_hyenadna(weights, HyenaDNAConfig(**port.config))


def test_positions_and_windows_are_computed_where_missing(port, tmp_path):
    derived = ("pos_emb.z", "pos_emb.t", "modulation.deltas")
    weights = {name: x for name, x in port.weights.items() if not name.endswith(derived)}
    model = load(write(port.directory, port.config, weights))
    assert (model(port.arrays["in.ids"]).logits - port.arrays["out.logits_tied"]).abs().max() < 1e-5  # theirs: float32
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert set(saved) == set(port.weights)
    for name in port.weights:
        bound = 2e-6 if name.endswith(derived) else 0.0
        assert (saved[name] - port.weights[name]).abs().max() <= bound, name


def test_all_that_does_not_fit_is_named_at_once_as_in_the_file(port):
    first, second = FILTER.format(0), FILTER.format(1)
    missing = {second + "implicit_filter.2.weight", "hyena.backbone.layers.0.norm1.bias"}
    spare = {"extra": torch.ones(2), "hyena.backbone.layers.7.norm1.bias": torch.ones(32)}
    misshapen = {
        first + "pos_emb.z": torch.ones(1, 64, 5),
        first + "implicit_filter.0.weight": torch.ones(16, 7),
        "hyena.backbone.layers.1.mixer.short_filter.weight": torch.ones(96, 1, 5),
    }
    weights = {name: x for name, x in port.weights.items() if name not in missing} | spare | misshapen
    with pytest.raises(ValueError, match="do not fit") as error:
        load(write(port.directory, port.config, weights))
    for name in (*missing, *spare, *misshapen):
        assert name in str(error.value), name
    assert "\n" not in str(error.value)


def test_a_language_model_needs_its_head(port):
    lacking = {key: x for key, x in port.weights.items() if key != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"lm_head\.weight"):  # the file is of a language model, and not tied
        load(write(port.directory, port.config, lacking))


def test_the_base_model_of_a_language_model_and_back(port, tmp_path, caplog):
    base = load(port.directory, AutoModel)
    assert type(base) is HyenaDNAModel
    out = base(port.arrays["in.ids"]).last_hidden_state
    assert (out - port.arrays["out.hidden"]).abs().max() < 1e-12
    base.save_pretrained(tmp_path / "base")
    names = set(load_file(tmp_path / "base" / "model.safetensors"))
    assert names == {name.removeprefix("hyena.") for name in port.weights if name != "lm_head.weight"}
    again = load(tmp_path / "base", AutoModel)
    assert (again(port.arrays["in.ids"]).last_hidden_state - out).abs().max() < 1e-12
    with caplog.at_level(logging.WARNING):
        whole = load(tmp_path / "base")
    assert "lm_head.weight is new and untrained" in caplog.text
    assert (whole.model(port.arrays["in.ids"]).last_hidden_state - out).abs().max() < 1e-12


def test_state_dicts_of_either_form_load(port):
    model = load(port.directory)
    ids = port.arrays["in.ids"]
    before = model(ids).logits
    blank = HyenaDNAForCausalLM(model.config).double().eval()
    for state_dict in (model.state_dict(), to_hyenadna(model.state_dict(), model.config), port.weights):
        blank.apply(blank._init_weights)
        blank.load_state_dict(state_dict)
        assert (blank(ids).logits - before).abs().max() < 1e-12


def test_generates_what_the_whole_text_says(port):
    model = load(port.directory)
    prompt = port.arrays["in.ids"][:, :20]
    prompt = torch.where(prompt == 4, 5, prompt)  # no pads
    texts = model.generate(prompt, max_new_tokens=12, do_sample=False)
    ids = prompt
    for _ in range(12):
        ids = torch.cat([ids, model(ids).logits[:, -1:, :12].argmax(-1)], dim=1)
    assert torch.equal(texts, ids)
    assert texts.max() < 12
    with pytest.raises(ValueError, match="66"):
        model.generate(prompt, max_new_tokens=60)


def test_frequencies_that_are_not_trained_are_no_part_of_the_file(port, tmp_path):
    weights = {name: x for name, x in port.weights.items() if not name.endswith(".freq")}
    model = load(write(port.directory, port.config | {"train_freq": False}, weights))
    frequencies = {name: p for name, p in model.named_parameters() if name.endswith("frequency")}
    assert len(frequencies) == 2
    assert all((p == 10).all() and not p.requires_grad for p in frequencies.values())
    model.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(weights)


@pytest.mark.parametrize("inner", [0, 1, 2, 3])
def test_the_table_is_one_to_one_but_for_frequencies(inner):
    config = HyenaDNAConfig(d_model=8, n_layer=2, max_seq_len=9, filter_order=4, emb_dim=5, num_inner_mlps=inner)
    ours = set(HyenaDNAForCausalLM(config).state_dict())
    theirs = [name for mine in ours for name in from_ours(mine, config)]
    assert len(theirs) == len(set(theirs)) == len(ours) + inner * config.n_layer
    assert {to_ours(name, config) for name in theirs} == ours
    assert len(dict(rows(config))) == len(rows(config))


def test_the_authors_own_names_are_read(port):
    config = HyenaDNAConfig(**port.config)
    for name, ours in {
        "model.backbone.layers.11.mixer.layer.in_proj.weight": "model.backbone.layers.11.mixer.in_proj.weight",
        "model.backbone.layers.0.mlp.layer.fc1.bias": "model.backbone.layers.0.mlp.up_proj.bias",
        "model.backbone.ln_f.weight": "model.backbone.norm.weight",
        "model.lm_head.weight": "lm_head.weight",
        "backbone.layers.1.mixer.filter_fn.implicit_filter.5.freq": "backbone.layers.1.mixer.filter.frequency",
    }.items():
        assert to_ours(name, config) == ours
    for name in ("model.backbone.layers.0.mixer.layer", "hyena.backbone.layers.0.mixer.q_proj.weight", "freq"):
        with pytest.raises(KeyError):
            to_ours(name, config)
    with pytest.raises(KeyError):
        from_ours("model.backbone.layers.0.mixer.forget_proj.weight", config)


def test_the_authors_own_configuration(port):
    config = HyenaDNAConfig.from_authors(port.authors)
    assert config.to_model_config() == HyenaDNAConfig(**(port.config | {"tie_word_embeddings": True})).to_model_config()
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (32, 2, 66)
    with pytest.raises(ValueError, match="must have a 'layer'"):
        HyenaDNAConfig.from_authors({"d_model": 32})
    other = port.authors["layer"] | {"modulate": False, "bidirectional": True, "num_heads": 1}
    with pytest.raises(
        ValueError, match=r"got attn_layer_idx \[1\]; layer.modulate False, .*; layer.bidirectional True"
    ):
        HyenaDNAConfig.from_authors(port.authors | {"layer": other, "attn_layer_idx": [1]})
    with pytest.raises(ValueError, match="odd"):
        HyenaDNAConfig(emb_dim=4)


def test_a_padded_vocabulary_takes_no_id_of_its_padding(port):
    model = load(port.directory)
    assert model.get_input_embeddings().weight.shape == (16, 32)
    with pytest.raises(ValueError, match=r"\[0, 12\), got 12"):
        model(torch.full((1, 3), 12))
    assert model(port.arrays["in.ids"], vocabulary_only=True).logits.shape[-1] == 12


def test_resized_embeddings_keep_their_padding(port, tmp_path):
    model = load(port.directory)
    model.resize_token_embeddings(21)
    assert model.config.vocab_size == 21
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (24, 32)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    ids = torch.full((1, 3), 20)
    assert (again(ids).logits - model(ids).logits).abs().max() < 1e-12
