"""What the models' inits draw, and what a model sees and remembers with them before any training."""

import math

import numpy as np
import pytest
import torch

from longstream.edifice import hgrn, hyena
from tests.edifice import plain
from tests.numerics import assert_same


def moved_by_first_frame(model, frames=60):
    """How far the last vector goes, in its own lengths, when another first frame comes in."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, frames, model.embed_dim, generator=generator)
    other = x.clone()
    other[:, 0] = torch.randn(16, model.embed_dim, generator=generator)
    with torch.no_grad():
        y, z = model(x)[0], model(other)[0]
    return ((y - z).norm(dim=-1) / y.norm(dim=-1)).mean().item()


def test_hgrn_remembers_60_frames_with_the_modern_init_and_not_with_axons():
    torch.manual_seed(0)
    options = {"embed_dim": 32, "hidden_size": 32}
    assert moved_by_first_frame(hgrn.build(**options).eval()) > 1e-2
    assert moved_by_first_frame(hgrn.build(**options, init="axon").eval()) < 1e-5


def test_the_gates_of_the_modern_init():
    layer = hgrn.build_hgrn_layer(hidden_size=8, seq_len=60)
    f = torch.sigmoid(layer.forget_proj.bias.double())
    tau = -1 / f.log()
    assert_same("tau", tau, 60 ** (np.arange(1, 17) / 16), 1e-5)
    assert_same("1 - f", torch.sigmoid(layer.input_proj.bias.double()), 1 - f, 1e-6)
    assert (layer.forget_proj.weight == 0).all()
    alone = hgrn.build_hgrn_layer(hidden_size=8, layer_idx=9, window_size=100)  # one gate
    assert torch.sigmoid(alone.forget_proj.bias).item() == pytest.approx(math.exp(-1 / 100))


def test_axons_init_of_hgrn():
    torch.manual_seed(0)
    model = hgrn.build(embed_dim=50, hidden_size=64, num_layers=2, init="axon")
    p = plain.parameters(model)
    for name, array in p.items():
        if name.endswith(("bias", "beta")):
            assert (array == 0).all(), name
            continue
        limit = math.sqrt(3) if name.endswith("gamma") else math.sqrt(6 / sum(array.shape))
        assert 0.9 * limit < np.abs(array).max() <= limit * (1 + 1e-6), name
        assert array.std() == pytest.approx(limit / math.sqrt(3), rel=0.25), name
    assert {"input_projection/kernel", "final_norm/gamma"} <= set(p)


def test_norms_of_the_modern_init_are_plain():
    p = plain.parameters(hgrn.build(embed_dim=7, hidden_size=8))
    assert all((array == 1).all() for name, array in p.items() if name.endswith("gamma"))


def test_hyena_sees_history_with_the_modern_init_and_hardly_with_axons():
    torch.manual_seed(0)
    options = {"embed_dim": 32, "hidden_size": 32}
    assert moved_by_first_frame(hyena.build(**options).eval()) > 1e-2
    assert moved_by_first_frame(hyena.build(**options, init="axon").eval()) < 3e-3


@pytest.mark.parametrize("seq_len", [60, 1024])
def test_the_filters_of_the_modern_init(seq_len):
    """As large as the input on white noise, at every lag; Axon's are 0 at lag 0 and a straight line after it."""
    torch.manual_seed(0)
    network = hyena.build_hyena_block(hidden_size=256, seq_len=seq_len).filters[0]
    waves = dict(network.named_parameters())["dense1.weight"][:, 0] / math.pi  # half ones, in the window
    assert_same("waves", waves, np.geomspace(1, seq_len - 1, 64), 1e-5)
    h = network().detach()
    assert h.square().sum(1).mean().item() == pytest.approx(1, abs=0.3)
    assert h.square().mean(0).min() > 0.2 / seq_len
    axon = hyena.build_hyena_block(hidden_size=256, seq_len=seq_len, init="axon").filters[0]().detach()
    line = torch.linspace(0, 1, seq_len) * axon[:, -1:]
    assert (axon[:, 0] == 0).all()
    assert (axon - line).norm() < 0.05 * axon.norm()


def test_axons_init_of_hyena():
    torch.manual_seed(0)
    model = hyena.build(embed_dim=50, hidden_size=64, num_layers=1, order=1, init="axon")
    for name, array in plain.parameters(model).items():
        if name.endswith(("bias", "beta")):
            assert (array == 0).all(), name
            continue
        fans = 3 + 3 * 64 if name.endswith("short_dw_conv/kernel") else sum(array.shape)
        limit = math.sqrt(3) if name.endswith("gamma") else math.sqrt(6 / fans)
        assert 0.9 * limit < np.abs(array).max() <= limit * (1 + 1e-6), name
