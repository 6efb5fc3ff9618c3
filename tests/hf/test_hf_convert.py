"""One table of names, both ways, on dictionaries and through transformers."""

import pytest
import torch

from longstream.hf import HGRN2ForCausalLM, HGRN2Model, from_fla, to_fla
from longstream.hf.convert import TENSOR_NAMES
from tests.hf.conftest import random_ids, tiny_config, tiny_model
from tests.numerics import assert_same


def every_choice():
    return [
        {},
        {"use_short_conv": False},
        {"conv_bias": True, "use_bias": True, "mixer_norm": "layer", "num_hidden_layers": 12},
        {"use_lower_bound": False, "elementwise_affine": False, "tie_word_embeddings": True},
    ]


@pytest.mark.parametrize("fields", every_choice())
def test_every_tensor_has_a_row(fields):
    model = tiny_model(**fields)
    ours = model.state_dict()
    theirs = to_fla(ours)
    assert len(theirs) == len(ours)
    back = from_fla(theirs)
    assert back.keys() == ours.keys()
    assert all(back[name].equal(tensor) for name, tensor in ours.items())
    rows = {fla for fla, _ in TENSOR_NAMES}
    for name in theirs:
        general = ".".join("N" if part.isdigit() else part for part in name.removeprefix("model.").split("."))
        assert general in rows | {"lm_head.weight"}
        assert "backbone" not in name
        assert "mixer" not in name


def test_names_and_shapes_are_flas():
    D, V = 24, 19
    shapes = {name: tuple(tensor.shape) for name, tensor in to_fla(tiny_model().state_dict()).items()}
    layer = {
        **{f"attn.{role}_proj.weight": (D, D) for role in "qfio"},
        **{f"attn.{role}_conv1d.weight": (D, 1, 3) for role in "qfi"},
        **{"attn_norm.weight": (D,), "mlp_norm.weight": (D,), "attn.g_norm.weight": (D,)},
        **{"mlp.gate_proj.weight": (16, D), "mlp.up_proj.weight": (16, D), "mlp.down_proj.weight": (D, 16)},
    }
    expected = {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    expected |= {"model.embeddings.weight": (V, D), "lm_head.weight": (V, D), "model.lower_bounds": (2, D)}
    assert shapes == expected | {"model.norm.weight": (D,)}


def test_other_names_pass_through():
    odd = {"model.layers.0.attn.g_proj.weight": torch.ones(2), "layers.x.attn_norm.weight": torch.ones(1)}
    assert from_fla(odd) == odd
    assert to_fla(odd) == odd


@pytest.mark.parametrize("fields", every_choice())
def test_load_state_dict_takes_either_form(fields):
    model = tiny_model(**fields)
    ids = random_ids(2, 5)
    for state_dict in (model.state_dict(), to_fla(model.state_dict())):
        other = HGRN2ForCausalLM(tiny_config(**fields)).double().eval()
        assert other.load_state_dict(state_dict).missing_keys == []
        assert_same("outputs", other(ids).logits, model(ids).logits)
    base = HGRN2Model(tiny_config(**fields)).double().eval()
    base.load_state_dict({name.removeprefix("model."): x for name, x in to_fla(model.model.state_dict()).items()})
    assert_same("outputs", base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_load_state_dict_still_names_what_is_wrong():
    model = tiny_model()
    weights = to_fla(model.state_dict())
    weights["model.layers.7.attn.q_proj.weight"] = weights.pop("model.norm.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*model.backbone.norm.weight.*Unexpected.*layers\.7"):
        model.load_state_dict(weights)
