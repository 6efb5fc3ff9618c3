"""What 250 steps of training make of a cue that was shown 10 frames before the end of a window of 60."""

import pytest
import torch
from torch import nn

from longstream.edifice import hgrn, hyena
from tests.toy import cue_recall

SIZES = {"embed_dim": 24, "hidden_size": 24, "num_layers": 2, "dropout": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("model", [hgrn, hyena], ids=["hgrn", "hyena"])
def test_a_cue_is_recalled(model):
    assert cue_recall(lambda: model.build(**SIZES)) >= 0.95


class _NoMemory(nn.Module):
    """What each frame alone says."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(24, 24)

    def forward(self, x):
        return torch.tanh(self.linear(x)), None


def test_without_memory_it_is_a_guess():
    assert 0.15 < cue_recall(_NoMemory) < 0.35
    assert cue_recall(_NoMemory, lag=0) > 0.95
