"""GRU and LSTM as mixers: PyTorch's numbers, and the contract of every mixer."""

import pytest
import torch

from longstream.baselines import GRU, LSTM, GRUConfig, make_backbone
from longstream.baselines.recurrent import GRUState, LSTMState
from longstream.models import Backbone, HGRN2Config, ModelConfig, State
from longstream.testing import assert_equivalent


@pytest.mark.parametrize("kind", [GRU, LSTM])
@pytest.mark.parametrize("expand_ratio", [1, 2])
def test_the_contract_of_a_layer(kind: type, expand_ratio: int):
    torch.manual_seed(0)
    assert_equivalent(kind(6, expand_ratio=expand_ratio).double(), lengths=(0, 1, 2, 9))


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_contract_of_a_backbone(name: str):
    torch.manual_seed(0)
    backbone = make_backbone(name, 8, 2, intermediate_size=12, expand_ratio=2)
    assert isinstance(backbone, Backbone)
    assert_equivalent(backbone.double(), lengths=(0, 1, 7))


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_what_it_computes_is_what_torch_computes(kind: type):
    torch.manual_seed(0)
    layer, x = kind(5, expand_ratio=3).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    y, state = layer(x)
    h, last = layer.rnn(x)
    assert torch.equal(y, h @ layer.out_proj.weight.T)
    for mine, theirs in zip(state, last if isinstance(last, tuple) else [last], strict=True):
        assert torch.equal(mine, theirs[0])


def test_an_lstm_begins_with_open_forget_gates():
    layer = LSTM(4)
    backbone = Backbone(ModelConfig(hidden_size=4, num_layers=1, mixer=HGRN2Config(expand_ratio=4)))
    backbone.init_weights(layer.rnn)  # as every model initializes its parts
    total = layer.rnn.get_parameter("bias_ih_l0") + layer.rnn.get_parameter("bias_hh_l0")
    assert torch.equal(total[4:8], torch.ones(4))
    assert not torch.equal(total[:4], torch.ones(4))


@pytest.mark.parametrize(("kind", "state"), [(GRU, GRUState), (LSTM, LSTMState)])
def test_half_precision_keeps_a_wide_state(kind: type, state: type):
    torch.manual_seed(0)
    layer, x = kind(8), torch.randn(2, 5, 8)
    exact, last = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, narrow = layer(x)
    assert isinstance(narrow, state)
    assert all(torch.equal(a, b) for a, b in zip(last, narrow, strict=True))  # the recurrence is float32 all the same
    assert torch.allclose(exact, y.float(), atol=2e-2)
    y, narrow = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for tensor in narrow)


def test_a_state_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    backbone, x = make_backbone("lstm", 8, 2), torch.randn(1, 9, 8)
    _, state = backbone(x[:, :5])
    state.save(tmp_path / "state.safetensors")
    whole = backbone(x)[0][:, 5:]
    assert torch.allclose(backbone(x[:, 5:], State.load(tmp_path / "state.safetensors"))[0], whole, atol=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="GRUConfig: expand_ratio must be an integer >= 1, got 0"):
        GRUConfig(expand_ratio=0)
    layer = GRU(4)
    with pytest.raises(ValueError, match=r"GRU: x must have shape \(B, T, D=4\), got \(1, 2, 5\)"):
        layer(torch.zeros(1, 2, 5))
    with pytest.raises(TypeError, match="GRU: state must be an GRUState or None, got LSTMState"):
        layer(torch.zeros(1, 2, 4), LSTM(4).init_state(1))
    with pytest.raises(ValueError, match=r"GRU: state.h must have shape \(1, 4\), got \(2, 4\)"):
        layer(torch.zeros(1, 2, 4), layer.init_state(2))
    with pytest.raises(ValueError, match="GRU: lower_bound must be None, got one"):
        layer(torch.zeros(1, 2, 4), lower_bound=torch.zeros(4))
