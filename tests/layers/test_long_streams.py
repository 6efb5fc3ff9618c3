"""Twenty thousand steps in float32 stay with the parallel pass."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from longstream.layers import HGRN, HGRN2, Hyena

STEPS = 20_000
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "hgrn": lambda: HGRN(8),
    "hgrn complex": lambda: HGRN(8, unit="complex", bias=True),
    "hgrn2": lambda: HGRN2(8, expand_ratio=4),
    "hyena": lambda: Hyena(8, max_seq_len=STEPS, filter_width=16, positional_width=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_steps_do_not_drift(name: str):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(1, STEPS, 8)
    with torch.no_grad():
        y, last = layer(x)
        state, outs = layer.init_state(1), []  # type: ignore[operator]
        for t in range(STEPS):
            y_t, state = layer.step(x[:, t], state)  # type: ignore[operator]
            outs.append(y_t)
    streamed = torch.stack(outs, dim=1)
    assert (streamed - y).abs().max() <= 1e-5 * y.abs().max()
    for now, then in zip(state, last, strict=True):
        assert now.shape == then.shape
        if now.is_floating_point() and now.numel():
            assert (now - then).abs().max() <= 1e-5 * then.abs().max().clamp(min=1e-6)
