"""The native step of a model of sequences: its own step, with its units, missing values, pooling and forecasts."""

import pytest
import torch

from longstream.sequences import SequenceModel
from longstream.sequences.model import PooledState
from longstream.stream.compile import CannotCompile, compile_step
from longstream.stream.engine import NativeEngine
from longstream.stream.program import why_not_native
from tests.numerics import assert_same
from tests.sequences.small import small_data, small_model

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))

SAME_STEP = 1e-5  # as for the network alone; see tests/stream/test_compile_step.py
TASKS = {
    "classes": {"task": "classify"},
    "classes of the last": {"task": "classify", "pooling": "last"},
    "numbers": {"task": "regress"},
    "forecast": {"task": "forecast"},
    "forecast of what comes": {"task": "forecast", "residual": False, "horizon": 1},
    "forecast of some": {"task": "forecast", "target_channels": ["c", "a"]},
}


def missing_here(data, channel):
    for values in data.values[:3]:
        values[::3, channel] = float("nan")
    return data


def model_of(name, network="hgrn2", *, missing=True):
    data = small_data(least=30, most=40)
    return small_model(network, missing_here(data, 1) if missing else data, **TASKS[name])


def frames(rows=3, count=30, *, missing=True):
    x = torch.randn(rows, count, 3) * torch.tensor([1.0, 5.0, 25.0]) + torch.tensor([0.0, 10.0, 20.0])
    if missing:
        x[:, ::4, 1] = torch.nan
    return x


def answers(out):
    return out.logits if out.prediction is None else out.prediction


@torch.no_grad()
def own_steps(model, x):
    state, outs = model.init_state(len(x)), []
    for t in range(x.shape[1]):
        out, state = model.step(x[:, t], state)
        outs.append(answers(out))
    return torch.stack(outs, 1), state


def native_steps(native, x):
    outs = []
    for t in range(x.shape[1]):
        y = torch.empty(len(x), native.compiled.n_out)
        assert native.step(x[:, t].contiguous(), y) == 0
        outs.append(y.view(len(x), *native.compiled.output_shape))
    return torch.stack(outs, 1)


@pytest.mark.parametrize("network", ["hgrn", "hgrn2", "hyena", "hybrid", "edifice-hgrn", "edifice-hyena"])
def test_every_network_steps_as_it_does_itself(network):
    model = model_of("classes", network)
    x = frames()
    own, last = own_steps(model, x)
    native = NativeEngine(compile_step(model), 3)
    assert_same(network, native_steps(native, x), own, SAME_STEP)
    state = native.get()
    assert state.fingerprint == last.fingerprint
    for got, expected in zip(state.tensors(), last.tensors(), strict=True):
        assert_same(f"{network}: state", got, expected, SAME_STEP)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("missing", [True, False])
def test_every_task_answers_as_it_does_itself(task, missing):
    model = model_of(task, missing=missing)
    assert model.config.indicators == ([1] if missing else [])
    x = frames(missing=missing)
    own, last = own_steps(model, x)
    compiled = compile_step(model)
    assert compiled.output_shape == tuple(own.shape[2:])
    native = NativeEngine(compiled, 3)
    assert_same(task, native_steps(native, x), own, SAME_STEP)
    for got, expected in zip(native.get().tensors(), last.tensors(), strict=True):
        assert_same(f"{task}: state", got, expected, SAME_STEP)


def test_goes_on_from_a_whole_pass_and_back():
    model = model_of("classes")
    x = frames()
    with torch.no_grad():
        half, whole = model(x[:, :11]).state, answers(model(x))
    assert half is not None
    assert isinstance(half.layers[-1], PooledState)
    native = NativeEngine(compile_step(model), 3)
    native.set(half)
    for got, expected in zip(native.get().tensors(), half.tensors(), strict=True):
        assert torch.equal(got, expected)
    assert_same("the last answer", native_steps(native, x[:, 11:])[:, -1], whole, SAME_STEP)
    with torch.no_grad():
        after = answers(model(x[:, :4], state=native.get()))
        expected = answers(model(torch.cat([x, x[:, :4]], 1)))
    assert_same("the model goes on", after, expected, SAME_STEP)


def test_missing_values_are_for_channels_that_were_trained_with_them():
    model = model_of("classes")
    native = NativeEngine(compile_step(model), 2)
    y, x = torch.empty(2, 3), frames(2, 1, missing=False)[:, 0]
    for channel, value, bad in ((1, torch.nan, 0), (0, torch.nan, 1), (1, torch.inf, 1)):
        frame = x.clone()
        frame[1, channel] = value
        assert native.step(frame, y) == bad
    assert native.position.tolist() == [1, 1]


def test_a_forecast_of_a_network_as_wide_as_its_frames_keeps_the_last_value():
    data = small_data(least=30, most=40)
    model = small_model("hgrn", data, task="forecast", options={"hidden_size": 3, "num_layers": 1})
    assert model.features.input_projection is None  # so the network writes over the frame
    x = frames(missing=False)
    assert_same("forecast", native_steps(NativeEngine(compile_step(model), 3), x), own_steps(model, x)[0], SAME_STEP)


def test_refuses_networks_without_a_native_step():
    with pytest.raises(CannotCompile, match=r"features\.backbone\.layers\.0\.mixer .*no native step"):
        compile_step(model_of("classes", "gru"))
    both = small_model("hgrn2", small_data(), options={"direction": "bidirectional"})
    with pytest.raises(CannotCompile, match=r"the model \(SequenceModel\): .*looks both ways"):
        compile_step(both)

    class Mine(SequenceModel):
        pass

    with pytest.raises(CannotCompile, match="derived from SequenceModel"):
        compile_step(Mine(model_of("classes").config))
