"""The HGRN layer against plain loops and against the authors' code, in values, states and every gradient."""

import pytest
import torch

from longstream.layers import HGRN, HGRNState
from longstream.layers.hgrn import check_hgrn
from longstream.ops import LowerBound
from longstream.testing import assert_equivalent
from tests import golden, golden_hgrn, plain_layers
from tests.cases import load_params
from tests.numerics import BFLOAT16_LAYER, SAME_AS_GOLDEN, assert_same, tensor
from tests.plain_layers import assert_same_with_gradients, randomize

D = 6
BY_PROJECTION = {"expand_ratio": 2, "norm": "layer", "norm_first": False, "gate_activation": "sigmoid", "bias": True}
CAUSAL = {
    "defaults": {},
    "authors'": {"unit": "complex", "norm": "layer", "bias": True},
    "by projection": BY_PROJECTION,
    "norm last": {"norm": "rms_no_weight", "norm_eps": 0.1, "norm_first": False},
    "conv": {"conv_size": 4, "gate_activation": "sigmoid"},
    "conv of one tap": {"conv_size": 1, "conv_bias": True, "expand_ratio": 3},
    "complex conv": {"unit": "complex", "expand_ratio": 2, "conv_size": 3, "conv_bias": True, "norm_eps": 0.5},
    "complex, norm last": {"unit": "complex", "norm_first": False, "norm": "rms_no_weight"},
}


def make(config, dtype=torch.float64):
    return randomize(HGRN(D, **config).to(dtype))


def random_bound(module):
    return torch.rand_like(module.forget_proj.weight[:, 0], requires_grad=True)


def run_plain(module, config, x, bound, state):
    """y, the last h and the last inputs of a batch."""
    p, is_complex, rows = dict(module.named_parameters()), module.unit == "complex", []
    for x_n, h, past in zip(x, *state, strict=True):
        h = torch.complex(h[0], h[1]) if is_complex else h
        y, h, past = plain_layers.hgrn(p, config, x_n, bound=bound, h=h, past=past)
        rows.append((y, torch.stack([h.real, h.imag]) if is_complex else h, past))
    return [torch.stack(tensors) for tensors in zip(*rows, strict=True)]


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal(name, T):
    module = make(CAUSAL[name])
    x, bound = torch.randn(2, T, D).double().requires_grad_(), random_bound(module)
    state = HGRNState(*(torch.randn_like(t).requires_grad_() for t in module.init_state(2)))
    y, last = module(x, state, lower_bound=LowerBound(bound, 1 - bound))
    assert isinstance(last, HGRNState)
    leaves = dict(module.named_parameters()) | {"x": x, "bound": bound, **state._asdict()}
    assert_same_with_gradients((y, *last), run_plain(module, CAUSAL[name], x, bound, state), leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CAUSAL)
def test_every_way_of_feeding_is_equivalent(name, dtype):
    assert_equivalent(make(CAUSAL[name], dtype), lengths=(0, 1, 2, 63))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_past_many_chunks(dtype):
    module = make(CAUSAL["complex conv"], dtype)
    assert_equivalent(module, lengths=(257,), lower_bound=random_bound(module))


@pytest.mark.parametrize("name", golden.HGRN_LAYERS)
def test_golden(name):
    """The authors' code and fla, in float64: outputs, final states and every gradient they recorded.

    All of it agrees, hgrn1_layer_leftpad too. With pads fla masks the input only and lets the state decay on them,
    where here it stays as it is; but a state of zeros, all that comes before the pads on the left, cannot decay.
    """
    case = golden_hgrn.layer_case(name)
    module = load_params(HGRN(case.hidden_size, **case.config), case.params)
    leaves, state = {"x": tensor(case.x).requires_grad_()}, None
    if case.h_in is not None:
        leaves["h"] = tensor(case.h_in).requires_grad_()
        state = HGRNState(leaves["h"], torch.zeros(case.num_sequences, 0, 2 * case.hidden_size))
    if case.bound is not None:
        leaves["bound"] = tensor(case.bound).requires_grad_()
    mask, cu_seqlens = (None if a is None else torch.from_numpy(a) for a in (case.mask, case.cu_seqlens))
    y, last = module(leaves["x"], state, mask=mask, cu_seqlens=cu_seqlens, lower_bound=leaves.get("bound"))
    loss = (tensor(case.d_y) * y).sum()
    assert_same("y", y, case.y, SAME_AS_GOLDEN)
    if case.h_out is not None:
        assert isinstance(last, HGRNState)
        loss = loss + (tensor(case.d_h) * last.h).sum()
        assert_same("h", last.h, case.h_out, SAME_AS_GOLDEN)
        if case.conv_out is not None:
            assert_same("conv", last.conv, case.conv_out, SAME_AS_GOLDEN)
    wanted = leaves | dict(module.named_parameters())
    grads = torch.autograd.grad(loss, list(wanted.values()))
    assert set(wanted) == set(case.grads)
    for key, got in zip(wanted, grads, strict=True):
        assert_same(f"d {key}", got, case.grads[key], SAME_AS_GOLDEN)


def test_the_state_holds_on_pads():
    """After the pads the state is what it was before them, to the bit; see test_golden."""
    module = make(CAUSAL["complex conv"])
    before = HGRNState(*(torch.randn_like(t) for t in module.init_state(2)))
    y, after = module(torch.randn(2, 3, D).double(), before, mask=torch.zeros(2, 3))
    assert not y.any()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_angles_start_as_the_authors():
    module = HGRN(D, unit="complex", expand_ratio=2, direction="2d", shared_theta=False)
    k = torch.arange(2 * D, dtype=torch.float64)
    for theta in (module.theta, module.theta_reverse):
        assert_same("theta", theta, 10000 ** (-2 * k / (2 * D)), 1e-7)


def test_parameters_and_sizes():
    module = HGRN(D, unit="complex", expand_ratio=2, conv_size=3, bias=True)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    E = module.gate_size
    assert E == 2 * D
    assert shapes == {
        "theta": (E,),
        "candidate_proj.weight": (2 * E, D),
        "candidate_proj.bias": (2 * E,),
        "forget_proj.weight": (E, D),
        "forget_proj.bias": (E,),
        "out_gate_proj.weight": (2 * E, D),
        "out_gate_proj.bias": (2 * E,),
        "out_proj.weight": (D, 2 * E),
        "out_proj.bias": (D,),
        "norm.weight": (2 * E,),
        "candidate_conv.weight": (2 * E, 3),
        "forget_conv.weight": (E, 3),
    }
    assert [tuple(t.shape) for t in module.init_state(4)] == [(4, 2, E), (4, 2, 3 * E)]
    assert [tuple(t.shape) for t in HGRN(D).init_state(4)] == [(4, D), (4, 0, 2 * D)]


@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_bfloat16(config):
    """bf16 in and out; the state, and what feeds it, stay float32."""
    module = make(config).bfloat16()
    exact = make(config)
    exact.load_state_dict(module.state_dict())
    x, bound = torch.randn(2, 70, D).bfloat16(), torch.rand(module.gate_size)
    y, state = module(x, lower_bound=bound)
    y_t, stepped = module.step(x[:, 0], state, lower_bound=bound)
    assert y.dtype == y_t.dtype == torch.bfloat16
    assert {t.dtype for t in (*state, *stepped)} == {torch.float32}
    wanted, _ = exact(x.double(), lower_bound=bound.double())
    assert (y.double() - wanted).norm() <= BFLOAT16_LAYER * wanted.norm()


@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_autocast_keeps_the_state_in_float32(config):
    module = make(config, torch.float32)
    x = torch.randn(2, 70, D)
    exact, _ = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = module(x)
        _, stepped = module.step(x[:, 0], state)
    assert {t.dtype for t in (*state, *stepped)} == {torch.float32}
    assert (y.float() - exact).norm() <= BFLOAT16_LAYER * exact.norm()


@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_init_state_dtype(dtype, state_dtype):
    """float32, or the dtype asked for where that is wider."""
    module = HGRN(D, conv_size=3)
    assert {s.dtype for s in module.init_state(2, dtype=dtype)} == {state_dtype}
    assert {s.dtype for s in module.to(dtype).init_state(2)} == {state_dtype}
    assert {s.device.type for s in module.init_state(2, device="meta")} == {"meta"}
    assert not any(s.any() for s in module.init_state(2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"expand_ratio": 0}, r"expand_ratio must be an integer >= 1, got 0"),
        ({"expand_ratio": 1.5}, r"expand_ratio.*1\.5"),
        ({"unit": "quaternion"}, r"unit must be one of \('real', 'complex'\), got 'quaternion'"),
        ({"direction": "backward"}, r"direction.*'backward'"),
        ({"norm": "batch"}, r"norm.*batch"),
        ({"norm_eps": -1.0}, r"norm_eps.*-1"),
        ({"gate_activation": "tanh"}, r"gate_activation.*tanh"),
        ({"conv_size": -1}, r"conv_size.*-1"),
        ({"bias": 1}, r"bias must be True or False, got 1"),
        ({"norm_first": "no"}, r"norm_first must be True or False, got 'no'"),
        ({"conv_size": 3, "direction": "bidirectional"}, r"conv_size must be 0 .*'causal', got 3 .*'bidirectional'"),
        ({"conv_size": 3, "direction": "2d"}, r"conv_size must be 0 .*'causal', got 3 .*'2d'"),
        ({"shared_theta": False, "direction": "2d"}, r"shared_theta must be True unless .*'real' and '2d'"),
        ({"shared_theta": False, "unit": "complex"}, r"shared_theta must be True unless .*'complex' and 'causal'"),
    ],
    ids=str,
)
def test_wrong_configuration(config, message):
    with pytest.raises(ValueError, match=f"^HGRN: {message}"):
        HGRN(D, **config)


def test_the_configuration_is_checked_in_its_own_name():
    arguments = {"unit": "real", "direction": "causal", "shared_theta": True, "norm": "rms", "norm_eps": 1e-5}
    arguments |= {"norm_first": True, "gate_activation": "silu", "bias": False, "conv_size": 0, "conv_bias": False}
    with pytest.raises(ValueError, match=r"^HGRNConfig: expand_ratio must be .*, got 0"):
        check_hgrn("HGRNConfig", expand_ratio=0, **arguments)


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'"):
        HGRN(D, backend="cuda")(torch.zeros(1, 2, D))


def test_wrong_input():
    layer = HGRN(D, conv_size=3, expand_ratio=2)
    x = torch.zeros(2, 5, D)
    with pytest.raises(ValueError, match=r"HGRN: x must have shape .*D=6.*got \(2, 5, 7\)"):
        layer(torch.zeros(2, 5, D + 1))
    with pytest.raises(TypeError, match=r"HGRN: x must be torch.float32 like the weights, got torch.float64"):
        layer(x.double())
    with pytest.raises(ValueError, match=r"mask must have shape .*B=2, T=5.*got \(2, 4\)"):
        layer(x, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"lower_bound must have shape \(D=12\), got \(6,\)"):
        layer(x, lower_bound=torch.zeros(D))
    with pytest.raises(ValueError, match=r"HGRN: state\.h must have shape \(2, 12\), got \(1, 12\)"):
        layer(x, layer.init_state(1))
    with pytest.raises(ValueError, match=r"HGRN: state\.conv must have shape \(2, 2, 24\), got \(2, 0, 24\)"):
        layer(x, HGRN(D, expand_ratio=2).init_state(2))
    with pytest.raises(TypeError, match=r"HGRN: state must be an HGRNState or None, got tuple"):
        layer(x, tuple(layer.init_state(2)))
    with pytest.raises(ValueError, match=r"HGRN.step: x_t must have shape .*got \(2, 1, 6\)"):
        layer.step(x[:, :1], layer.init_state(2))
