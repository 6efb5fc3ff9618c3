"""torch.compile: training and reading are one graph in every model, a token with a state of constant size is too."""

import copy
from typing import Any

import pytest
import torch

from longstream.models import HGRN2Config
from tests.hf.conftest import HYENA, has_hyena, random_ids, tiny_model
from tests.numerics import assert_same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the compiler of torch warns of its own workings
]

IDS = random_ids(2, 7)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def compiled(model, backend="aot_eager", **options: Any):
    """By default with all of the compiler but its code generation."""
    return torch.compile(copy.deepcopy(model), backend=backend, **options)


def check_training(model, fast, tolerance):
    expected = model(IDS, labels=IDS)
    expected.loss.backward()
    out = fast(IDS, labels=IDS)
    out.loss.backward()
    assert_same("loss", out.loss, expected.loss, tolerance)
    assert_same("logits", out.logits, expected.logits, tolerance)
    for (name, parameter), twin in zip(model.named_parameters(), fast.parameters(), strict=True):
        assert_same(name, twin.grad, parameter.grad, tolerance)


def test_training_is_one_graph(model):
    model.train()
    check_training(model, compiled(model, fullgraph=True), 1e-10)


def test_training_with_generated_code():
    """Of one model with every mixer, for it takes long."""
    model = tiny_model("mixture").float().train()
    check_training(model, compiled(model, "inductor", fullgraph=True), 1e-4)  # float32 in another order


@torch.no_grad()
def test_reading_goes_on_from_its_state(model):
    """Hyena's taps depend on how long the longest row is, a number that its graph stops to look at."""
    fast = compiled(model, fullgraph=True)
    out, expected = fast(IDS), model(IDS)
    assert_same("logits", out.logits, expected.logits)
    step = compiled(model) if has_hyena(model) else fast
    for seed in range(2):
        token = random_ids(2, 1, seed=seed)
        logits = step(token, past_key_values=out.past_key_values).logits
        assert_same("a token", logits, model(token, past_key_values=expected.past_key_values).logits)


@torch.no_grad()
def test_pads_and_other_lengths():
    """The number of tokens in a mask is data: the graph may break there, the numbers may not."""
    model = tiny_model("mixture", layers=(HYENA, HGRN2Config(expand_ratio=6)), num_layers=2)
    fast = compiled(model)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    assert_same("pads", fast(IDS, attention_mask=mask).logits, model(IDS, attention_mask=mask).logits)
    for length in (1, 6):
        ids = random_ids(3, length)
        assert_same("logits", fast(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["hgrn2", "hyena"])
def test_generates(kind):
    """transformers' generate with a compiled forward."""
    model = tiny_model(kind)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert model.generate(IDS, attention_mask=torch.ones_like(IDS), **options).equal(expected)
