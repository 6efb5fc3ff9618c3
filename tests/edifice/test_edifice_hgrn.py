"""Edifice's HGRN: its own numbers, the loop it stands for, every way of feeding, and what its inits remember."""

import functools

import numpy as np
import pytest
import torch

from longstream import edifice
from longstream.edifice import hgrn
from longstream.edifice._parts import LayerNorm
from longstream.models import State, Window
from longstream.testing import assert_equivalent
from tests import golden
from tests.edifice import plain
from tests.numerics import assert_same

# Edifice ran in float32: values of a few units, each off by a few roundings of 6e-8, in another order than ours.
SAME_AS_EDIFICE = 1e-5

SMALL = {"embed_dim": 7, "hidden_size": 8, "num_layers": 3, "state_expansion": 2, "seq_len": 12}
GOLDEN = {
    "edifice_hgrn_small": lambda scan: hgrn.build(**SMALL, scan=scan),
    "edifice_hgrn_layer": lambda scan: hgrn.build_hgrn_layer(hidden_size=8, layer_idx=2, scan=scan),
    "edifice_hgrn_layer60": lambda scan: hgrn.build_hgrn_layer(hidden_size=8, layer_idx=1, scan=scan),
}


def load(name, scan):
    """The model of a golden file with its weights, its input and its output."""
    arrays = golden.load(name)
    model = GOLDEN[name](scan).eval()
    edifice.load_axon(model, golden.directory() / f"{name}.npz")
    return model, torch.from_numpy(arrays["__x"]), torch.from_numpy(arrays["__y"])


def blocks(p, layers):
    return [functools.partial(plain.hgrn_block, p, f"hgrn_block_{layer}") for layer in range(1, layers + 1)]


def off_by(y, expected):
    return (y - expected).abs().max().item()


@pytest.mark.parametrize("name", GOLDEN)
def test_scan_edifice_gives_edifices_numbers(name):
    model, x, y = load(name, "edifice")
    with torch.no_grad():
        assert off_by(model(x)[0], y) < SAME_AS_EDIFICE


def test_edifice_has_broken_down_after_60_frames():
    """So that scan "edifice" cannot quietly become the exact one."""
    model, x, y = load("edifice_hgrn_layer60", "exact")
    with torch.no_grad():
        assert off_by(model(x)[0], y) > 0.5


@pytest.mark.parametrize("name", ["edifice_hgrn_layer", "edifice_hgrn_layer60"])
def test_the_exact_scan_is_the_loop_on_edifices_weights(name):
    model, x, _ = load(name, "exact")
    exact = plain.hgrn_layer(plain.parameters(model), "hgrn", x.double().numpy())
    with torch.no_grad():
        assert off_by(model(x)[0], torch.from_numpy(exact)) < SAME_AS_EDIFICE
        assert_same("y", model.double()(x.double())[0], exact)


@pytest.mark.parametrize(
    "options",
    [
        {**SMALL, "outputs": "all"},
        {"input_size": 6, "hidden_size": 6, "num_layers": 2, "state_expansion": 4, "outputs": "all"},
        {"obs_size": 3, "hidden_size": 10, "num_layers": 4, "outputs": "all"},  # 20, 10, 5 and 2 gates
        {"input_dim": 3, "hidden_size": 8, "num_layers": 12, "state_expansion": 1, "outputs": "all"},  # 1 gate at last
    ],
    ids=str,
)
@pytest.mark.parametrize("T", [1, 2, 9, 130])
def test_the_model_is_the_loop(options, T):
    model = plain.shake(hgrn.build(**options)).eval()
    p = plain.parameters(model)
    x = np.random.default_rng(1).standard_normal((2, T, model.embed_dim))
    with torch.no_grad():
        assert_same("y", model(torch.from_numpy(x))[0], plain.model(p, blocks(p, options["num_layers"]), x))


def test_the_last_vector_is_returned():
    torch.manual_seed(0)
    model, x = hgrn.build(**SMALL).eval(), torch.randn(2, 5, 7)
    with torch.no_grad():
        y = model(x, outputs="all")[0]
        assert torch.equal(model(x)[0], y[:, -1])
        assert torch.equal(model(x, outputs="mean")[0], y.mean(1))


MODULES = {
    "backbone": (lambda: hgrn.HGRNBackbone(8, num_layers=3, dropout=0), (0, 1, 5)),
    "block": (lambda: hgrn.build_hgrn_block(hidden_size=8, layer_idx=2, dropout=0), (0, 2, 9)),
    "layer": (lambda: hgrn.build_hgrn_layer(hidden_size=8, dropout=0), (67,)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODULES)
def test_the_contract(name, dtype):
    make, lengths = MODULES[name]
    assert_equivalent(plain.shake(make()).to(dtype), lengths=lengths)


def test_the_contract_of_a_model():
    model = plain.shake(hgrn.build(**SMALL, outputs="all")).eval()
    assert_equivalent(model, lambda T: torch.randn(T, 7, dtype=torch.float64), lengths=(0, 5))


def test_a_step_is_the_last_vector_of_every_prefix():
    torch.manual_seed(0)
    model, x = plain.shake(hgrn.build(**SMALL)).eval(), torch.randn(2, 66, 7, dtype=torch.float64)
    state = hgrn.init_cache(2, **SMALL)
    with torch.no_grad():
        for t in range(66):
            y, state = model.step(x[:, t], state)
            if t % 13 == 0:
                assert_same(f"y_{t}", y, model(x[:, : t + 1])[0])
    assert state.position.tolist() == [66, 66]


def test_the_future_is_not_seen():
    torch.manual_seed(0)
    model, x = hgrn.build(**SMALL, outputs="all").eval(), torch.randn(1, 70, 7)
    changed = torch.cat([x[:, :40], x[:, 40:] + 1], dim=1)
    with torch.no_grad():
        y, z = model(x)[0], model(changed)[0]
    assert torch.equal(y[:, :40], z[:, :40])
    assert not torch.isclose(y[:, 40:], z[:, 40:]).all(-1).any()


def test_an_almost_constant_vector_is_normed_as_axon_does():
    x = np.random.default_rng(0).standard_normal((6, 16)) * 10.0 ** np.arange(-5, 1)[:, None]
    norm = LayerNorm(16).double()
    exact = plain.layer_norm({"n/gamma": np.ones(16), "n/beta": np.zeros(16)}, "n", x)
    assert_same("y", norm(torch.from_numpy(x)), exact)
    assert not torch.allclose(
        norm(torch.from_numpy(x))[2], torch.nn.functional.layer_norm(torch.from_numpy(x), [16])[2]
    )


def dropouts(model, x):
    """How often dropout of rate 0.5 is applied in a pass."""
    calls = []
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.Dropout) and module.p == 0.5:
            module.register_forward_hook(lambda *_: calls.append(1))
    model(x)
    return len(calls)


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    model, x = hgrn.build(**SMALL, dropout=0.5), torch.randn(1, 5, 7)
    assert not torch.equal(model(x)[0], model(x)[0])
    assert dropouts(model, x) == 2 * 3
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_scan_edifice_takes_whole_sequences_only():
    model, x = hgrn.build(**SMALL, scan="edifice"), torch.randn(1, 5, 7)
    _, state = model(x)
    assert state.position.tolist() == [5]
    backbone, block, layer = model.backbone, model.backbone.layers[0], model.backbone.layers[0].rnn
    u, mask = torch.randn(1, 5, 8), torch.ones(1, 5)
    for module in (backbone, block, layer):
        who = type(module).__name__
        for kwargs in ({"state": module(u)[1]}, {"mask": mask}, {"cu_seqlens": [0, 2, 5]}):
            with pytest.raises(
                ValueError, match=f"{who}: {next(iter(kwargs))} must be None with scan 'edifice'.*scan='exact'"
            ):
                module(u, **kwargs)
        with pytest.raises(RuntimeError, match=r"step: scan 'edifice' takes whole sequences.*scan='exact'"):
            module.step(u[:, 0], None)
    with pytest.raises(ValueError, match="state must be None with scan 'edifice'"):
        model(x, state)
    with pytest.raises(RuntimeError, match=r"step: scan 'edifice' takes whole sequences.*scan='exact'"):
        model.step(x[:, 0], state)


def test_init_cache_is_the_models_first_state():
    state, model = hgrn.init_cache(3, **SMALL), hgrn.build(**SMALL)
    assert state.fingerprint == model.init_state(3).fingerprint
    assert [layer.h.shape for layer in state.layers] == [(3, 16)] * 3
    assert state.position.tolist() == [0, 0, 0]
    assert [layer.h.shape for layer in hgrn.init_cache().layers] == [(1, 512)] * 6
    assert not any(tensor.any() for tensor in state.tensors())


def test_a_state_is_saved_and_restored_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    model, x = hgrn.build(**SMALL).eval(), torch.randn(1, 20, 7)
    state = model.prefill(x)
    state.save(tmp_path / "state")
    with torch.no_grad():
        assert torch.equal(model(x, state)[0], model(x, State.load(tmp_path / "state"))[0])
    other = hgrn.build(**{**SMALL, "num_layers": 2})
    with pytest.raises(ValueError, match="the state belongs to another model"):
        other(x, state)


def test_a_state_of_the_wrong_kind_or_size():
    model, x = hgrn.build(**SMALL), torch.randn(2, 3, 7)
    with pytest.raises(TypeError, match="HGRNBackbone: state must be a State or None, got int"):
        model(x, 3)
    with pytest.raises(ValueError, match="HGRNBackbone: state must have 2 rows, one for each sequence, got 1"):
        model(x, model.init_state(1))
    layer, u = hgrn.build_hgrn_layer(hidden_size=8), torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match=r"HGRNLayer: state.h must have shape \(2, 16\), got \(2, 8\)"):
        layer(u, hgrn.EdificeHGRNState(torch.zeros(2, 8)))
    with pytest.raises(TypeError, match="HGRNLayer: state must be an EdificeHGRNState or None, got tuple"):
        layer(u, (torch.zeros(2, 16),))


def test_a_window_forgets_what_the_state_remembers():
    torch.manual_seed(0)
    model, x = hgrn.build(**SMALL).eval(), torch.randn(1, 15, 7)
    with torch.no_grad():
        windowed = Window(model, 4)(x)[0]
        assert torch.allclose(windowed[:, -1], model(x[:, -4:])[0], atol=1e-6)
        assert not torch.allclose(windowed[:, -1], model(x)[0], atol=1e-3)


def test_autocast_keeps_the_state_wide():
    torch.manual_seed(0)
    model, x = hgrn.build(**SMALL).eval(), torch.randn(2, 20, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, state = model(x)
    assert {layer.h.dtype for layer in state.layers} == {torch.float32}
    with torch.no_grad():
        assert off_by(y, model(x)[0]) < 0.1


@pytest.mark.parametrize(
    ("options", "true", "edifices"),
    [({}, 5_329_376, 6_364_928), ({"num_layers": 2}, 2_048_000, 2_170_624)],
)
def test_param_count(options, true, edifices):
    assert hgrn.param_count(**options) == true
    assert hgrn.edifice_param_count(**options) == edifices
    with torch.device("meta"):
        model = hgrn.build(embed_dim=287, **options)
    assert sum(p.numel() for p in model.parameters()) == true


def test_param_count_of_odd_sizes():
    for options in (SMALL, {**SMALL, "embed_dim": 8}, {**SMALL, "hidden_size": 12, "state_expansion": 3}):
        assert hgrn.param_count(**options) == sum(p.numel() for p in hgrn.build(**options).parameters())
    assert hgrn.edifice_param_count(**{**SMALL, "embed_dim": 8}) == 3 * (4 * 8 * 16 + 8 * 64)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden_size": 100}, r"the 25 gates of layer 4 must|the 12 gates of layer 5 must divide its 200 channels"),
        ({"hidden_size": 287}, "gates of layer 3 must divide its 574 channels"),
        ({"hidden_size": 287}, "hidden_size 272 or 288, or at most 2 layers"),
    ],
)
def test_gates_that_do_not_divide_the_channels(options, says):
    with pytest.raises(ValueError, match=says):
        hgrn.build(embed_dim=5, **options)
    with pytest.raises(ValueError, match=says):
        hgrn.param_count(**options)


def test_the_remedy_for_gates_works():
    assert hgrn.build(embed_dim=5, hidden_size=272, num_layers=6).output_size == 272
    assert hgrn.build(embed_dim=5, hidden_size=287, num_layers=2).output_size == 287
    with pytest.raises(ValueError, match=r"HGRNLayer: the 12 gates of layer 5 must.*or at most 4 layers"):
        hgrn.build_hgrn_layer(hidden_size=100, layer_idx=5)
