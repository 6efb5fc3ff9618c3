"""Stream: what it is told that is none of its kind, it says by name, and it stays what it was."""

import numpy as np
import pytest
import torch

from longstream.models import State
from longstream.stream import Stream
from tests.stream.streamed import LONGEST, VOCABULARY, E, both, make, make_frames, make_stream, same


@both
def test_frames_that_are_none(backend: str):
    stream = make_stream(make("hgrn"), backend, batch_size=2)
    x = torch.zeros(2, E)
    stream.step(x)
    before = stream.state
    for frame, error, said in [
        (torch.zeros(2, 4), ValueError, r"frame must have shape \(B=2, E=5\), got \(2, 4\)"),
        (torch.zeros(3, E), ValueError, r"frame must have shape \(B=2, E=5\), got \(3, 5\)"),
        (torch.zeros(E), ValueError, r"frame must have shape \(B=2, E=5\), got \(5,\)"),
        (torch.zeros(2, E, dtype=torch.long), TypeError, "frame must be floating point, got torch.int64"),
        ([0.0] * E, TypeError, "frame must be a tensor or a numpy array, got list"),
        (torch.zeros(2, E).to_sparse(), TypeError, r"must be a dense tensor with numbers in it, got torch.sparse_coo"),
        (torch.zeros(2, E, device="meta"), TypeError, r"must be a dense tensor .* on meta"),
        (np.array([["a"] * E] * 2), TypeError, "frames must hold numbers, got an array of <U1"),
    ]:
        with pytest.raises(error, match=said):
            stream.step(frame)
    with pytest.raises(ValueError, match=r"reset must be bool of shape \(2,\), got torch.bool \(1,\)"):
        stream.step(x, reset=[True])
    with pytest.raises(TypeError, match=r"Stream.step: reset must be a tensor, .* got 'yes'"):
        stream.step(x, reset="yes")
    with pytest.raises(
        TypeError, match=r"Stream.reset: rows must be a tensor, an array or a list of numbers, got 'all'"
    ):
        stream.reset("all")
    for out in (torch.zeros(2, 15), torch.zeros(2, 16).double(), torch.zeros(16, 2).t(), "out"):
        with pytest.raises(ValueError, match=r"out must be contiguous torch.float32 of shape \(2, 16\), got"):
            stream.step(x, out=out)
    with pytest.raises(ValueError, match=r"frames must have shape \(B=2, T>=1, E=5\), got \(2, 5\)"):
        stream.prefill(x)
    with pytest.raises(ValueError, match=r"mask must be 0 \(pad\) or 1 \(frame\) of shape \(2, 3\), got"):
        stream.prefill(torch.zeros(2, 3, E), mask=torch.full((2, 3), 2))
    array = np.zeros((2, 16), np.float32)
    array.flags.writeable = False
    with pytest.raises(ValueError, match="out must be an array that can be written to"):
        stream.step(x, out=array)
    assert same(stream.state, before)
    tokens = make_stream(make("language"), backend, batch_size=2)
    with pytest.raises(ValueError, match=rf"frame must lie in \[0, {VOCABULARY}\), got {VOCABULARY}"):
        tokens.step(torch.tensor([0, VOCABULARY]))
    with pytest.raises(TypeError, match=r"must be integers, the numbers of tokens, got torch[.]float32"):
        tokens.step(torch.zeros(2))
    assert tokens.position.tolist() == [0, 0]


def test_options_that_are_none():
    model = make("hgrn2")
    for options, said in [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"history": -1}, "history must be an integer >= 0, got -1"),
        ({"weights": "int4"}, r"weights must be one of \('float32', 'bfloat16', 'int8'\), got 'int4'"),
        ({"backend": "gpu"}, r"backend must be one of \('auto', 'native', 'eager'\), got 'gpu'"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"nonfinite": "zero"}, r"nonfinite must be one of \('raise', 'hold', 'pass'\), got 'zero'"),
    ]:
        with pytest.raises(ValueError, match=said):
            Stream(model, **options)
    with pytest.raises(RuntimeError, match="backend 'eager' with weights 'int8' cannot run this model"):
        Stream(model, weights="int8", backend="eager")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        Stream("hgrn2")
    with pytest.raises(TypeError, match="model must have step and init_state, got Linear"):
        Stream(torch.nn.Linear(2, 2), backend="eager")
    with pytest.raises(RuntimeError, match=r"backend .native. .* cannot run this model: .*float32"):
        Stream(make("hgrn2").double(), backend="native")
    long = Stream(make("hyena"), history=65)
    assert long.backend == "eager"
    assert "goes back 64 frames at most" in long.why_not["native"]
    double = Stream(make("hgrn2").double())
    assert double.backend == "eager"
    assert "float32" in double.why_not["native"]
    assert double.step(np.zeros(E)).dtype == np.float64


@both
@pytest.mark.parametrize("name", ["hgrn2", "hybrid", "hyena", "edifice-hyena", "modal"])
def test_states_that_do_not_fit_are_refused_by_name(name: str, backend: str):
    model = make(name)
    stream = make_stream(model, backend, batch_size=2)
    for t in range(5):
        stream.step(make_frames(model, 2, 5)[:, t])
    state = stream.state

    def other(i: int, change: object) -> State:
        tensors = [tensor.clone() for tensor in state.tensors()]
        tensors[i] = change(tensors[i])  # type: ignore[operator]
        return state.with_tensors(tensors)

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        tensor[1].view(-1)[0] = float("nan")
        return tensor

    first = next(i for i, tensor in enumerate(state.tensors()) if tensor.is_floating_point() and tensor[0].numel())
    for wrong, error, said in [
        ((1, 2), TypeError, "state must be a longstream.models.State, got tuple"),
        (
            State(state.layers, state.position, "other"),
            ValueError,
            r"another model: expected fingerprint \w+, got other",
        ),
        (state.select([0]), ValueError, "state must have 2 rows, got 1"),
        (State(state.layers[:1], state.position, state.fingerprint), ValueError, "must have 2 layers, got 1"),
        (other(first, lambda t: t.double()), TypeError, r"layer 0, \w+ must be torch.float32, got torch.float64"),
        (other(first, lambda t: t[..., 1:]), ValueError, r"layer 0, \w+ must have shape"),
        (other(first, poisoned), ValueError, r"layer 0, \w+ must be finite, got NaN or infinity in the rows \[1\]"),
        (other(-1, lambda t: t - 99), ValueError, "position must be int64 >= 0"),
        (other(-1, lambda t: t[:, None]), ValueError, r"position must have shape \(B,\), got \(2, 1\)"),
        (other(-1, lambda t: t[0]), ValueError, r"position must have shape \(B,\), got \(\)"),
    ]:
        with pytest.raises(error, match=said):
            stream.load(wrong)  # type: ignore[arg-type]
    assert same(stream.state, state)
    with pytest.raises(ValueError, match="belongs to another model"):
        stream.load(make_stream(make("edifice-hgrn"), backend, batch_size=2).state)
    stream.load(state.select([1]), [0])
    assert same(stream.state.select([0]), state.select([1]))


@both
@pytest.mark.parametrize("name", ["hyena", "modal"])
def test_the_end_of_a_filter_is_the_end_after_refused_resets_and_rollbacks_too(name: str, backend: str):
    model = make(name)
    x = make_frames(model, 1, LONGEST)
    spoiled = x[:, 0].clone()
    spoiled[0, 1] = float("nan")
    for nonfinite in ("raise", "pass"):
        stream = make_stream(model, backend, history=2, nonfinite=nonfinite)
        stream.prefill(x)
        before = stream.state
        if nonfinite == "raise":
            with pytest.raises(ValueError, match="frame must be finite"):
                stream.step(spoiled, reset=True)
        else:
            stream.step(spoiled, reset=True)
        with pytest.raises(ValueError, match=f"at most max_seq_len={LONGEST}"):
            stream.step(x[:, 0])
        assert same(stream.state, before)
        stream.step(x[:, 0], reset=True)
        if stream.kept.item():  # not where the inputs are on a tape, which begins anew
            stream.rollback(1)
            with pytest.raises(ValueError, match=f"at most max_seq_len={LONGEST}"):
                stream.step(x[:, 0])


@both
def test_a_stream_made_in_inference_mode_goes_on_outside(backend: str):
    model = make("hgrn2")
    x = make_frames(model, 1, 4)
    with torch.inference_mode():
        stream = make_stream(model, backend, history=2, nonfinite="hold")
        stream.step(x[:, 0])
    y = stream.step(x[:, 1])
    stream.rollback(1)
    assert torch.equal(stream.step(x[:, 1]), y)
    stream.step(x[:, 2], reset=True)
    stream.load(stream.state)
    stream.prefill(x)
    stream.reset()
    assert stream.position.tolist() == [0]


@both
def test_arrays_of_any_layout(backend: str):
    stream = make_stream(make("hgrn2"), backend)
    wanted = stream.step(np.ones(E, np.float32))
    fields = np.ones(E, dtype=[("a", "f4"), ("b", "u1")])["a"]  # strides that are no whole numbers
    unaligned = np.frombuffer(bytearray(1) + np.ones(E, np.float32).tobytes(), np.float32, offset=1)
    for frame in (fields, unaligned, np.ones(2 * E, np.float32)[::-2]):
        stream.reset()
        assert np.array_equal(stream.step(frame), wanted)
