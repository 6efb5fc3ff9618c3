"""States stand in rows bit for bit, both ways, and another's, or a poisoned one, is refused by its tensor's name."""

from dataclasses import replace

import pytest
import torch

from longstream.layers.attention import AttentionState
from longstream.models import State
from longstream.stream.compile import compile_step
from longstream.stream.layout import from_rows, to_rows
from tests.stream.programs import MODELS, NO_NATIVE, engine, forward, inputs, make

pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=str(NO_NATIVE))


def there(state, compiled):
    return to_rows(state, compiled.layers, compiled.fingerprint, compiled.state_size, compiled.tape_size)


def assert_equal(got, expected):
    assert got.fingerprint == expected.fingerprint
    assert [type(layer) for layer in got.layers] == [type(layer) for layer in expected.layers]
    for a, b in zip(got.tensors(), expected.tensors(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("frames", [0, 1, 4, 23])
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_for_bit(name, frames):
    model = make(name)
    compiled = compile_step(model)
    state = model.init_state(3) if not frames else forward(model, inputs(model, 3, frames))[1]
    rows, tape = there(state, compiled)
    assert rows.shape == (3, compiled.state_size)
    back = from_rows(rows, tape, state.position, compiled.layers, compiled.fingerprint)
    assert_equal(back, state)
    used = {t.untyped_storage().data_ptr() for t in back.tensors() if t.numel()}
    assert not used & {t.untyped_storage().data_ptr() for t in (rows, tape, state.position)}
    native = engine(model, 3)
    native.set(state)
    assert_equal(native.get(), state)


@pytest.mark.parametrize("name", ["attention", "hybrid", "hgrn2 conv"])
def test_rows_of_different_positions_keep_theirs(name):
    model = make(name)
    states = [forward(model, inputs(model, 1, frames))[1] for frames in (3, 30, 1, 8)]
    native = engine(model, 4)
    native.set(State.cat(states))
    assert native.position.tolist() == [3, 30, 1, 8]
    for row, state in enumerate(states):
        assert_equal(native.get([row]), state)
    assert_equal(native.get([2, 0]), State.cat([states[2], states[0]]))
    native.set(states[1], [3])
    assert_equal(native.get([3, 2]), State.cat([states[1], states[2]]))


def test_a_saved_state_goes_on_in_another_engine_bit_for_bit(tmp_path):
    model = make("hybrid")
    x = inputs(model, 2, 30)
    native, y, again = engine(model, 2), torch.empty(2, 16), torch.empty(2, 16)
    for t in range(20):
        native.step(x[:, t].contiguous(), y)
    native.get().save(tmp_path / "state.safetensors")
    other = engine(model, 2)
    other.set(State.load(tmp_path / "state.safetensors"))
    for t in range(20, 30):
        native.step(x[:, t].contiguous(), y)
        other.step(x[:, t].contiguous(), again)
        assert torch.equal(y, again)


def changed(state, layer, **tensors):
    layers = list(state.layers)
    layers[layer] = layers[layer]._replace(**tensors)
    return replace(state, layers=tuple(layers))


def test_refusals_name_the_tensor_and_change_nothing():
    model = make("hybrid")
    _, state = forward(model, inputs(model, 2, 5))
    native = engine(model, 2)
    native.set(state)
    attention, hgrn2 = state.layers[:2]
    poisoned = hgrn2.S.clone()
    poisoned[1, 0, 3, 2] = torch.nan
    wrong = {
        r"state must be a State, got tuple": tuple(state.layers),
        r"another model: expected fingerprint \w+, got abc": replace(state, fingerprint="abc"),
        r"must have 3 layers, got 1": replace(state, layers=state.layers[:1]),
        r"layers\.1\.mixer: must be of HGRN2State, got HGRNState": replace(
            state, layers=(attention, state.layers[2], state.layers[2])
        ),
        r"layers\.1\.mixer: S must be finite, got NaN": changed(state, 1, S=poisoned),
        r"layers\.1\.mixer: S must be float32, got torch\.float64": changed(state, 1, S=hgrn2.S.double()),
        r"layers\.1\.mixer: S must have shape \(2, 2, 8, 8\), got \(2, 8, 8\)": changed(state, 1, S=hgrn2.S[:, 0]),
        r"layers\.1\.mixer: S must be a tensor on the CPU, got one on meta": changed(state, 1, S=hgrn2.S.to("meta")),
        r"layers\.0\.mixer: v must have shape \(2, 6, 2, 8\)": changed(state, 0, v=attention.v[:, 1:]),
        r"layers\.0\.mixer: length must be \[5, 5\]": changed(state, 0, length=attention.length - 1),
        r"layers\.2\.mixer: conv must have shape \(2, 1, 32\)": changed(state, 2, conv=state.layers[2].conv[:1]),
        r"position must be int64 numbers >= 0": replace(state, position=state.position - 9),
        r"must have 2 rows, got 1": state.select([0]),
    }
    for message, bad in wrong.items():
        with pytest.raises((ValueError, TypeError), match=message):
            native.set(bad)
        assert_equal(native.get(), state)


def test_what_attention_has_not_seen_yet_is_zero():
    model = make("attention")
    native, y = engine(model, 1), torch.empty(1, 16)
    x = inputs(model, 1, 12)
    for t in range(12):
        native.step(x[:, t].contiguous(), y)
    native.step(x[:, 0].contiguous(), y, torch.tensor([True]))
    layer = native.get().layers[0]
    assert isinstance(layer, AttentionState)
    assert layer.length.tolist() == [1]
    assert not layer.k[:, :-1].any()
    assert layer.k[:, -1].any()
