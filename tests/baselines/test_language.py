"""Baselines as language models: the same numbers in one call, in pieces, and after saving and loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from longstream.baselines import NAMES
from longstream.baselines.configs import count_transformers, has_mambapy, new_model
from longstream.baselines.language import (
    cache_bytes,
    config_of,
    context_limit,
    continue_from,
    describe_state,
    keep_rows,
    language_config,
)

SIZES: Any = {"vocab_size": 11, "boundary_id": 10, "hidden_size": 16, "num_layers": 2, "intermediate_size": 24}


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return new_model(AutoModelForCausalLM, language_config(name, **SIZES, max_seq_len=32, **options)).eval()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_pieces_are_as_good_as_the_whole(name: str):
    """Also for Mamba, whose own forward forgets the state where more than one token follows a cache."""
    model, ids = make(name), torch.randint(11, (3, 30))
    whole, parts, cache = model(input_ids=ids).logits, [], None
    for left, right in ((0, 1), (1, 3), (3, 4), (4, 20), (20, 21), (21, 30)):
        logits, cache = continue_from(model, ids[:, left:right], cache)
        parts.append(logits)
    assert difference(torch.cat(parts, dim=1), whole) < 1e-5
    keep_rows(cache, 2)
    more = torch.randint(11, (2, 3))
    logits, cache = continue_from(model, more, cache)
    assert difference(logits, model(input_ids=torch.cat([ids[:2], more], dim=1)).logits[:, 30:]) < 1e-5


@torch.no_grad()
def test_a_loaded_model_is_the_saved_one(name: str, tmp_path: Path):
    """transformers draws some of Mamba's weights anew, or scales them, where a setting of its own is made for it."""
    model, ids = make(name), torch.randint(11, (2, 9))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert AutoConfig.from_pretrained(tmp_path).model_type == {"gru": "longstream-gru", "lstm": "longstream-lstm"}.get(
        name, name
    )


@torch.no_grad()
def test_it_writes(name: str):
    model = make(name)
    prompt = torch.tensor([[10, 1, 2, 3]])
    options = {"attention_mask": torch.ones_like(prompt), "eos_token_id": None, "pad_token_id": 10}
    out = model.generate(prompt, max_new_tokens=5, do_sample=False, **options)
    expected = prompt
    for _ in range(5):
        expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, expected)


@torch.no_grad()
def test_what_a_context_costs(name: str):
    model = make(name)
    cache, sizes = None, []
    for _ in range(2):
        cache = continue_from(model, torch.zeros(1, 4, dtype=torch.long), cache)[1]
        sizes.append(cache_bytes(cache))
    grows = sizes[1] - sizes[0]
    assert grows == (4 * 2 * 2 * 16 * 4 if name == "llama" else 0)  # tokens, keys and values, layers, channels, bytes
    said = describe_state(model)
    assert said == (
        "256 bytes per token and sequence; trained on texts of 32 tokens"
        if name == "llama"
        else f"{sizes[0]:,} bytes per sequence, however long"
    )
    assert context_limit(model) == (32 if name == "llama" else None)


def test_every_weight_learns(name: str):
    model = make(name).train()
    ids = torch.randint(11, (2, 12))
    model(input_ids=ids, labels=ids).loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
    embeddings = model.get_input_embeddings()
    ids[:, 3] = 10  # the boundary is learned like any other token
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    assert embeddings.weight.grad[10].any()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2"])
def test_parameters_are_counted_as_they_are(name: str, tied: bool):
    config = language_config(name, **SIZES, tie_embeddings=tied)
    assert count_transformers(config) == AutoModelForCausalLM.from_config(config).num_parameters()


def test_configurations():
    assert make("mamba").config.use_mambapy is has_mambapy()
    own = config_of(make("mamba2"))
    assert own["hidden_size"] == 16
    assert "eos_token_id" not in own
    with pytest.raises(ValueError, match=r"language_config: name must be one of .*, got 'rwkv'"):
        language_config("rwkv", **SIZES)
