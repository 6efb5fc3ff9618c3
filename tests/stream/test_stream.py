"""Stream: the model's own numbers, frame by frame, however it is taken back, moved, restored or told nonsense."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import longstream
from longstream.stream import Stream, sliding_window, unbounded
from tests.stream.streamed import MODELS, E, both, close, make, make_frames, make_stream, parallel, same

every = pytest.mark.parametrize("name", MODELS)


@both
@every
def test_steps_are_the_parallel_pass_at_every_prefix(name: str, backend: str):
    model = make(name)
    x = make_frames(model, 2, 40)
    wanted = parallel(model, x)
    stream = make_stream(model, backend, batch_size=2)
    for t in range(40):
        assert close(stream.step(x[:, t]), wanted[:, t], wanted), t
    assert stream.position.tolist() == [40, 40]
    assert stream.backend == backend
    again = make_stream(model, backend, batch_size=2)
    y = again.prefill(x[:, :33])
    assert close(y, wanted[:, 32], wanted)
    for t in range(33, 40):
        assert close(again.step(x[:, t]), wanted[:, t], wanted), t


@both
@every
def test_the_model_goes_on_from_a_streams_state_and_back(name: str, backend: str):
    model = make(name)
    x = make_frames(model, 3, 24)
    wanted = parallel(model, x)
    stream = make_stream(model, backend, batch_size=3)
    for t in range(8):
        stream.step(x[:, t])
    state = stream.state
    for t in range(8, 16):  # by the model itself
        with torch.no_grad():
            out, state = model.step(x[:, t], state)
        y = out if isinstance(out, torch.Tensor) else out.prediction if out.logits is None else out.logits
        assert close(y, wanted[:, t], wanted)
    stream.load(state)
    assert same(stream.state, state)
    for t in range(16, 24):
        assert close(stream.step(x[:, t]), wanted[:, t], wanted), t
    assert stream.position.tolist() == [24] * 3


@both
@every
def test_rollback_and_replay_are_bit_identical(name: str, backend: str):
    model = make(name)
    x = make_frames(model, 3, 30)
    stream = make_stream(model, backend, batch_size=3, history=10)
    before = [stream.step(x[:, t]) for t in range(20)]
    state = stream.state
    assert stream.kept.tolist() == [10] * 3
    stream.rollback(10)
    assert stream.position.tolist() == [10] * 3
    for t in range(10, 20):
        assert torch.equal(stream.step(x[:, t]), before[t]), t
    assert same(stream.state, state)
    stream.rollback(4, [2, 0])
    assert stream.position.tolist() == [16, 20, 16]
    assert stream.kept.tolist() == [6, 10, 6]
    mixed = x[:, 16].clone()
    mixed[1] = x[1, 20]
    y = stream.step(mixed)
    assert close(y[[0, 2]], before[16][[0, 2]])  # in another company, of states gathered
    assert close(y[1], parallel(model, x[:, :21])[1, 20])


@both
def test_rollback_past_the_history_says_how_far_each_row_can_go(backend: str):
    stream = make_stream(make("hgrn2"), backend, batch_size=2, history=3)
    x = make_frames(stream._steps.model, 2, 6)
    for t in range(2):
        stream.step(x[:, t])
    stream.load(stream.state.select([0]), [1])
    stream.step(x[:, 2])
    before = stream.state
    with pytest.raises(ValueError, match=r"what each row has kept, got 2; rows can go back \{1: 1\} .*history is 3"):
        stream.rollback(2)
    assert same(stream.state, before)
    stream.rollback(2, 0)
    with pytest.raises(ValueError, match="frames must be an integer >= 0, got -1"):
        stream.rollback(-1)
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 2\), got \[2\]"):
        stream.rollback(1, [2])
    stream.rollback(0)
    assert stream.position.tolist() == [1, 3]


@both
@pytest.mark.parametrize("name", ["hgrn2", "hybrid", "hyena", "edifice-hyena", "forecast"])
def test_resets_begin_another_episode(name: str, backend: str):
    model = make(name)
    x = make_frames(model, 2, 20)
    stream = make_stream(model, backend, batch_size=2, history=2)
    for t in range(9):
        stream.step(x[:, t])
    rest = parallel(model, x[1:, 9:])
    whole = parallel(model, x[:1])
    for t in range(9, 20):
        y = stream.step(x[:, t], reset=[False, True] if t == 9 else None)
        assert close(y[1], rest[0, t - 9], rest), t
        assert close(y[0], whole[0, t], whole), t
    assert stream.position.tolist() == [20, 11]
    stream.reset([0])
    assert stream.position.tolist() == [0, 11]
    assert stream.kept.tolist() == [0, 2]
    for t in range(3):
        assert close(stream.step(x[:, t])[0], whole[0, t], whole)


@both
def test_fork_select_and_copy_rows(backend: str):
    model = make("hybrid")
    x = make_frames(model, 3, 20)
    wanted = parallel(model, x)
    stream = make_stream(model, backend, history=4)
    for t in range(6):
        stream.step(x[0, t])
    three = stream.fork(3)
    for t in range(6, 10):
        three.step(x[:1, t].repeat(3, 1))
    assert stream.position.tolist() == [6]
    assert three.position.tolist() == [10] * 3
    assert close(three.step(x[:1, 10].repeat(3, 1))[2], wanted[0, 10])
    wide = make_stream(model, backend, batch_size=3, history=4)
    for t in range(6):
        wide.step(x[:, t])
    picked = wide.select([2, 0, 2, 1])
    y = picked.step(x[[2, 0, 2, 1], 6])
    assert close(y, wanted[[2, 0, 2, 1], 6], wanted)
    assert wide.position.tolist() == [6] * 3
    assert picked.kept.tolist() == [1] * 4
    wide.copy_rows(1, [0, 2])
    assert wide.kept.tolist() == [4] * 3
    assert close(wide.step(x[[1, 1, 1], 6])[2], wanted[1, 6])
    wide.rollback(3)  # the history came along
    assert close(wide.step(x[[1, 1, 1], 4])[0], wanted[1, 4])
    with pytest.raises(ValueError, match="needs a stream of one row, got 3"):
        wide.fork(2)
    with pytest.raises(ValueError, match="at least one row"):
        wide.select([])


@both
def test_masked_prefill_is_prefill_without_the_pads(backend: str):
    for name in ("hgrn2", "language", "classify"):
        model = make(name)
        x = make_frames(model, 3, 9)
        stream = make_stream(model, backend, batch_size=3)
        mask = torch.tensor([[1] * 9, [0, 0, 1, 1, 0, 1, 1, 0, 0], [0] * 9])
        y = stream.prefill(x, mask=mask)
        some = x[1:2, mask[1] != 0]
        assert close(y[1], parallel(model, some)[0, -1])
        assert close(y[0], parallel(model, x[:1])[0, -1])
        assert stream.position.tolist() == [9, 4, 0]


@both
def test_kinds_of_frames(backend: str):
    model = make("hgrn")
    stream = make_stream(model, backend, history=1)
    frame = np.random.default_rng(0).normal(size=E)
    y = stream.step(frame)
    assert isinstance(y, np.ndarray)
    assert y.shape == (16,)
    assert y.dtype == np.float32

    def again(frame: object, **options: object) -> Any:
        stream.rollback(1)
        return stream.step(frame, **options)

    assert np.array_equal(again(frame.astype(np.float32)), y)
    assert np.array_equal(again(frame[None]), y[None])
    assert np.array_equal(again(frame[::-1].copy()[::-1]), y)
    assert np.array_equal(again(frame.astype(">f8")), y)
    frozen = frame.astype(np.float32)
    frozen.flags.writeable = False
    assert np.array_equal(again(frozen), y)
    assert torch.equal(again(torch.tensor(frame)), torch.from_numpy(y))
    assert torch.equal(again(torch.tensor(frame, requires_grad=True).float()), torch.from_numpy(y))
    out = torch.zeros(16)
    assert again(frame, out=out) is out
    assert torch.equal(out, torch.from_numpy(y))
    array = np.zeros((1, 16), dtype=np.float32)
    assert again(frame[None], out=array) is array
    assert np.array_equal(array[0], y)
    tokens = make_stream(make("language"), backend)
    logits = tokens.step(7)
    tokens.reset()
    assert torch.equal(tokens.step(torch.tensor([7])), logits[None])


def test_a_stream_is_not_pickled_or_copied():
    stream = unbounded(make("hgrn2"))
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"keep its state .* or use fork or select"):
            act(stream)


def test_dropout_is_off_and_the_models_mode_stays():
    model = with_dropout()
    x = make_frames(model, 1, 6)
    stream = Stream(model, backend="eager")
    y = [stream.step(x[:, t]) for t in range(6)]
    assert model.training
    wanted = parallel(model.eval(), x)
    assert close(torch.stack(y, 1), wanted)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)  # the twin has the same weights
    stream.reset()
    assert not close(torch.stack([stream.step(x[:, t]) for t in range(6)], 1), wanted)


@both
def test_dropout_stays_off_when_training_begins_later(backend: str):
    model = with_dropout().eval()
    stream = make_stream(model, backend)
    frames = make_frames(model, 1, 30)
    expected = parallel(model, frames)
    model.train()
    assert close(stream.step(frames[:, 0]), expected[:, 0])
    assert close(stream.prefill(frames[:, 1:]), expected[:, -1])


def with_dropout() -> torch.nn.Module:
    return longstream.build("hgrn2", embed_dim=E, hidden_size=16, num_layers=2, dropout=0.5).train()


def test_narrow_models_answer_in_float32():
    model = make("hgrn2").bfloat16()
    stream = Stream(model)
    assert "float32" in stream.why_not["native"]
    assert stream.step(np.ones(E)).dtype == np.float32
    assert stream.prefill(torch.ones(3, E)).dtype == torch.float32
    assert sliding_window(model, 3).step(torch.ones(E)).dtype == torch.float32
