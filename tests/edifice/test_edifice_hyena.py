"""Edifice's Hyena: its own numbers, the sums it stands for, every way of feeding, and what its inits see."""

import copy
import functools
import pickle

import numpy as np
import pytest
import torch

from longstream import edifice
from longstream.edifice import hyena
from longstream.models import State, Window
from longstream.testing import assert_equivalent
from tests import golden
from tests.edifice import plain
from tests.edifice.test_edifice_hgrn import SAME_AS_EDIFICE, dropouts, off_by
from tests.numerics import assert_same

SMALL = {"embed_dim": 7, "hidden_size": 8, "num_layers": 2, "order": 2, "filter_size": 5, "seq_len": 12}
GOLDEN = {
    "edifice_hyena_small": lambda: hyena.build(**SMALL),
    "edifice_hyena_block": lambda: hyena.build_hyena_block(hidden_size=8, order=2, filter_size=5, seq_len=20),
}


def blocks(p, layers, seq_len):
    return [
        functools.partial(plain.hyena_block, p, f"hyena_block_{layer}", seq_len=seq_len)
        for layer in range(1, layers + 1)
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_edifices_numbers(name):
    arrays, model = golden.load(name), GOLDEN[name]().eval()
    edifice.load_axon(model, golden.directory() / f"{name}.npz")
    with torch.no_grad():
        assert off_by(model(torch.from_numpy(arrays["__x"]))[0], torch.from_numpy(arrays["__y"])) < SAME_AS_EDIFICE


@pytest.mark.parametrize("seq_len", [1, 2, 9, 70])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_model_is_the_sum(order, seq_len):
    options = {**SMALL, "order": order, "seq_len": seq_len}
    model = plain.shake(hyena.build(**options, outputs="all")).eval()
    p = plain.parameters(model)
    x = np.random.default_rng(1).standard_normal((2, seq_len, 7))
    exact = plain.model(p, blocks(p, 2, seq_len), x)
    with torch.no_grad():
        assert_same("y", model(torch.from_numpy(x))[0], exact)
        half = (seq_len + 1) // 2
        assert_same("the first half", model(torch.from_numpy(x[:, :half]))[0], exact[:, :half])


MODULES = {
    "backbone": (
        lambda: hyena.HyenaBackbone(6, order=2, filter_size=5, num_layers=2, dropout=0, seq_len=16),
        (0, 1, 5),
    ),
    "block": (lambda: hyena.build_hyena_block(hidden_size=4, filter_size=3, dropout=0, seq_len=140), (67,)),
    "block of order 0": (lambda: hyena.build_hyena_block(hidden_size=4, order=0, dropout=0), (0, 9)),
    "block of order 3": (lambda: hyena.build_hyena_block(hidden_size=4, order=3, filter_size=3, dropout=0), (3,)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODULES)
def test_the_contract(name, dtype):
    make, lengths = MODULES[name]
    assert_equivalent(plain.shake(make()).to(dtype), lengths=lengths)


def test_a_step_is_the_last_vector_of_every_prefix():
    """Past a block of the state, so that old frames come from its levels too, with filters kept and not."""
    torch.manual_seed(0)
    options = {**SMALL, "seq_len": 140}
    model, x = plain.shake(hyena.build(**options)).eval(), torch.randn(2, 140, 7, dtype=torch.float64)
    state = hyena.init_cache(2, **options)
    exact = model(x, outputs="all")[0].detach()
    with torch.no_grad():
        for t in range(140):
            y, state = model.step(x[:, t], state)
            assert_same(f"y_{t}", y, exact[:, t])
            if t % 60 == 0:
                assert_same(f"prefix {t}", y, model(x[:, : t + 1])[0])
    assert state.position.tolist() == [140, 140]


def test_the_future_is_not_seen():
    torch.manual_seed(0)
    model, x = hyena.build(**{**SMALL, "seq_len": 70}, outputs="all").eval().double(), torch.randn(1, 70, 7).double()
    changed = torch.cat([x[:, :40], x[:, 40:] + 1], dim=1)
    with torch.no_grad():
        y, z = model(x)[0], model(changed)[0]
    assert_same("before the change", y[:, :40], z[:, :40])  # FFTs round what they see of the future
    assert not torch.isclose(y[:, 40:], z[:, 40:]).all(-1).any()


def test_a_sequence_ends_at_seq_len():
    model, x = hyena.build(**SMALL).eval(), torch.randn(2, 13, 7)
    says = (
        r"HyenaBlock: a sequence must end within seq_len=12 frames, got {} frames after {}; .*longstream.models.Window"
    )
    with pytest.raises(ValueError, match=says.format(13, 0)):
        model(x)
    state = model.prefill(x[:, :12])
    with pytest.raises(ValueError, match=says.format(1, 12)):
        model.step(x[:, 12], state)
    with pytest.raises(ValueError, match=says.format(13, 0)):
        model(x.reshape(1, 26, 7), cu_seqlens=[0, 4, 17, 26])
    with torch.no_grad():
        assert Window(model, 12)(x)[0].shape == (2, 13, 8)
        assert model(x.reshape(1, 26, 7), cu_seqlens=[0, 12, 24, 26])[0].shape == (3, 8)


def test_kept_filters_follow_the_weights():
    torch.manual_seed(0)
    model, x = hyena.build(**SMALL).eval(), torch.randn(1, 12, 7)
    network = model.backbone.layers[0].filters[0]

    def changed(write):
        with torch.no_grad():
            before = model(x)[0]
            assert network() is network()
            write()
            after = model(x)[0]
        assert off_by(after, model(x)[0].detach()) < 1e-6  # what is made with gradients is made anew
        return not torch.equal(before, after)

    def replace():
        network.dense2.weight = torch.nn.Parameter(network.dense2.weight.detach() * 2)

    assert not changed(lambda: None)
    assert changed(lambda: network.dense1.weight.mul_(1.5))
    assert changed(lambda: network.dense3.bias.data.add_(0.1))
    assert changed(replace)
    assert changed(lambda: model.load_state_dict(hyena.build(**SMALL).state_dict()))
    model.double()
    with torch.no_grad():
        assert network().taps.dtype == torch.float64


def test_a_model_and_a_state_can_be_copied():
    torch.manual_seed(0)
    model, x = hyena.build(**SMALL).eval(), torch.randn(1, 6, 7)
    with torch.no_grad():
        y, state = model(x)
        twin = copy.deepcopy(model)
        twin.backbone.layers[0].filters[0].dense3.weight.mul_(2)
        assert torch.equal(model(x)[0], y)
        assert not torch.equal(twin(x)[0], y)
        again = pickle.loads(pickle.dumps(copy.deepcopy(state)))
        assert torch.equal(model(x, state)[0], model(x, again)[0])


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    model, x = hyena.build(**SMALL, dropout=0.5), torch.randn(1, 5, 7)
    assert not torch.equal(model(x)[0], model(x)[0])
    assert dropouts(model, x) == 2 * 2
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_init_cache_is_the_models_first_state():
    state, model = hyena.init_cache(3, **SMALL), hyena.build(**SMALL)
    first = model.init_state(3)
    assert state.fingerprint == first.fingerprint
    assert [t.shape for t in state.tensors()] == [t.shape for t in first.tensors()]
    assert not any(tensor.any() for tensor in state.tensors())
    assert hyena.init_cache(0).batch_size == 0


def test_a_state_is_saved_and_restored_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    options = {**SMALL, "seq_len": 150}
    model, x = hyena.build(**options).eval(), torch.randn(1, 75, 7)
    state = model.prefill(x)
    state.save(tmp_path / "state")
    with torch.no_grad():
        assert torch.equal(model(x, state)[0], model(x, State.load(tmp_path / "state"))[0])
    with pytest.raises(ValueError, match="the state belongs to another model"):
        hyena.build(**{**options, "seq_len": 151})(x, state)


def test_a_state_of_the_wrong_kind_or_size():
    block, x = hyena.build_hyena_block(hidden_size=8, filter_size=3), torch.randn(2, 3, 8)
    with pytest.raises(TypeError, match="HyenaBlock: state must be an EdificeHyenaState or None, got int"):
        block(x, 3)
    with pytest.raises(ValueError, match=r"HyenaBlock: state.conv must have shape \(2, 2, 8\), got \(1, 2, 8\)"):
        block(x, block.init_state(1))
    other = hyena.build_hyena_block(hidden_size=8, order=3, filter_size=3).init_state(2)
    with pytest.raises(ValueError, match=r"HyenaBlock: state.recent must have shape \(2, 2, 64, 8\)"):
        block(x, other)


def test_autocast_keeps_the_state_wide():
    torch.manual_seed(0)
    model, x = hyena.build(**SMALL).eval(), torch.randn(2, 12, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, state = model(x)
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float32, torch.int64}
    with torch.no_grad():
        assert off_by(y, model(x)[0]) < 0.1


def test_half_precision_keeps_time_apart():
    """Of bf16 weights, h is as of the same weights in float32, not as of times rounded to bf16."""
    torch.manual_seed(0)
    block = hyena.build_hyena_block(hidden_size=8, seq_len=1000).bfloat16()
    h = block.filters[0]().detach()
    assert h.dtype == torch.float32
    assert torch.equal(h, block.float().filters[0]().detach())


@pytest.mark.parametrize(
    ("options", "true", "edifices"),
    [({}, 4_457_472, 4_435_200), ({"num_layers": 2}, 2_265_856, 2_254_336)],
)
def test_param_count(options, true, edifices):
    assert hyena.param_count(**options) == true
    assert hyena.edifice_param_count(**options) == edifices
    with torch.device("meta"):
        model = hyena.build(embed_dim=287, **options)
    assert sum(p.numel() for p in model.parameters()) == true


def test_param_count_of_odd_sizes():
    for options in (SMALL, {**SMALL, "embed_dim": 8}, {**SMALL, "order": 0}, {**SMALL, "order": 3}):
        assert hyena.param_count(**options) == sum(p.numel() for p in hyena.build(**options).parameters())
