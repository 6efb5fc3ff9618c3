"""Baselines of frames: every name makes a backbone that pads, packs and trains, or says what it cannot do."""

from typing import Any

import pytest
import torch

from longstream.baselines import NAMES, build, make_backbone
from longstream.models import FeatureModel

STATELESS = ("llama", "mamba", "mamba2")
SMALL = {"hidden_size": 16, "num_layers": 2}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_pads_and_packing_are_as_if_not_there(name: str):
    torch.manual_seed(0)
    model = FeatureModel(make_backbone(name, 16, 2), 3, outputs="all").eval()
    x = torch.randn(4, 7, 3)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [0] * 7])
    alone = [model(row[kept][None])[0][0] for row, kept in zip(x, mask == 1, strict=True) if kept.any()]
    x[mask == 0] = float("nan")
    y, _ = model(x, mask=mask)
    packed, _ = model(x[mask == 1][None], cu_seqlens=[0, 7, 12, 15, 15])
    for got in ([y[i][mask[i] == 1] for i in range(3)], packed[0].split([7, 5, 3])):
        for one, expected in zip(got, alone, strict=True):
            assert torch.allclose(one, expected, atol=1e-5)
    assert (y[mask == 0] == 0).all()
    same, _ = model(x[:1].reshape(1, 7, 3)[:, :6], cu_seqlens=[0, 3, 6])  # equal lengths take a shorter way
    assert torch.allclose(same[0, 3:], model(x[:1, 3:6])[0][0], atol=1e-5)


def test_every_parameter_learns(name: str):
    torch.manual_seed(0)
    model = build(name, embed_dim=5, outputs="mean", **SMALL)
    y, _ = model(torch.randn(3, 6, 5))
    assert y.shape == (3, 16)
    y.square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_it_looks_back_only(name: str):
    torch.manual_seed(0)
    model, x = make_backbone(name, 16, 2).eval(), torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 6:] += 1
    before, after = model(x)[0], model(changed)[0]
    assert model.causal
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_recurrent_ones_go_from_frame_to_frame(name: str):
    torch.manual_seed(0)
    model, x = build(name, embed_dim=3, outputs="all", **SMALL), torch.randn(2, 6, 3)
    state, steps = model.init_state(2), []
    for t in range(6):
        y, state = model.step(x[:, t], state)
        steps.append(y)
    assert torch.allclose(torch.stack(steps, dim=1), model(x)[0], atol=1e-6)


@pytest.mark.parametrize("name", STATELESS)
def test_transformers_ones_say_that_they_have_no_state(name: str):
    backbone: Any = make_backbone(name, 16, 1)
    y, state = backbone(torch.zeros(2, 0, 16))
    assert y.shape == (2, 0, 16)
    assert state is None
    refusal = rf"TransformersBackbone\('{name}'\): {{}} needs a state, which this baseline does not have"
    with pytest.raises(RuntimeError, match=refusal.format("step")):
        backbone.step(torch.zeros(2, 16))
    with pytest.raises(RuntimeError, match=refusal.format("init_state")):
        backbone.init_state(2)
    with pytest.raises(ValueError, match=refusal.format("forward from a state")):
        backbone(torch.zeros(1, 2, 16), state=object())


def test_options():
    gru: Any = make_backbone("gru", 8, 1, expand_ratio=3)
    assert gru.layers[0].mixer.state_size == 24
    llama: Any = make_backbone("llama", 8, 1, intermediate_size=20)
    assert llama.model.config.intermediate_size == 20
    mamba: Any = make_backbone("mamba", 8, 1, state_size=4)
    assert mamba.model.config.state_size == 4
    for name in NAMES:  # as longstream.build takes them
        make_backbone(name, 8, 1, window_size=60, seq_len=100)
    with pytest.raises(ValueError, match=r"make_backbone: name must be one of .*'llama'.*, got 'transformer'"):
        make_backbone("transformer")
    with pytest.raises(TypeError, match=r"make_backbone\('gru'\): unknown option 'expand'"):
        make_backbone("gru", expand=2)
    with pytest.raises(TypeError, match=r"make_backbone\('mamba'\): unknown option 'dropout'"):
        make_backbone("mamba", dropout=0.1)
    with pytest.raises(ValueError, match=r"make_backbone\('lstm'\): hidden_size must be an integer >= 1, got 0"):
        make_backbone("lstm", 0)
    with pytest.raises(ValueError, match="llama: hidden_size must be even for rotary positions, got 7"):
        make_backbone("llama", 7)
