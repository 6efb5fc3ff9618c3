"""StateHistory: the last states, to return to."""

import pytest
import torch

from longstream.models import HGRN2Config, LanguageModel, ModelConfig, StateHistory


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(
        ModelConfig(hidden_size=12, num_layers=2, vocab_size=11, mixer=HGRN2Config(expand_ratio=4, conv_size=3))
    )


@torch.no_grad()
def test_replayed_tokens_give_the_same_logits(model: LanguageModel):
    history, logits = StateHistory(4), []
    state = model.init_state(1)
    history.push(state)
    for token in range(9):
        out, state = model.step(torch.tensor([token]), state)
        history.push(state)
        logits.append(out)
    assert len(history) == 4
    assert history.rollback(0) is state
    state = history.rollback(3)
    assert state.position.tolist() == [6]
    assert len(history) == 1
    for token in range(6, 9):
        out, state = model.step(torch.tensor([token]), state)
        history.push(state)
        assert torch.equal(out, logits[token])
    assert len(history) == 4


def test_a_push_keeps_a_reference_and_no_more_than_the_depth(model: LanguageModel):
    history = StateHistory(2)
    states = [model.init_state(1) for _ in range(5)]
    for state in states:
        history.push(state)
    assert history.nbytes == 3 * states[0].nbytes
    assert history.rollback(2) is states[2]
    assert len(history) == 0


def test_what_it_refuses(model: LanguageModel):
    with pytest.raises(ValueError, match="StateHistory: depth must be an integer >= 0, got -1"):
        StateHistory(-1)
    history = StateHistory(3)
    assert len(history) == 0
    with pytest.raises(ValueError, match="nothing has been pushed yet"):
        history.rollback(0)
    with pytest.raises(TypeError, match="state must be a State, got Tensor"):
        history.push(torch.zeros(1))  # type: ignore[arg-type]
    for _ in range(3):
        history.push(model.init_state(1))
    for frames in (3, -1, 1.0, True):
        with pytest.raises(ValueError, match=r"frames must be an integer in \[0, 2\], .* a depth of 3, got"):
            history.rollback(frames)  # type: ignore[arg-type]
    assert len(history) == 2
    history.clear()
    with pytest.raises(ValueError, match="nothing has been pushed yet"):
        history.rollback(0)
