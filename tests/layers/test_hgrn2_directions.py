"""HGRN2 in directions other than causal, against plain loops and against the authors' code."""

import pytest
import torch

from longstream.layers import HGRN2
from longstream.layers.hgrn2 import check_hgrn2
from longstream.layers.state import NoState
from longstream.ops import LowerBound
from longstream.testing import assert_equivalent
from tests import golden, plain_layers
from tests.cases import load_params
from tests.numerics import BFLOAT16_LAYER, SAME_AS_GOLDEN, assert_same, tensor
from tests.plain_layers import MASK, assert_same_with_gradients, randomize

D = 6
AUTHORS = {"query_activation": "sigmoid", "value_activation": "silu", "norm": "layer", "bias": True}
CONFIGS = {
    "authors'": {"expand_ratio": 2, **AUTHORS},
    "scaled": {"expand_ratio": 3, "query_scale": -0.3, "norm_eps": 0.5},
    # Of a single token one head gives q_t . k_t times v_t, and a norm takes out the factor but for its epsilon.
    "one head": {"expand_ratio": 6, "norm": "rms_no_weight", "norm_eps": 0.5, "value_activation": "silu"},
}
IMAGES = ("2d_parallel", "2d_series")


def make(config, direction, **kwargs):
    return randomize(HGRN2(D, direction=direction, **config, **kwargs).double())


def leaves(*shape):
    """An input and a lower bound."""
    return torch.randn(*shape, D).double().requires_grad_(), torch.rand(D).double().requires_grad_()


def check(module, config, x, bound):
    y, state = module(x, lower_bound=LowerBound(bound, 1 - bound))
    assert state == NoState()
    p, config = dict(module.named_parameters()), {**config, "direction": module.direction}
    exact = torch.stack([plain_layers.hgrn2(p, config, row, bound=bound) for row in x])
    assert_same_with_gradients((y,), (exact,), dict(module.named_parameters()) | {"x": x, "bound": bound})


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_bidirectional(name, T, backend):
    module = make(CONFIGS[name], "bidirectional", backend=backend)
    check(module, CONFIGS[name], *leaves(2, T))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("direction", IMAGES)
@pytest.mark.parametrize("name", CONFIGS)
def test_images(name, direction, size):
    module = make(CONFIGS[name], direction)
    check(module, CONFIGS[name], *leaves(2, *size))


def test_series_goes_along_the_height_first():
    """The two orders differ, so that the test above can tell them apart; and turning the image swaps them."""
    module = make(CONFIGS["authors'"], "2d_series")
    x, _ = leaves(2, 3, 4)
    y, turned = module(x)[0], module(x.transpose(1, 2))[0].transpose(1, 2)
    assert (y - turned).abs().max() > 0.01 * y.abs().max()
    bidirectional = make(CONFIGS["authors'"], "bidirectional")
    bidirectional.load_state_dict(module.state_dict())
    columns = torch.stack([bidirectional(x[:, :, j])[0] for j in range(4)], dim=2)
    assert_same("y", y, torch.stack([bidirectional(columns[:, i])[0] for i in range(3)], dim=1))


@pytest.mark.parametrize("direction", ["bidirectional", *IMAGES])
def test_nothing(direction):
    module = make(CONFIGS["scaled"], direction)
    for shape in [(2, 0)] if direction == "bidirectional" else [(0, 3, 4), (2, 0, 4), (2, 3, 0)]:
        assert module(torch.zeros(*shape, D).double())[0].shape == (*shape, D)


@pytest.mark.parametrize("way", ["padded", "packed", "batched"])
@pytest.mark.parametrize("name", CONFIGS)
def test_bidirectional_sequences_are_each_by_themselves(name, way):
    """As each alone: lengths 4, 4, 0, 7 and 1, wherever the pads are and whatever they hold, and packed in one row."""
    module = make(CONFIGS[name], "bidirectional")
    mask = torch.ones(5, 7) if way == "batched" else torch.tensor(MASK)
    x, bound = leaves(5, 7)
    tokens = [x[row, mask[row] == 1][None] for row in range(5)]
    alone = torch.cat([module(sequence, lower_bound=bound)[0] for sequence in tokens], 1)
    if way == "packed":
        bounds = torch.tensor([0, *(s.shape[1] for s in tokens)]).cumsum(0)
        y, state = module(torch.cat(tokens, 1), cu_seqlens=bounds, lower_bound=bound)
        exact = alone
    else:
        padded = torch.where(mask[..., None] == 1, x, torch.nan)
        y, state = module(padded, mask=mask if way == "padded" else None, lower_bound=bound)
        exact = torch.zeros_like(y)
        exact[mask == 1] = alone[0]
    assert state == NoState()
    assert_same_with_gradients((y,), (exact,), dict(module.named_parameters()) | {"x": x, "bound": bound})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_of_feeding_is_equivalent(name, dtype):
    """The same for longer sequences, in the ways that need no state."""
    module = make(CONFIGS[name], "bidirectional").to(dtype)
    assert_equivalent(module, lengths=(0, 1, 2, 63), lower_bound=torch.rand(D, dtype=dtype, requires_grad=True))


@pytest.mark.parametrize("direction", ["bidirectional", *IMAGES])
def test_bfloat16(direction):
    module = make(CONFIGS["authors'"], direction).bfloat16()
    exact = make(CONFIGS["authors'"], direction)
    exact.load_state_dict(module.state_dict())
    x = torch.randn(2, *((30,) if direction == "bidirectional" else (5, 6)), D).bfloat16()
    y, _ = module(x, lower_bound=torch.full((D,), 0.5))
    wanted, _ = exact(x.double(), lower_bound=torch.full((D,), 0.5).double())
    assert y.dtype == torch.bfloat16
    assert (y.double() - wanted).norm() <= BFLOAT16_LAYER * wanted.norm()


@pytest.mark.parametrize("name", golden.DIRECTIONS)
def test_golden(name):
    """The authors' code in float64: outputs and every gradient. It knows no states."""
    case = golden.layer_case(name)
    module = load_params(HGRN2(case.hidden_size, **case.config), case.params)
    wanted = {"x": tensor(case.x).requires_grad_(), "bound": tensor(case.bound).requires_grad_()}
    y, _ = module(wanted["x"], lower_bound=wanted["bound"])
    assert_same("y", y, case.y, SAME_AS_GOLDEN)
    wanted |= dict(module.named_parameters())
    grads = torch.autograd.grad(y, list(wanted.values()), tensor(case.d_y))
    assert set(wanted) == set(case.grads)
    for key, got in zip(wanted, grads, strict=True):
        assert_same(f"d {key}", got, case.grads[key], SAME_AS_GOLDEN)


def test_attributes():
    assert {d: HGRN2(D, expand_ratio=2, direction=d).causal for d in ("causal", "bidirectional", *IMAGES)} == {
        "causal": True,
        "bidirectional": False,
        "2d_parallel": False,
        "2d_series": False,
    }
    layer = HGRN2(D, expand_ratio=2, direction="2d_series")
    assert layer.gate_size == D
    assert layer.init_state(3) == NoState()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"direction": "2d"}, r"direction must be one of \('causal', .*'2d_series'\), got '2d'"),
        ({"direction": "2d_series", "conv_size": 2}, r"conv_size must be 0 .*'causal', got 2 and '2d_series'"),
        ({"direction": "bidirectional", "conv_size": 1}, r"conv_size must be 0 .*'causal', got 1 and 'bidirectional'"),
        ({"query_scale": "big"}, r"query_scale must be a number, got 'big'"),
        ({"bias": None}, r"bias must be True or False, got None"),
    ],
    ids=str,
)
def test_wrong_configuration(config, message):
    with pytest.raises(ValueError, match=f"^HGRN2: {message}"):
        HGRN2(D, expand_ratio=2, **config)


def test_the_configuration_is_checked_in_its_own_name():
    arguments = {"direction": "causal", "query_activation": "silu", "value_activation": "none", "query_scale": 1.0}
    arguments |= {"norm": "rms", "norm_eps": 1e-5, "bias": False, "conv_size": 0, "conv_bias": False}
    with pytest.raises(ValueError, match=r"^HGRN2Config: expand_ratio must be .*, got 0"):
        check_hgrn2("HGRN2Config", expand_ratio=0, **arguments)


@pytest.mark.parametrize("direction", ["bidirectional", *IMAGES])
def test_what_needs_a_causal_direction(direction):
    layer, state = HGRN2(D, expand_ratio=2, direction=direction), HGRN2(D, expand_ratio=2).init_state(2)
    x = torch.zeros(2, 3, D) if direction == "bidirectional" else torch.zeros(2, 3, 4, D)
    with pytest.raises(ValueError, match=rf"HGRN2: state must be None, got HGRN2State: '{direction}' needs a whole"):
        layer(x, state)
    with pytest.raises(RuntimeError, match=rf"HGRN2\.step: direction '{direction}' needs a whole sequence"):
        layer.step(torch.zeros(2, D), None)


@pytest.mark.parametrize("direction", IMAGES)
def test_images_have_no_pads(direction):
    layer, x = HGRN2(D, expand_ratio=2, direction=direction), torch.zeros(1, 3, 4, D)
    with pytest.raises(ValueError, match=r"HGRN2: x must have shape \(B, height, width, D=6\), got \(1, 3, 6\)"):
        layer(x[:, 0, :3])
    with pytest.raises(ValueError, match=rf"HGRN2: mask must be None, got Tensor: '{direction}' takes whole images"):
        layer(x, mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match=rf"HGRN2: cu_seqlens must be None, got list: '{direction}' takes whole"):
        layer(x, cu_seqlens=[0, 3])
