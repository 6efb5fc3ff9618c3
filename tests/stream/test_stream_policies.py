"""NaN and infinite numbers: what each policy does, and that no state is ever poisoned."""

import pytest
import torch

from longstream.layers import HGRN, Hyena
from tests.stream.streamed import LONGEST, E, both, close, make, make_frames, make_stream, parallel, same

NAN, INF = float("nan"), float("inf")


def spoiled(x: torch.Tensor) -> torch.Tensor:
    """Frames (B, E) with bad numbers in row 1, channels 2 and 4."""
    x = x.clone()
    x[1, 2], x[1, 4] = NAN, -INF
    return x


@both
def test_raise_names_row_and_channel_and_changes_nothing(backend: str):
    model = make("hgrn2")
    x = make_frames(model, 3, 6)
    stream = make_stream(model, backend, batch_size=3, history=2)
    for t in range(3):
        stream.step(x[:, t])
    before = stream.state
    with pytest.raises(ValueError, match="got nan in row 1, channel 2, and 1 more; the state stays what it was"):
        stream.step(spoiled(x[:, 3]))
    with pytest.raises(ValueError, match="got -inf in row 1, channel 4"):
        stream.step(spoiled(x[:, 3]).nan_to_num(nan=0.0, neginf=-INF), reset=torch.ones(3, dtype=torch.bool))
    assert same(stream.state, before)
    assert stream.kept.tolist() == [2] * 3
    assert close(stream.step(x[:, 3]), parallel(model, x)[:, 3])
    frames = x.clone()
    frames[2, 5, 0] = INF
    before = stream.state
    with pytest.raises(ValueError, match="got inf in row 2, frame 5, channel 0; the state stays"):
        stream.prefill(frames)
    assert same(stream.state, before)
    stream.prefill(frames, mask=torch.tensor([[1] * 6, [1] * 6, [1] * 5 + [0]]))  # nobody looks at a pad


@both
def test_hold_is_a_zero_order_hold_by_channel(backend: str):
    model = make("hgrn2")
    x = make_frames(model, 2, 8)
    dirty, clean = x.clone(), x.clone()
    dirty[1, 0, 3], clean[1, 0, 3] = NAN, 0.0  # before the first good one
    dirty[0, 3:6, 1], clean[0, 3:6, 1] = INF, x[0, 2, 1]
    dirty[1, 5], clean[1, 5] = NAN, x[1, 4]
    wanted = parallel(model, clean)
    stream = make_stream(model, backend, batch_size=2, nonfinite="hold")
    for t in range(8):
        assert close(stream.step(dirty[:, t]), wanted[:, t], wanted), t
        assert stream.skipped == 0
    assert torch.equal(stream.held, x[:, 7])
    again = make_stream(model, backend, batch_size=2, nonfinite="hold")
    for t in range(4):
        again.step(dirty[:, t])
    y = again.prefill(dirty[:, 4:])
    assert close(y, wanted[:, 7], wanted)
    assert torch.equal(again.held, x[:, 7])
    pads = torch.full((2, 2, E), 7.0)
    again.prefill(torch.cat([pads, x[:, :1]], 1), mask=torch.tensor([[0, 0, 1]] * 2))
    assert torch.equal(again.held, x[:, 0])


@both
def test_what_is_held_is_no_part_of_the_state(backend: str):
    model = make("hgrn2")
    x = make_frames(model, 2, 8)
    stream = make_stream(model, backend, batch_size=2, nonfinite="hold", history=3)
    for t in range(4):
        stream.step(x[:, t])
    stream.rollback(3)
    stream.load(stream.state)
    assert torch.equal(stream.held, x[:, 3])
    twin = make_stream(model, backend, batch_size=2, nonfinite="hold", state=stream.state)
    twin.held = stream.held
    bad = torch.full((2, E), NAN)
    assert torch.equal(twin.step(bad), stream.step(bad))
    stream.step(bad, reset=[True, False])  # another episode holds nothing of the one before
    wanted = make_stream(model, backend, batch_size=2).step(torch.zeros(2, E))
    assert close(stream.select([0]).step(bad[:1] * 0), make_stream(model, backend).prefill(torch.zeros(1, 2, E)))
    stream.reset([1])
    assert not stream.held.any()
    assert close(stream.step(bad)[1], wanted[1])
    with pytest.raises(ValueError, match=r"held must be a finite tensor of shape \(2, 5\)"):
        stream.held = bad


@both
def test_pass_lets_the_numbers_through_but_not_into_the_state(backend: str):
    model = make("hgrn2")
    x = make_frames(model, 3, 6)
    wanted = parallel(model, x)
    stream = make_stream(model, backend, batch_size=3, nonfinite="pass", history=4)
    for t in range(3):
        stream.step(x[:, t])
    before = stream.state.select([1])
    y = stream.step(spoiled(x[:, 3]))
    assert not y[1].isfinite().all()
    assert close(y[[0, 2]], wanted[[0, 2], 3], wanted)
    assert stream.skipped == 1
    assert stream.position.tolist() == [4, 3, 4]
    assert stream.kept.tolist() == [4, 3, 4]
    assert same(stream.state.select([1]), before)
    late = x[:, 4].clone()
    late[1] = x[1, 3]
    y = stream.step(late)
    assert stream.skipped == 0
    assert close(y[1], wanted[1, 3], wanted)
    assert close(y[0], wanted[0, 4], wanted)
    stream.rollback(2)
    assert stream.position.tolist() == [3, 2, 3]
    frames = x[:, 3:].clone()
    frames[0, 1, 1] = NAN
    y = stream.prefill(frames)
    assert stream.position.tolist() == [3, 5, 6]
    assert stream.skipped == 1
    assert y[0].isnan().all()
    assert close(y[2], wanted[2, 5], wanted)


@both
@pytest.mark.parametrize("nonfinite", ["raise", "hold", "pass"])
def test_an_output_that_is_not_finite_is_not_committed(backend: str, nonfinite: str):
    model = make("hgrn2")
    with torch.no_grad():
        model.input_projection.weight[:, 0] = 1e38  # a frame that is finite, and too large for float32
    stream = make_stream(model, backend, batch_size=2, nonfinite=nonfinite, history=1)
    x = torch.randn(2, E)
    x[:, 0] = 0
    stream.step(x)
    before = stream.state
    large = x.clone()
    large[1, 0] = 1e30
    if nonfinite == "raise":
        with pytest.raises(
            FloatingPointError, match=r"not finite, though the frames are: the outputs or states of the rows \[1\]"
        ):
            stream.step(large)
        with pytest.raises(FloatingPointError, match=r"the rows \[1\]"):
            stream.prefill(large[:, None])
        assert same(stream.state, before)
    else:
        y = stream.step(large)
        assert y[0].isfinite().all()
        assert not y[1].isfinite().all()
        assert stream.position.tolist() == [2, 1]
        assert same(stream.state.select([1]), before.select([1]))
        stream.prefill(large[:, None])
        assert stream.position.tolist() == [3, 1]
        assert stream.skipped == 1
    assert stream.step(x).isfinite().all()


@both
@pytest.mark.parametrize("nonfinite", ["raise", "hold", "pass"])
def test_missing_values_of_a_model_that_knows_them(backend: str, nonfinite: str):
    model = make("forecast")  # NaN is allowed in the last channel
    x = make_frames(model, 2, 6)
    x[0, 2:4, -1] = NAN
    wanted = parallel(model, x)
    stream = make_stream(model, backend, batch_size=2, nonfinite=nonfinite)
    for t in range(4):
        assert close(stream.step(x[:, t]), wanted[:, t], wanted)
    assert stream.position.tolist() == [4, 4]
    assert close(stream.prefill(x[:, 4:]), wanted[:, 5], wanted)
    bad = x[:, 5].clone()
    bad[1, -1] = INF  # infinite is never missing
    bad[0, 0] = NAN
    twin = make_stream(model, backend, batch_size=2, state=stream.state)
    if nonfinite == "raise":
        with pytest.raises(ValueError, match="got nan in row 0, channel 0, and 1 more"):
            stream.step(bad)
    elif nonfinite == "hold":
        assert close(stream.step(bad), twin.step(x[:, 5]))
    else:
        assert stream.step(bad).isnan().all()
        assert stream.skipped == 2
    assert stream.state.tensors()[0].isfinite().all()


@both
def test_rows_that_do_not_go_on_hold_what_they_held(backend: str):
    model = make("hgrn2")
    with torch.no_grad():
        model.input_projection.weight[:, 0] = 1e38  # a frame that is finite, and too large for float32
    x = torch.randn(2, E)
    x[:, 0] = 0
    large = x * 2
    large[1, 0] = 1e30
    stream = make_stream(model, backend, batch_size=2, nonfinite="hold")
    for go_on in (
        lambda: stream.step(large),
        lambda: stream.step(large, reset=torch.tensor([True, True])),
        lambda: stream.prefill(large[:, None]),
    ):
        stream.step(x)
        go_on()
        assert stream.skipped == 1
        assert torch.equal(stream.held, torch.stack([large[0], x[1]]))


@both
def test_a_refused_step_leaves_what_is_held(backend: str):
    model = make("hyena")
    x = make_frames(model, 2, LONGEST)
    stream = make_stream(model, backend, batch_size=2, nonfinite="hold")
    stream.prefill(x)
    with pytest.raises(ValueError, match="max_seq_len"):
        stream.step(x[:, 0], reset=torch.tensor([True, False]))
    assert torch.equal(stream.held, x[:, -1])


@both
@pytest.mark.parametrize("nonfinite", ["raise", "hold", "pass"])
def test_outputs_may_go_where_the_frame_is(backend: str, nonfinite: str):
    model = make("hgrn2").backbone
    frame = torch.randn(1, 16)
    wanted = make_stream(model, backend).step(frame)
    stream, x = make_stream(model, backend, nonfinite=nonfinite), frame.clone()
    assert torch.equal(stream.step(x, out=x), wanted)
    if nonfinite == "hold":
        assert torch.equal(stream.held, frame)


@both
def test_a_state_is_not_poisoned_behind_a_finite_output(backend: str):
    """A forget gate that is open lets infinity into the convolution's state, and nothing of it into the output."""
    mixer = HGRN(8, conv_size=4).eval()
    with torch.no_grad():
        mixer.candidate_proj.weight.mul_(1e-37)
        mixer.out_gate_proj.weight.mul_(1e-37)
        mixer.forget_proj.weight.fill_(2.0)
        mixer.forget_conv.weight.abs_()
    stream = make_stream(mixer, backend)
    stream.step(torch.ones(8))
    before = stream.state
    huge = torch.full((8,), 3e38)
    assert mixer.step(huge[None], before.layers[0])[0].isfinite().all()
    with pytest.raises(
        FloatingPointError, match="not finite, though the frames are: the new state of a row; the state stays"
    ):
        stream.step(huge)
    assert same(stream.state, before)
    stream.step(torch.ones(8))


def test_an_infinite_input_of_a_long_convolution_is_not_kept():
    """Nor one on the tape, which a gate of zero hides."""
    mixer = Hyena(8, max_seq_len=200).eval()
    D = 8
    with torch.no_grad():
        mixer.in_proj.weight.zero_()
        mixer.in_proj.bias.zero_()
        mixer.in_proj.bias[:D] = 0.0  # the last gate
        mixer.in_proj.weight[D:] = torch.eye(D).repeat(2, 1) * 2
        mixer.short_conv.weight.fill_(1.0)
        assert mixer.short_conv.bias is not None
        mixer.short_conv.bias.zero_()
    stream = make_stream(mixer, "native")
    stream.step(torch.ones(8))
    before = stream.state
    with pytest.raises(FloatingPointError):
        stream.step(torch.full((8,), 1e30))
    assert same(stream.state, before)
