"""WindowStream: the model over the last W frames, exactly, and nothing before them."""

import pytest
import torch

import longstream
from longstream.models import WindowState
from longstream.stream import WindowStream, sliding_window, unbounded
from tests.stream.streamed import LONGEST, E, close, make, make_frames, parallel, same

W = 4


@pytest.mark.parametrize("name", ["hgrn2", "hyena", "hybrid", "edifice-hgrn", "language", "forecast", "classify"])
def test_each_output_is_the_models_for_the_last_frames(name: str):
    model = make(name)
    x = make_frames(model, 2, 14)
    stream = sliding_window(model, W, batch_size=2, history=3)
    for t in range(9):
        wanted = parallel(model, x[:, max(0, t + 1 - W) : t + 1])[:, -1]
        assert close(stream.step(x[:, t]), wanted), t
    assert stream.position.tolist() == [9, 9]
    last = stream.state
    stream.rollback(2)
    for t in (7, 8):
        stream.step(x[:, t])
    assert same(stream.state, last)
    assert close(stream.prefill(x[:, 9:11]), parallel(model, x[:, 7:11])[:, -1])
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    y = stream.prefill(x[:, 11:14], mask=mask)
    assert close(y[0], parallel(model, x[:1, [9, 10, 11, 13]])[0, -1])
    assert not y[1].any()
    assert stream.position.tolist() == [13, 11]


def test_it_forgets_what_an_unbounded_stream_remembers():
    model = make("hgrn2")
    x = make_frames(model, 1, 20)
    other = x.clone()
    other[:, 0] += 3
    ends = []
    for make_it in (lambda: sliding_window(model, W), lambda: unbounded(model)):
        runs = []
        for frames in (x, other):
            stream = make_it()
            outs = [stream.step(frames[0, t]) for t in range(20)]
            runs.append(outs)
        ends.append(torch.equal(runs[0][-1], runs[1][-1]))
        assert not torch.equal(runs[0][W - 1], runs[1][W - 1])
    assert ends == [True, False]


def test_reset_select_load_and_policies():
    model = make("hgrn2")
    x = make_frames(model, 2, 12)
    stream = sliding_window(model, W, batch_size=2, nonfinite="pass", history=2)
    for t in range(6):
        stream.step(x[:, t], reset=[t == 4, False])
    assert stream.position.tolist() == [2, 6]
    assert close(stream.step(x[:, 6])[0], parallel(model, x[:1, 4:7])[0, -1])
    bad = x[:, 7].clone()
    bad[1, 0] = float("nan")
    stream.step(bad)
    assert stream.position.tolist() == [4, 7]
    assert stream.skipped == 1
    one = stream.select([1])
    assert isinstance(one, WindowStream)
    state = one.state
    assert isinstance(state.layers[0], WindowState)
    y = one.step(x[1, 7])
    assert close(y, parallel(model, x[1:, 4:8])[0, -1])
    again = sliding_window(model, W, state=longstream.State.deserialize(state.serialize()))
    assert torch.equal(again.step(x[1, 7]), y)
    state.layers[0].frames[0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="layer 0, frames must be finite"):
        again.load(state)


def test_missing_values_stay_in_the_window():
    model = make("forecast")
    x = make_frames(model, 1, 6)
    x[0, 2, -1] = float("nan")
    stream = sliding_window(model, W)
    for t in range(4):
        stream.step(x[:, t])
    assert close(stream.step(x[:, 4]), parallel(model, x[:, 1:5])[:, -1])
    stream.load(stream.state)
    assert close(stream.step(x[:, 5]), parallel(model, x[:, 2:6])[:, -1])


def test_models_that_look_both_ways_see_the_window():
    model = longstream.build("hgrn", embed_dim=E, hidden_size=16, num_layers=2, direction="bidirectional").eval()
    x = make_frames(model, 2, 7)
    stream = sliding_window(model, W, batch_size=2)
    for t in range(7):
        with torch.no_grad():
            wanted = model(x[:, max(0, t + 1 - W) : t + 1])[0]
        assert close(stream.step(x[:, t]), wanted), t
    with pytest.raises(RuntimeError, match="looks both ways and takes whole sequences; see sliding_window"):
        unbounded(model, backend="eager")


def test_what_it_refuses():
    model = make("hyena")
    for frames in (0, 1.5, True):
        with pytest.raises(ValueError, match="frames must be an integer >= 1"):
            sliding_window(model, frames)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=str(LONGEST)):
        sliding_window(model, LONGEST + 1)
    with pytest.raises(TypeError, match=r"sliding_window: model must be a torch\.nn\.Module, got str"):
        sliding_window("hyena", 4)
    with pytest.raises(ValueError, match="belongs to another model"):
        sliding_window(model, 5).load(sliding_window(model, 4).state)
    with pytest.raises(TypeError, match="weights"):
        sliding_window(model, 4, weights="int8")
    assert "window" in sliding_window(model, 4).why_not["native"]
    assert sliding_window(model, 1).step(torch.zeros(E)).shape == (16,)
