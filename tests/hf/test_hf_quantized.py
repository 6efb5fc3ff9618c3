"""torchao: int8 linear layers, made in place or by from_pretrained; Hyena's filters are left as they are."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, TorchAoConfig

from longstream.layers import HyenaFilter
from tests.hf.conftest import PEFT_WARNS, VOCAB, random_ids, tiny_model
from tests.numerics import assert_same

quantization: Any = pytest.importorskip("torchao.quantization")

IDS = random_ids(2, 9)
# int8 with one scale a row: 1/254 of a row's largest weight, about 1 % of a usual one.
NEAR = 0.1
# The same numbers in products of other sizes: where activations are rounded too, some round to a neighbor.
ROUNDED = 0.01
CONFIGS = {
    "weights": quantization.Int8WeightOnlyConfig,
    "weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]()


def linears(model, quantized):
    """Names of the linear layers whose weights are int8, or are not."""
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (type(module.weight.data) is not torch.Tensor) == quantized
    }


def in_filters(model):
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, HyenaFilter)
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    }


def apart(got, expected):
    return float((got - expected).norm() / expected.norm())


def load_int8(directory, config):
    options: dict[str, Any] = {"quantization_config": TorchAoConfig(config), "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def check_runs(quantized, model):
    """Forward near the model's own, its state goes on, and it generates what it says."""
    with torch.no_grad():
        expected, out = model(IDS).logits, quantized(IDS)
        assert 0 < apart(out.logits, expected) < NEAR
        token = random_ids(2, 1, seed=8)
        whole = quantized(torch.cat([IDS, token], 1)).logits[:, -1:]
        assert apart(quantized(token, past_key_values=out.past_key_values).logits, whole) < ROUNDED
        options: dict[str, Any] = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "pad_token_id": 0}
        ids = quantized.generate(IDS, do_sample=False, **options)
        scores = quantized(ids).logits[:, 8:-1, :VOCAB]
        lost = scores.max(-1).values - scores.gather(-1, ids[:, 9:, None]).squeeze(-1)
        assert (lost <= ROUNDED * scores.abs().max()).all()


def test_in_place(model, config):
    model = model.float()
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, config)
    assert linears(quantized, False) == in_filters(model)
    assert linears(quantized, True) == linears(model, False) - in_filters(model)
    check_runs(quantized, model)


def test_from_pretrained_and_back(model, config, tmp_path):
    model = model.float()
    model.save_pretrained(tmp_path / "whole")
    quantized = load_int8(tmp_path / "whole", config)
    assert linears(quantized, False) == in_filters(model) | {"lm_head"}
    check_runs(quantized, model)
    quantized.save_pretrained(tmp_path / "int8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert linears(again, True) == linears(quantized, True)
    with torch.no_grad():
        assert apart(again(IDS).logits, quantized(IDS).logits) < ROUNDED


@PEFT_WARNS
def test_lora_on_int8_weights(model, tmp_path):
    """What does not fit in memory is trained so: int8 weights that stay, and adapters beside them."""
    peft: Any = pytest.importorskip("peft")
    model.float().save_pretrained(tmp_path)
    quantized = load_int8(tmp_path, CONFIGS["weights"]())
    lora = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(quantized, lora).train()
    out = adapted(IDS, labels=IDS)
    out.loss.backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        assert 0 < apart(adapted.eval().merge_and_unload()(IDS).logits, out.logits.detach()) < NEAR  # rounded once more


@pytest.mark.parametrize("kind", ["hyena", "mixture"])
def test_filters_quantized_on_purpose(kind, config):
    """torchao does it where it is told to; what is kept of the taps is then compared part by part."""
    model = tiny_model(kind).float()
    filters = [module for module in model.modules() if isinstance(module, HyenaFilter)]
    quantization.quantize_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear))
    with torch.no_grad():
        out = model(IDS)
        token = random_ids(2, 1, seed=8)
        whole = model(torch.cat([IDS, token], 1)).logits[:, -1:]
        assert apart(model(token, past_key_values=out.past_key_values).logits, whole) < ROUNDED
        assert_same("again", model(IDS).logits, out.logits, 0)
        for filter in filters:
            filter.out_proj = copy.deepcopy(filter.out_proj)
            weight: Any = filter.out_proj.weight
            weight.scale.mul_(2)
        assert apart(model(IDS).logits, out.logits) > 1e-3
