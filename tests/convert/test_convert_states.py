"""fla's recurrent states into ours and back, in both layouts: a text goes on from them as if it had never stopped."""

import json

import pytest
import torch

from longstream.convert import state_from_fla, state_to_fla
from longstream.hf import HGRN2Config, HGRNConfig, RecurrentCache
from tests import golden
from tests.convert import plain
from tests.hf.conftest import random_ids, tiny_model
from tests.numerics import assert_same


def golden_model(name):
    weights, found, arrays = plain.tensors(name)
    cls = HGRN2Config if "hgrn2" in name else HGRNConfig
    values = {key: value for key, value in json.loads(str(arrays["config_json"])).items() if key != "model_type"}
    from longstream.hf import HGRN2ForCausalLM, HGRNForCausalLM

    config = cls(**{key: values[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "expand_ratio")})
    model = (HGRN2ForCausalLM if cls is HGRN2Config else HGRNForCausalLM)(config).double().eval()
    model.load_state_dict(weights)
    return model, found


def of_file(found, layers, layout):
    states = [found[f"state.{i}"] for i in range(layers)]
    if layout == "key-first":
        states = [s.transpose(-1, -2).contiguous() if s.dim() == 4 else s for s in states]
    return [{"recurrent_state": s, "conv_state": None} for s in states]


@pytest.mark.parametrize("layout", ["value-first", "key-first"])
@pytest.mark.parametrize("name", ["hgrn_lm", "hgrn2_lm"])
def test_golden_states_are_those_of_our_model(name, layout):
    model, found = golden_model(name)
    given = of_file(found, model.config.num_hidden_layers, layout)
    state = state_from_fla(given, model.config, [37, 37], layout=layout)
    with torch.no_grad():
        ours = model(found["input_ids"], use_cache=True).past_key_values
        longer = torch.cat([found["input_ids"], random_ids(2, 3)], 1)
        expected = model(longer).logits[:, 37:]
        got = model(longer[:, 37:], past_key_values=RecurrentCache(state)).logits
    for mine, theirs in zip(ours.state.tensors(), state.tensors(), strict=True):
        assert_same("state", theirs, mine.numpy())
    assert_same("logits", got, expected.numpy())
    back = state_to_fla(state, model.config, layout=layout)
    for layer, was in zip(back, given, strict=True):
        assert torch.equal(layer["recurrent_state"], was["recurrent_state"])
        assert layer["conv_state"] is None


@pytest.mark.parametrize("kind", ["hgrn", "hgrn2"])
def test_convolutions_come_along(kind):
    model = tiny_model(kind)
    ids = random_ids(2, 12)
    with torch.no_grad():
        cache = model(ids[:, :7], use_cache=True).past_key_values
        given = state_to_fla(cache.state, model.config)
        parts = 3 if kind == "hgrn2" else 2
        width = 24 if kind == "hgrn2" else 48
        assert [tuple(part.shape) for part in given[0]["conv_state"]] == [(2, width, 3)] * parts
        state = state_from_fla(given, model.config, cache.state.position)
        got = model(ids[:, 7:], past_key_values=RecurrentCache(state)).logits
        expected = model(ids).logits[:, 7:]
    assert all(torch.equal(a, b) for a, b in zip(state.tensors(), cache.state.tensors(), strict=True))
    assert state.fingerprint == cache.state.fingerprint
    assert_same("logits", got, expected.numpy())


def test_the_golden_layers_convolutions_are_in_the_same_order():
    """conv_state of fla's layer (q, f, i), against the last inputs of ours."""
    a = golden.load("hgrn2_shortconv_layer")
    parts = tuple(torch.from_numpy(a[f"conv_state.{name}"]) for name in "qfi")
    model = tiny_model("hgrn2", hidden_size=64, expand_ratio=16, num_hidden_layers=1, conv_size=4)
    given = [{"recurrent_state": torch.from_numpy(a["ht"]), "conv_state": parts}]
    (layer,) = state_from_fla(given, model.config, [37, 37]).layers
    case = golden.layer_case("hgrn2_shortconv_layer")
    assert case.conv_out is not None
    assert_same("conv", layer.conv, case.conv_out)
    assert_same("S", layer.S, case.S_out)


def test_a_layout_that_is_wrong_is_another_state():
    """K = V, so that nothing but the numbers could tell."""
    model, found = golden_model("hgrn2_lm")
    given = of_file(found, 2, "value-first")
    right, wrong = (state_from_fla(given, model.config, [37, 37], layout=name) for name in ("value-first", "key-first"))
    assert not torch.allclose(right.layers[0].S, wrong.layers[0].S)


def refused(says, *args, **options):
    with pytest.raises(ValueError, match=says):
        state_from_fla(*args, **options)


def test_refusals():
    model, found = golden_model("hgrn2_lm")
    given, config = of_file(found, 2, "value-first"), model.config
    refused("layout must be one of", given, config, [1, 1], layout="sideways")
    refused("layers must be 2, got 1", given[:1], config, [1, 1])
    refused("recurrent_state must have shape", given, config, [1, 1, 1])
    refused("recurrent_state must be a tensor, got NoneType", [{}, {}], config, [1, 1])
    refused("conv_state must be None", [given[0] | {"conv_state": (1,)}, given[1]], config, [1, 1])
    convs = tiny_model("hgrn2")
    layers = state_to_fla(convs(random_ids(1, 3), use_cache=True).past_key_values.state, convs.config)
    refused(
        "conv_state must be 3 tensors, got NoneType",
        [layer | {"conv_state": None} for layer in layers],
        convs.config,
        [3],
    )
    refused(
        "layer 0 must be HGRN2 or real HGRN", [{"recurrent_state": torch.zeros(1)}] * 2, tiny_model("hyena").config, [1]
    )
    with pytest.raises(ValueError, match="state belongs to another model"):
        state_to_fla(state_from_fla(given, config, [1, 1]), convs.config)
    hybrid = tiny_model("hgrn2 hybrid")
    with pytest.raises(ValueError, match="layer 1 must be HGRN2 or real HGRN, got AttentionConfig"):
        state_to_fla(hybrid(random_ids(1, 3), use_cache=True).past_key_values.state, hybrid.config)


def test_half_precision_becomes_float32():
    model, found = golden_model("hgrn_lm")
    given = [
        layer | {"recurrent_state": layer["recurrent_state"].bfloat16()} for layer in of_file(found, 2, "key-first")
    ]
    assert state_from_fla(given, model.config, [37, 37]).layers[0].h.dtype == torch.float32
