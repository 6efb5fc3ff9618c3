"""PEFT: an adapter on every projection is used, learns, is saved, is merged, and can be switched off.

A kernel that read the weight of a wrapped layer would leave the adapter out and give the base model's outputs.
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.hf.conftest import PEFT_WARNS, has_hyena, random_ids
from tests.numerics import assert_same

peft: Any = pytest.importorskip("peft")

IDS = random_ids(2, 7)
# One or two projections of each mixer, and one of the MLP, as users name them.
NAMED = {"q_proj", "candidate_proj", "forget_proj", "in_proj", "down_proj"}
pytestmark = PEFT_WARNS


def on_backend(model, backend):
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend
    return model


def with_lora(model, target_modules: Any = "all-linear", **options: Any):
    """On a copy; init_lora_weights False makes both matrices random, so that the adapter changes the outputs."""
    torch.manual_seed(5)
    options = {"r": 2, "init_lora_weights": False} | options
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=target_modules, **options)).eval()


def adapters(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_B")}


def linears(model):
    """Every linear layer but the head."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_every_projection_is_adapted_and_merges(model, backend):
    base = on_backend(model, backend)
    adapted = with_lora(base)
    assert sorted(name.removeprefix("base_model.model.") for name in adapters(adapted)) == sorted(linears(base))
    with torch.no_grad():
        logits = adapted(IDS).logits
        merged = copy.deepcopy(adapted).merge_and_unload()
        assert_same("merged", merged(IDS).logits, logits, 1e-10)  # float64: sums of W x + B A x in another order
        for name, module in adapters(adapted).items():
            weight = module.lora_B["default"].weight
            kept, weight.data = weight.data, torch.zeros_like(weight)
            without = adapted(IDS).logits
            weight.data = kept
            assert (without - logits).abs().max() > 1e-6, f"{name} is passed by"
    adapted.train()(IDS, labels=IDS).loss.backward()
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, f"{name} has no gradient"


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_merges_in_float32(model, backend):
    adapted = with_lora(on_backend(model, backend).float())
    with torch.no_grad():
        logits = adapted(IDS).logits
        merged = adapted.merge_and_unload()(IDS).logits
    assert_same("merged", merged, logits, 1e-5)


def test_named_projections_learn_and_the_rest_stays(model):
    adapted = with_lora(model, [*NAMED], init_lora_weights=True).train()
    before = {name: p.detach().clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    assert {name.split(".")[-1] for name in adapters(adapted)} <= NAMED
    assert len(adapters(adapted)) >= 2 * len(model.model.backbone.layers)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(12):
        loss = adapted(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, parameter in adapted.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name


def test_saved_and_loaded(model, tmp_path):
    adapted = with_lora(model)
    with torch.no_grad():
        logits = adapted(IDS).logits
    model.save_pretrained(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter")
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    by_transformers.load_adapter(str(tmp_path / "adapter"))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    of_merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    with torch.no_grad():
        assert_same("again", again(IDS).logits, logits, 0)
        assert_same("by transformers", by_transformers(IDS).logits, logits, 0)
        assert_same("of the merged", of_merged(IDS).logits, merged(IDS).logits, 0)


def test_an_adapter_names_its_model(model, tmp_path):
    """AutoModelForCausalLM on the adapter's folder finds the model it was made for."""
    model.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    adapted = with_lora(base)
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float64)
    with torch.no_grad():
        assert_same("logits", again(IDS).logits, adapted(IDS).logits, 0)


@torch.no_grad()
def test_switched_off_and_on_between_tokens(model):
    """Hyena keeps the taps of its filters from call to call; a switch changes no tensor of theirs."""
    adapted = with_lora(model)
    merged = copy.deepcopy(adapted).merge_and_unload()
    caches = [each(IDS).past_key_values for each in (adapted, model, merged)]
    token = random_ids(2, 1, seed=8)
    for _ in range(2):
        on = adapted(token, past_key_values=copy.deepcopy(caches[0])).logits
        assert_same("on", on, merged(token, past_key_values=copy.deepcopy(caches[2])).logits, 1e-10)
        with adapted.disable_adapter():
            off = adapted(token, past_key_values=copy.deepcopy(caches[1])).logits
            whole = adapted(IDS).logits
        assert_same("off", off, model(token, past_key_values=copy.deepcopy(caches[1])).logits, 0)
        assert_same("off, whole", whole, model(IDS).logits, 0)


@torch.no_grad()
def test_two_adapters(model):
    adapted = with_lora(model)
    torch.manual_seed(9)
    adapted.add_adapter("other", peft.LoraConfig(target_modules="all-linear", r=3, init_lora_weights=False))
    first = adapted(IDS).logits
    adapted.set_adapter("other")
    second = adapted(IDS).logits
    assert (first - second).abs().max() > 1e-3
    cache = adapted(IDS).past_key_values
    token = random_ids(2, 1, seed=8)
    expected = adapted(torch.cat([IDS, token], 1)).logits[:, -1:]
    adapted.set_adapter("default")
    adapted(token, past_key_values=copy.deepcopy(cache))
    adapted.set_adapter("other")
    assert_same("a token", adapted(token, past_key_values=cache).logits, expected, 1e-10)
    adapted.set_adapter("default")
    assert_same("first again", adapted(IDS).logits, first, 0)


@pytest.mark.parametrize("beams", [1, 3])
def test_generates_as_the_merged_model(model, beams):
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "num_beams": beams}
    adapted = with_lora(model)
    ids = adapted.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    without_state = adapted.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False, **options)
    merged = adapted.merge_and_unload().generate(IDS, attention_mask=torch.ones_like(IDS), **options)
    assert ids.equal(merged)
    assert ids.equal(without_state)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(model, reentrant):
    grads = []
    for checkpointed in (False, True):
        adapted = with_lora(model).train()
        if checkpointed:
            adapted.enable_input_require_grads()
            adapted.base_model.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        adapted(IDS, labels=IDS).loss.backward()
        grads.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert_same(name, grads[1][name], grad)


def test_bfloat16(model):
    """PEFT keeps adapters in float32 on a model in half precision; a step of training is finite."""
    adapted = with_lora(model.to(torch.bfloat16)).train()
    loss = adapted(IDS, labels=IDS).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_dora_and_trained_heads(model):
    """Other adapters wrap otherwise: one that rescales weights, and a norm and the head trained as a whole."""
    options: dict[str, Any] = {"use_dora": True, "modules_to_save": ["lm_head", "mixer_norm", "norm"]}
    adapted = with_lora(model, **options)
    logits = adapted(IDS).logits
    logits.square().sum().backward()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        assert_same("merged", adapted.merge_and_unload()(IDS).logits, logits.detach(), 1e-9)


class Wrapped(nn.Module):
    """What quantizers put in a layer's place: it has no weight, or a method of that name."""

    def __init__(self, linear, has_method):
        super().__init__()
        self.packed = linear
        if has_method:
            self.weight = lambda: linear.weight

    def forward(self, x):
        return self.packed(x)


@torch.no_grad()
@pytest.mark.parametrize("has_method", [False, True])
def test_projections_without_a_weight(model, has_method):
    expected = model(IDS)
    token = random_ids(2, 1, seed=8)
    following = model(token, past_key_values=expected.past_key_values).logits
    for name in linears(model):
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(parent)
        setattr(module, child, Wrapped(getattr(module, child), has_method))
    out = model(IDS)
    assert_same("logits", out.logits, expected.logits, 0)
    assert_same("a token", model(token, past_key_values=out.past_key_values).logits, following, 0)
    assert model.model.backbone.init_state(2).position.tolist() == [0, 0]
    assert has_hyena(model) == any(".filter." in name for name, _ in model.named_modules())
