"""HGRN in directions other than causal, against plain loops; the authors' modules are in test_hgrn.py."""

import pytest
import torch

from longstream.layers import HGRN
from longstream.layers.state import NoState
from longstream.ops import LowerBound
from longstream.testing import assert_equivalent
from tests import plain_layers
from tests.numerics import BFLOAT16_LAYER
from tests.plain_layers import MASK, assert_same_with_gradients, randomize

D = 6
BIDIRECTIONAL = {
    "real": {"direction": "bidirectional", "norm": "layer", "bias": True},
    "one theta": {"direction": "bidirectional", "unit": "complex", "expand_ratio": 2},
    "two thetas": {"direction": "bidirectional", "unit": "complex", "shared_theta": False, "norm_first": False},
}
IMAGES = {
    "real": {"direction": "2d", "expand_ratio": 2, "norm_first": False},
    "one theta": {"direction": "2d", "unit": "complex", "norm": "layer", "bias": True},
    "two thetas": {"direction": "2d", "unit": "complex", "shared_theta": False, "gate_activation": "sigmoid"},
}


def make(config, **kwargs):
    return randomize(HGRN(D, **config, **kwargs).double())


def leaves(module, *shape):
    """An input and a lower bound."""
    return torch.randn(*shape, D).double().requires_grad_(), torch.rand(module.gate_size).double().requires_grad_()


def check(module, config, x, bound):
    y, state = module(x, lower_bound=LowerBound(bound, 1 - bound))
    assert state == NoState()
    p = dict(module.named_parameters())
    exact = torch.stack([plain_layers.hgrn(p, config, row, bound=bound)[0] for row in x])
    assert_same_with_gradients((y,), (exact,), p | {"x": x, "bound": bound})


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional(name, T, backend):
    module = make(BIDIRECTIONAL[name], backend=backend)
    check(module, BIDIRECTIONAL[name], *leaves(module, 2, T))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_2d(name, size):
    module = make(IMAGES[name])
    check(module, IMAGES[name], *leaves(module, 2, *size))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_2d_of_nothing(shape):
    assert make(IMAGES["two thetas"])(torch.zeros(*shape, D).double())[0].shape == (*shape, D)


@pytest.mark.parametrize("way", ["padded", "packed", "batched"])
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_bidirectional_sequences_are_each_by_themselves(name, way):
    """As each alone: lengths 4, 4, 0, 7 and 1, wherever the pads are and whatever they hold, and packed in one row."""
    module = make(BIDIRECTIONAL[name])
    mask = torch.ones(5, 7) if way == "batched" else torch.tensor(MASK)
    x, bound = leaves(module, 5, 7)
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
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_every_way_of_feeding_is_equivalent(name, dtype):
    """The same for longer sequences, in the ways that need no state."""
    module = make(BIDIRECTIONAL[name]).to(dtype)
    bound = torch.rand(module.gate_size, dtype=dtype, requires_grad=True)
    assert_equivalent(module, lengths=(0, 1, 2, 63), lower_bound=bound)


@pytest.mark.parametrize("config", [*BIDIRECTIONAL.values(), *IMAGES.values()], ids=str)
def test_half_precision(config):
    """bf16 parameters, and autocast with float32 ones."""
    half, exact = make(config).bfloat16(), make(config)
    exact.load_state_dict(half.state_dict())
    x = torch.randn(2, *((5, 6) if config["direction"] == "2d" else (30,)), D).bfloat16()
    bound = torch.rand(exact.gate_size)
    wanted, _ = exact(x.double(), lower_bound=bound.double())
    y, _ = half(x, lower_bound=bound)
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = exact.float()(x.float(), lower_bound=bound)
    for got in (y, cast):
        assert (got.double() - wanted).norm() <= BFLOAT16_LAYER * wanted.norm()


def test_attributes():
    assert [HGRN(D, direction=d).causal for d in ("causal", "bidirectional", "2d")] == [True, False, False]
    assert HGRN(D, direction="2d").init_state(4) == NoState()
    assert [name for name, _ in make(IMAGES["two thetas"]).named_parameters()][:2] == ["theta", "theta_reverse"]


@pytest.mark.parametrize("direction", ["bidirectional", "2d"])
def test_what_needs_a_causal_direction(direction):
    layer, state = HGRN(D, direction=direction), HGRN(D).init_state(2)
    x = torch.zeros(2, 3, 4, D) if direction == "2d" else torch.zeros(2, 3, D)
    with pytest.raises(ValueError, match=rf"HGRN: state must be None, got HGRNState: '{direction}' needs a whole"):
        layer(x, state)
    with pytest.raises(RuntimeError, match=rf"HGRN\.step: direction '{direction}' needs a whole sequence"):
        layer.step(torch.zeros(2, D), None)


def test_images_have_no_pads():
    layer, x = HGRN(D, direction="2d"), torch.zeros(1, 3, 4, D)
    with pytest.raises(ValueError, match=r"HGRN: x must have shape \(B, height, width, D=6\), got \(1, 3, 6\)"):
        layer(x[:, 0, :3])
    with pytest.raises(ValueError, match=r"HGRN: mask must be None, got Tensor: '2d' takes whole images"):
        layer(x, mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"HGRN: cu_seqlens must be None, got list: '2d' takes whole images"):
        layer(x, cu_seqlens=[0, 3])
