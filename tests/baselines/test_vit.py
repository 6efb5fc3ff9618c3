"""ViT as a backbone of frames: it sees an image whole, knows places, and says what it cannot do."""

from typing import Any

import pytest
import torch

from longstream.baselines import NAMES, OF_FRAMES, build, make_backbone
from longstream.models import FeatureModel


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    return make_backbone("vit", 16, 2, window_size=9, **options).eval()


def test_it_sees_both_ways_and_knows_places():
    model, x = small(initializer_range=0.3), torch.randn(2, 9, 16)
    changed = x.clone()
    changed[:, 6] = torch.randn(16)
    before, after = model(x)[0], model(changed)[0]
    assert not model.causal
    assert (before - after).abs().amax(dim=(0, 2)).min() > 1e-4  # every place hears of it
    turned = model(x.flip(1))[0].flip(1)
    assert not torch.allclose(before, turned, atol=1e-3)


def test_pads_and_packing_are_as_if_not_there():
    model = FeatureModel(small(), 3, outputs="all").eval()
    x = torch.randn(3, 7, 3)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])
    alone = [model(row[kept][None])[0][0] for row, kept in zip(x, mask == 1, strict=True)]
    y = model(x.masked_fill(mask[..., None] == 0, float("nan")), mask=mask)[0]
    packed = model(x[mask == 1][None], cu_seqlens=[0, 7, 12, 15])[0]
    for got in ([y[i][mask[i] == 1] for i in range(3)], packed[0].split([7, 5, 3])):
        for one, expected in zip(got, alone, strict=True):
            assert torch.allclose(one, expected, atol=1e-5)
    assert (y[mask == 0] == 0).all()


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = build("vit", embed_dim=5, outputs="mean", hidden_size=16, num_layers=2, window_size=6)
    model(torch.randn(3, 6, 5))[0].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_what_it_cannot_do_it_says():
    model = small()
    with pytest.raises(ValueError, match="at most seq_len=9 patches, got 10"):
        model(torch.randn(1, 10, 16))
    for call in (lambda: model.init_state(1), lambda: model.step(torch.randn(1, 16))):
        with pytest.raises(RuntimeError, match="looks both ways"):
            call()
    assert "vit" in OF_FRAMES
    assert "vit" not in NAMES
