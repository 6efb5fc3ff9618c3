"""Checkpoints that do not fit their model, and names that lead nowhere: one error that says everything."""

import logging

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from longstream.hf import HGRN2Model, to_fla
from longstream.hf._misfits import describe_misfits
from tests.hf.conftest import KINDS, random_ids, tiny_config, tiny_model, write_fla
from tests.numerics import assert_same


@pytest.fixture
def model():
    """Of one kind: what is said does not depend on it."""
    return tiny_model()


@pytest.fixture
def transformers_log(caplog):
    """transformers' own records, which do not propagate to the root logger."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_missing_tensors_are_an_error(tmp_path, model):
    weights = to_fla(model.state_dict(), model.config)
    for name in ("model.layers.1.attn.f_proj.weight", "model.lower_bounds"):
        del weights[name]
    directory = write_fla(tmp_path / "cut", model.config.to_diff_dict(), weights)
    with pytest.raises(
        ValueError,
        match=r"HGRN2ForCausalLM.from_pretrained: .*2 missing: model.layers.1.attn.f_proj.weight, model.lower_bounds$",
    ):
        AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("name", ["model.layers.0.attn.g_proj.weight", "model.extra", "score.weight"])
def test_spare_tensors_are_an_error(tmp_path, model, name):
    weights = to_fla(model.state_dict(), model.config) | {name: torch.ones(3, 3)}
    directory = write_fla(tmp_path / "more", model.config.to_diff_dict(), weights)
    with pytest.raises(ValueError, match=f"got tensors that do not fit, 1 spare: {name}$"):
        AutoModelForCausalLM.from_pretrained(directory)


def test_heads_are_not_spare_without_a_head(tmp_path, model):
    weights = to_fla(model.state_dict(), model.config) | {"score.weight": torch.ones(3, 24)}
    directory = write_fla(tmp_path / "heads", model.config.to_diff_dict(), weights)
    ids = random_ids(2, 5)
    y = AutoModel.from_pretrained(directory, dtype=torch.float64)(ids).last_hidden_state
    assert_same("y", y, model.model(ids).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_does_not_fit_is_named_at_once(tmp_path, kind):
    model = tiny_model(kind)
    weights = to_fla(model.state_dict(), model.config)
    lost = [name for name in weights if name.endswith("up_proj.weight")] + ["model.embeddings.weight"]
    wrong = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    shape = tuple(weights[wrong].shape)
    weights = {name: tensor for name, tensor in weights.items() if name not in lost}
    weights |= {wrong: weights[wrong].T, "model.what.is.it": torch.ones(2), "model.layers.1.attn.x": torch.ones(2)}
    directory = write_fla(tmp_path / "bad", {"model_type": model.config.model_type}, weights)
    model.config.save_pretrained(directory)
    with pytest.raises(ValueError, match="tensors that do not fit") as error:
        AutoModelForCausalLM.from_pretrained(directory)
    last = len(model.model.backbone.layers) - 1
    layers = "backbone.layers" if model.config.model_type == "longstream" else "layers"
    words = str(error.value).partition("that do not fit, ")[2].split("; ")
    grouped = sorted(["model.embeddings.weight", f"model.{layers}.{{0-{last}}}.mlp.up_proj.weight"])
    assert words[0] == f"{len(lost)} missing: {', '.join(grouped)}"
    assert words[1] == "2 spare: model.layers.1.attn.x, model.what.is.it"
    assert words[2] == f"1 misshapen: {wrong} {shape[::-1]}, not {shape}"
    assert len(words) == 3


def test_wrong_shapes_are_an_error_unless_allowed(tmp_path, model, transformers_log):
    weights = to_fla(model.state_dict(), model.config)
    weights["model.layers.0.attn.q_conv1d.weight"] = torch.ones(24, 1, 4)
    directory = write_fla(tmp_path / "wrong", model.config.to_diff_dict(), weights)
    with pytest.raises(ValueError, match=r"1 misshapen: model.layers.0.attn.q_conv1d.weight \(24, 4\), not \(24, 3\)$"):
        AutoModelForCausalLM.from_pretrained(directory)
    other = AutoModelForCausalLM.from_pretrained(directory, ignore_mismatched_sizes=True, dtype=torch.float64)
    assert_same("another", other.lm_head.weight, model.lm_head.weight)
    assert "q_conv.weight" in transformers_log.text


def test_names_of_many_layers_are_one():
    names = [f"layers.{n}.a" for n in (0, 1, 2, 5, 7, 8, 10, 11)] + ["layers.3.b", "c"]
    words = describe_misfits(missing=names, spare=(), misshapen=["layers.4.a (1,), not (2,)"])
    assert words == ("10 missing: c, layers.3.b, layers.{0-2,5,7-8,10-11}.a; 1 misshapen: layers.4.a (1,), not (2,)")
    assert describe_misfits(missing=()) == ""


@pytest.mark.parametrize("path", ["fla-hub/hgrn2-1.3B", "./nowhere", "a/b/c"])
def test_a_name_without_a_network_names_what_to_do(path):
    """conftest.py has switched the hub off."""
    with pytest.raises(OSError, match=f"HGRN2Model.from_pretrained: {path}: there is no such folder here") as error:
        HGRN2Model.from_pretrained(path)
    assert f"hf download {path} --local-dir FOLDER" in str(error.value)
    assert "\n" not in str(error.value)
    if path == "fla-hub/hgrn2-1.3B":
        assert "couldn't connect" in str(error.value)


def test_another_models_tensors_are_an_error(tmp_path):
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=19, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4)
    )
    directory = write_fla(tmp_path / "llama", tiny_config().to_diff_dict(), llama.state_dict())
    with pytest.raises(ValueError, match=r"expected a whole HGRN2ForCausalLM, .*\d+ missing: .*; \d+ spare: "):
        AutoModelForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("kept", [0, 6, 200, -1])
def test_truncated_file(tmp_path, model, kept):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"from_pretrained: .*cut short or damaged"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_missing_shard_and_broken_configuration(tmp_path, model):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = next(tmp_path.glob("model-*-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "hgr')
    with pytest.raises(OSError, match=r"config.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
