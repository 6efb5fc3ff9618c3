"""Window: the outputs of a model that is run anew over the last W frames, however these come."""

import pytest
import torch

from longstream.models import Backbone, HGRN2Config, LanguageModel, ModelConfig
from longstream.models.window import Window, WindowState
from longstream.testing import assert_equivalent

CONFIG = ModelConfig(
    hidden_size=8, num_layers=2, intermediate_size=10, vocab_size=11, mixer=HGRN2Config(expand_ratio=4, conv_size=3)
)


@pytest.mark.parametrize("frames", [1, 4])
def test_the_contract(frames: int):
    torch.manual_seed(0)
    assert_equivalent(Window(Backbone(CONFIG).double(), frames), lengths=(0, 1, 2, 7))


def test_is_the_model_run_over_the_last_frames():
    model, x = Backbone(CONFIG).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    y, _ = Window(model, 4)(x)
    for t in range(9):
        again, _ = model(x[:, max(0, t - 3) : t + 1])
        assert torch.allclose(y[:, t], again[:, -1], atol=1e-12), t


def test_a_language_model_takes_ids():
    model, ids = LanguageModel(CONFIG).double(), torch.randint(11, (1, 70))
    window = Window(model, 5)
    y, _ = window(ids)
    state = None
    for t in range(70):
        logits, state = window.step(ids[:, t], state)
        assert torch.allclose(logits, y[:, t], atol=1e-12), t
    assert torch.allclose(y[:, -1], model(ids[:, -5:])[0][:, -1], atol=1e-12)


def test_bad_input():
    model = Backbone(CONFIG)
    with pytest.raises(ValueError, match="Window: frames must be an integer >= 1, got 0"):
        Window(model, 0)
    with pytest.raises(TypeError, match="state must be a WindowState or None, got tuple"):
        Window(model, 3)(torch.zeros(1, 2, 8), (1, 2))  # type: ignore[arg-type]
    state = WindowState(torch.zeros(1, 5, 8), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"state.frames must have shape \(1, 2, 8\), got \(1, 5, 8\)"):
        Window(model, 3)(torch.zeros(1, 2, 8), state)
