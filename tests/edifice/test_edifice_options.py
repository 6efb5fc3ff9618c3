"""Options by Edifice's names: what is accepted, and what is refused in which words."""

import inspect

import pytest
import torch

from longstream.edifice import hgrn, hyena
from longstream.models import FeatureModel

MODELS = pytest.mark.parametrize("model", [hgrn, hyena], ids=["hgrn", "hyena"])


@MODELS
def test_recommended_defaults_are_the_defaults(model):
    recommended = model.recommended_defaults()
    expected = {"hidden_size": 256, "window_size": 60, "dropout": 0.1}
    own = {"num_layers": 6, "state_expansion": 2} if model is hgrn else {"num_layers": 4, "order": 2, "filter_size": 64}
    assert recommended == expected | own
    with torch.device("meta"):
        plain, named = (model.build(embed_dim=287, **options) for options in ({}, recommended))
    assert str(plain) == str(named)
    assert plain.backbone.fingerprint == named.backbone.fingerprint


@MODELS
def test_the_defaults_of_build(model):
    with torch.device("meta"):
        built = model.build(embed_dim=287)
    assert isinstance(built, FeatureModel)
    assert (built.embed_dim, built.output_size, built.outputs, built.training) == (287, 256, "last", True)
    rates = {module.p for module in built.backbone.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.1}
    if model is hyena:
        assert {block.seq_len for block in built.backbone.layers} == {60}
        assert {network.dense2.weight.shape for block in built.backbone.layers for network in block.filters} == {
            (64, 64)
        }


@MODELS
@pytest.mark.parametrize("name", ["embed_dim", "input_size", "input_dim", "obs_size"])
def test_names_of_the_size_of_a_frame(model, name):
    built = model.build(**{name: 5}, hidden_size=8, num_layers=1)
    assert built.embed_dim == 5
    assert model.param_count(**{name: 5}) == model.param_count(embed_dim=5)
    both = {"obs_size": 5, "embed_dim": None, name: 5}  # one size by two names, None for not given
    assert model.build(**both, hidden_size=8, num_layers=1).embed_dim == 5


@MODELS
def test_sizes_of_a_frame_that_disagree(model):
    with pytest.raises(ValueError, match=r"embed_dim and obs_size are names of one option, got \[5, 6\]"):
        model.build(embed_dim=5, obs_size=6)


@MODELS
def test_no_size_of_a_frame(model):
    with pytest.raises(TypeError, match=r"build: embed_dim, the size of a frame, is required .*input_size"):
        model.build(hidden_size=8)
    assert model.param_count(hidden_size=8) == model.param_count(hidden_size=8, embed_dim=287)


@MODELS
@pytest.mark.parametrize(
    ("wrong", "near"), [("embed_size", "embed_dim"), ("hiden_size", "hidden_size"), ("layers", "num_layers")]
)
def test_unknown_options_and_the_nearest_known(model, wrong, near):
    for function in (model.build, model.param_count, model.edifice_param_count, model.output_size, model.init_cache):
        with pytest.raises(TypeError, match=rf"edifice\.\w+\.{function.__name__}: unknown option '{wrong}'.* '{near}'"):
            function(**{wrong: 3})


@MODELS
def test_seq_len_wins_over_window_size(model):
    def time(**options):
        block = model.build(embed_dim=8, hidden_size=8, num_layers=1, **options).backbone.layers[0]
        return block.seq_len if model is hyena else block.rnn.forget_proj.bias[-1].item()

    assert time(seq_len=40) == time(seq_len=40, window_size=30) == time(window_size=40) != time(window_size=30)
    assert time(seq_len=None, window_size=30) == time(window_size=30)


@MODELS
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_layers": 0}, "num_layers must be an integer >= 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be an integer >= 1, got 0"),
        ({"hidden_size": 8.0}, "hidden_size must be an integer >= 1, got 8.0"),
        ({"embed_dim": True}, "embed_dim must be an integer >= 1, got True"),
        ({"seq_len": 0}, "seq_len must be an integer >= 1, got 0"),
        ({"window_size": "60"}, "window_size must be an integer >= 1, got '60'"),
        ({"window_size": 0, "seq_len": 60}, "window_size must be an integer >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout must be a number from 0 to below 1, got nan"),
        ({"init": "xavier"}, r"init must be one of \('modern', 'axon'\), got 'xavier'"),
        ({"outputs": "first"}, r"outputs must be one of \('last', 'all', 'mean'\), got 'first'"),
    ],
    ids=str,
)
def test_values_out_of_range(model, options, says):
    with pytest.raises(ValueError, match=says):
        model.build(**{"embed_dim": 8, "hidden_size": 8, **options})


def test_values_out_of_range_of_one_model():
    with pytest.raises(ValueError, match=r"scan must be one of \('exact', 'edifice'\), got 'fast'"):
        hgrn.build(embed_dim=8, scan="fast")
    with pytest.raises(ValueError, match="state_expansion must be an integer >= 1, got 0"):
        hgrn.build(embed_dim=8, state_expansion=0)
    with pytest.raises(ValueError, match="layer_idx must be an integer >= 1, got 0"):
        hgrn.build_hgrn_layer(layer_idx=0)
    with pytest.raises(ValueError, match="order must be an integer >= 0, got -1"):
        hyena.build(embed_dim=8, order=-1)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 0, got -1"):
        hyena.init_cache(-1)
    with pytest.raises(TypeError, match="unknown option 'layer_idx'"):
        hyena.build_hyena_block(layer_idx=1)


@MODELS
def test_an_unknown_backend(model):
    with pytest.raises(ValueError, match="unknown backend 'magic'"):
        model.build(embed_dim=8, hidden_size=8, num_layers=1, backend="magic")(torch.randn(1, 2, 8))


@MODELS
def test_output_size(model):
    assert model.output_size() == 256
    assert model.output_size(hidden_size=12, embed_dim=3) == 12


@MODELS
def test_docstrings_name_every_option(model):
    lines = (inspect.getdoc(model.build) or "").splitlines()
    described = {line.split(":")[0].strip() for line in lines if ":" in line}
    assert set(model._BUILD) <= described


@MODELS
def test_a_wrong_input(model):
    built = model.build(embed_dim=5, hidden_size=8, num_layers=1)
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, E=5\), got \(2, 3, 8\)"):
        built(torch.randn(2, 3, 8))
    who = type(built.backbone).__name__
    with pytest.raises(ValueError, match=rf"{who}: x must have shape \(B, T, D=8\), got \(2, 3, 5\)"):
        built.backbone(torch.randn(2, 3, 5))
    with pytest.raises(TypeError, match=rf"{who}: x must be torch.float32 like the weights, got torch.float64"):
        built.backbone(torch.randn(2, 3, 8).double())
    with pytest.raises(ValueError, match=rf"{who}.step: x_t must have shape \(B, D=8\), got \(2, 3, 8\)"):
        built.backbone.step(torch.randn(2, 3, 8))
