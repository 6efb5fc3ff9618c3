"""The Auto classes load ours for our types, whoever was there before, and say so once."""

import importlib
import logging

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

import longstream.hf as hf
from tests.hf.conftest import KINDS, load_with_info, tiny_model


class OtherConfig(PretrainedConfig):
    model_type = "hgrn2"


class AnotherConfig(PretrainedConfig):
    model_type = "hgrn"


class OtherModel(PreTrainedModel):
    """Another package's model under our model_type, with modules by fla's names."""

    config_class = OtherConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = nn.Module()
        self.model.lower_bounds = nn.Parameter(torch.rand(2, 4))
        self.model.layers = nn.ModuleList([nn.Module()])
        self.model.layers[0].attn_norm = nn.LayerNorm(4)
        self.model.layers[0].attn = nn.Module()
        self.model.layers[0].attn.q_conv1d = nn.Conv1d(4, 4, 3, groups=4, bias=False)
        self.post_init()


@pytest.fixture(autouse=True)
def _restore():
    yield
    hf.register()


@pytest.mark.parametrize(("other", "ours"), [(OtherConfig, hf.HGRN2Config), (AnotherConfig, hf.HGRNConfig)])
def test_takes_over_with_one_line(other, ours, caplog, tmp_path):
    name = ours.model_type
    AutoConfig.register(name, other, exist_ok=True)
    assert CONFIG_MAPPING[name] is other
    with caplog.at_level(logging.INFO):
        hf.register()
    (record,) = caplog.records
    assert f"'{name}'" in record.getMessage()
    assert other.__module__ in record.getMessage()
    ours(hidden_size=64, expand_ratio=16).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ours


def test_registering_again_is_silent(caplog):
    with caplog.at_level(logging.INFO):
        hf.register()
        importlib.reload(hf)
    assert caplog.records == []


def test_others_models_are_left_alone(tmp_path):
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    llama.save_pretrained(tmp_path)
    again, info = load_with_info(AutoModelForCausalLM, tmp_path)
    assert type(again) is LlamaForCausalLM
    assert not any(info.values())


def test_models_of_the_same_type_are_left_alone(tmp_path):
    model = OtherModel(OtherConfig())
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    again, info = load_with_info(OtherModel, tmp_path)
    assert not any(info.values())
    assert all(again.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())
    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_plans_name_modules(kind):
    model = tiny_model(kind)
    modules = {name.replace(".0", ".*") for name, _ in model.named_modules()}
    plan = {"model.embeddings", "model.backbone.layers.*", "model.backbone.norm", "lm_head"}
    assert set(model.fsdp_plan) == plan
    assert plan <= modules
    assert model._no_split_modules == {type(model.model.backbone.layers[0]).__name__}


@pytest.mark.parametrize(
    ("name", "given", "classes"),
    [
        ("hgrn2", {"hidden_size": 64, "expand_ratio": 16}, (hf.HGRN2Config, hf.HGRN2Model, hf.HGRN2ForCausalLM)),
        ("hgrn", {"hidden_size": 64}, (hf.HGRNConfig, hf.HGRNModel, hf.HGRNForCausalLM)),
        (
            "longstream",
            {"model": {"hidden_size": 64, "num_layers": 1, "vocab_size": 9, "mixer": {"type": "hyena"}}},
            (hf.LongstreamConfig, hf.LongstreamModel, hf.LongstreamForCausalLM),
        ),
    ],
)
def test_auto_classes(name, given, classes):
    config = AutoConfig.for_model(name, **given)
    found = type(config), type(AutoModel.from_config(config)), type(AutoModelForCausalLM.from_config(config))
    assert found == classes
    assert [cls.config_class for cls in classes[1:]] == [classes[0]] * 2


def test_model_type_is_checked_by_transformers():
    with pytest.raises(ValueError, match="model_type"):
        AutoConfig.register("hgrn3", hf.HGRN2Config)
