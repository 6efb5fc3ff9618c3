"""One table of names, both ways, on dictionaries and through transformers."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from longstream.hf import from_fla, to_fla
from longstream.hf.convert import ATTENTION, MIXERS, REST
from tests.hf.conftest import ATTN, random_ids, tiny_config, tiny_model
from tests.numerics import assert_same

CHOICES = [
    ("hgrn2", {}),
    ("hgrn2", {"use_short_conv": False}),
    ("hgrn2", {"conv_bias": True, "use_bias": True, "mixer_norm": "layer", "num_hidden_layers": 12}),
    ("hgrn2", {"use_lower_bound": False, "elementwise_affine": False, "tie_word_embeddings": True}),
    ("hgrn2 hybrid", {"num_hidden_layers": 12, "attn": ATTN | {"layers": [1, 10]}, "use_bias": True}),
    ("hgrn", {}),
    ("hgrn", {"conv_bias": True, "use_bias": True, "mixer_norm": "layer", "unit": "complex"}),
    ("hgrn hybrid", {}),
]


@pytest.mark.parametrize(("kind", "fields"), CHOICES)
def test_every_tensor_has_a_row(kind, fields):
    model = tiny_model(kind, **fields)
    ours = model.state_dict()
    theirs = to_fla(ours, model.config)
    assert len(theirs) == len(ours)
    back = from_fla(theirs, model.config)
    assert back.keys() == ours.keys()
    assert all(back[name].equal(tensor) for name, tensor in ours.items())
    rows = {fla for fla, _ in (*REST, *MIXERS[model.config.model_type], *ATTENTION)}
    for name in theirs:
        general = ".".join("N" if part.isdigit() else part for part in name.removeprefix("model.").split("."))
        assert general in rows | {"lm_head.weight"}
        assert "backbone" not in name
        assert "mixer" not in name


# By kind: which projections, convolutions and norms fla's layer has, and their width.
D, V, K = 24, 19, 12
HGRN2 = {
    **{f"attn.{role}_proj.weight": (D, D) for role in "qfio"},
    **{f"attn.{role}_conv1d.weight": (D, 1, 3) for role in "qfi"},
    "attn.g_norm.weight": (D,),
}
HGRN = {
    **{f"attn.{role}_proj.weight": (2 * D, D) for role in "ifg"},
    **{f"attn.{role}_conv1d.weight": (2 * D, 1, 3) for role in "if"},
    "attn.o_proj.weight": (D, 2 * D),
    "attn.g_norm.weight": (2 * D,),
}
ATTENTION_LAYER = {
    **{f"attn.{role}_proj.weight": (D if role in "qo" else K, D) for role in "qkvo"},
    **{f"attn.{role}_proj.bias": (D if role == "q" else K,) for role in "qkv"},
}


@pytest.mark.parametrize(
    ("kind", "layers", "gates"),
    [
        ("hgrn2", [HGRN2, HGRN2], D),
        ("hgrn", [HGRN, HGRN], 2 * D),
        ("hgrn2 hybrid", [HGRN2, ATTENTION_LAYER, HGRN2], D),
    ],
)
def test_names_and_shapes_are_flas(kind, layers, gates):
    model = tiny_model(kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in to_fla(model.state_dict(), model.config).items()}
    rest = {
        **{"attn_norm.weight": (D,), "mlp_norm.weight": (D,)},
        **{"mlp.gate_proj.weight": (16, D), "mlp.up_proj.weight": (16, D), "mlp.down_proj.weight": (D, 16)},
    }
    expected = {
        f"model.layers.{n}.{name}": shape for n, layer in enumerate(layers) for name, shape in (layer | rest).items()
    }
    expected |= {
        "model.embeddings.weight": (V, D),
        "lm_head.weight": (V, D),
        "model.lower_bounds": (len(layers), gates),
    }
    assert shapes == expected | {"model.norm.weight": (D,)}


def test_other_names_pass_through():
    odd = {"model.layers.0.attn.g_proj.weight": torch.ones(2), "layers.x.attn_norm.weight": torch.ones(1)}
    assert from_fla(odd, tiny_config()) == odd
    assert to_fla(odd, tiny_config()) == odd


@pytest.mark.parametrize("kind", ["hyena", "mixture"])
def test_other_types_keep_our_names_and_shapes(kind):
    model = tiny_model(kind)
    for converted in (to_fla(model.state_dict(), model.config), from_fla(model.state_dict(), model.config)):
        assert converted.keys() == model.state_dict().keys()
        assert all(tensor.equal(model.state_dict()[name]) for name, tensor in converted.items())


@pytest.mark.parametrize(("kind", "fields"), CHOICES)
def test_load_state_dict_takes_either_form(kind, fields):
    model = tiny_model(kind, **fields)
    ids = random_ids(2, 5)
    for state_dict in (model.state_dict(), to_fla(model.state_dict(), model.config)):
        other = AutoModelForCausalLM.from_config(tiny_config(kind, **fields)).double().eval()
        assert other.load_state_dict(state_dict).missing_keys == []
        assert_same("outputs", other(ids).logits, model(ids).logits)
    base = AutoModel.from_config(tiny_config(kind, **fields)).double().eval()
    theirs = to_fla(model.model.state_dict(), model.config)
    base.load_state_dict({name.removeprefix("model."): x for name, x in theirs.items()})
    assert_same("outputs", base(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_load_state_dict_still_names_what_is_wrong():
    model = tiny_model()
    weights = to_fla(model.state_dict(), model.config)
    weights["model.layers.7.attn.q_proj.weight"] = weights.pop("model.norm.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*model.backbone.norm.weight.*Unexpected.*layers\.7"):
        model.load_state_dict(weights)
