"""Truncated backpropagation: the loss is the whole's, the gradient that of detaching by hand."""

import pytest
import torch
import torch.nn.functional as F

from longstream.models import State
from longstream.sequences import SequenceModel
from longstream.sequences.chunks import backward_in_chunks, why_not_chunks
from tests.sequences.small import small_batch, small_data, small_model

T = 20


def gradients(model: SequenceModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def compare(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def ragged(task: str, pooling: str = "mean", name: str = "hgrn2", **more):
    """A model in float64 and a batch of three series of different lengths, 20 frames the longest."""
    data = small_data(6, least=14, most=T)
    data.values[2] = small_data(1, least=T, most=T).values[0]
    data.values[1] = data.values[1][:9]
    model = small_model(name, data, task, pooling=pooling, **more).double()
    batch = small_batch(model, data, [0, 1, 2], seq_len=T)
    return model, {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


@pytest.mark.parametrize(("task", "pooling"), [("classify", "mean"), ("regress", "last"), ("forecast", "mean")])
@pytest.mark.parametrize("chunk", [T, 100])
def test_one_chunk_is_the_whole(task, pooling, chunk):
    model, batch = ragged(task, pooling)
    loss = model(**batch).loss
    loss.backward()
    expected = gradients(model)
    got = backward_in_chunks(model, batch, chunk)
    assert got.item() == pytest.approx(loss.item(), rel=1e-9)
    assert not got.requires_grad
    compare(gradients(model), expected)


@pytest.mark.parametrize("task", ["classify", "regress"])
@pytest.mark.parametrize("name", ["hgrn2", "hgrn", "gru", "hyena"])
@pytest.mark.parametrize("chunk", [1, 7])
def test_the_mean_of_all_frames_by_hand(task, name, chunk):
    """One graph over all chunks, the state detached between them, and the mean taken at the end."""
    model, batch = ragged(task, "mean", name)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    values, mask = batch["values"], batch["mask"]
    total, state = torch.zeros(3, 16, dtype=torch.float64), None
    for start in range(0, values.shape[1], chunk):
        piece = slice(start, start + chunk)
        out = model(values[:, piece], mask[:, piece], state=state)
        total = total + out.hidden.sum(1)
        state = out.state.detach()
    raw = model.head(total / mask.sum(1, keepdim=True))
    if task == "classify":
        errors = F.cross_entropy(raw, batch["labels"], reduction="none")
        loss = (errors * weights).sum() / weights.sum()
    else:
        errors = (raw - (batch["targets"] - model.target_mean) / model.target_std).square()
        loss = (errors * weights[:, None]).sum() / (2 * weights.sum())
    loss.backward()
    expected = gradients(model)
    got = backward_in_chunks(model, {**batch, "weights": weights}, chunk)
    assert got.item() == pytest.approx(loss.item(), rel=1e-6)
    compare(gradients(model), expected)
    whole = model(**batch, weights=weights)
    assert got.item() == pytest.approx(whole.loss.item(), rel=1e-6)
    whole.loss.backward()
    exact = gradients(model)
    assert any((exact[name] - expected[name]).abs().max() > 1e-4 * exact[name].abs().max() for name in exact)


def test_the_last_frame_by_hand():
    """Chunks end with the sequence; only the last has a gradient."""
    model, batch = ragged("classify", "last")
    chunk, lengths = 6, batch["mask"].sum(1).tolist()
    rows = []
    for row, length in enumerate(lengths):
        x = batch["values"][row : row + 1, :length]
        with torch.no_grad():
            state = model(x[:, : length - chunk]).state
        rows.append(model(x[:, length - chunk :], state=state).logits)
    loss = F.cross_entropy(torch.cat(rows), batch["labels"])
    loss.backward()
    expected = gradients(model)
    got = backward_in_chunks(model, batch, chunk)
    assert got.item() == pytest.approx(loss.item(), rel=1e-9)
    compare(gradients(model), expected)
    assert got.item() == pytest.approx(model(**batch).loss.item(), rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 6])
def test_forecasts_by_hand(chunk):
    model, batch = ragged("forecast")
    batch["targets"][0, 3:6, 1] = float("nan")
    goal = batch["targets"].unfold(1, 3, 1).transpose(-1, -2)
    seen = ~goal.isnan() & (batch["mask"] != 0)[..., None, None]
    total, state = torch.zeros((), dtype=torch.float64), None
    for start in range(0, batch["values"].shape[1], chunk):
        piece = slice(start, start + chunk)
        out = model(batch["values"][:, piece], batch["mask"][:, piece], state=state)
        errors = (out.prediction - goal[:, piece]).abs() / model.target_std
        total = total + errors[seen[:, piece]].sum()
        state = out.state.detach()
    loss = total / seen.sum()
    loss.backward()
    expected = gradients(model)
    got = backward_in_chunks(model, batch, chunk)
    assert got.item() == pytest.approx(loss.item(), rel=1e-6)
    assert got.item() == pytest.approx(model(**batch).loss.item(), rel=1e-6)
    compare(gradients(model), expected)


def test_windows_start_from_their_past():
    """The state after the frames before, as `forward` takes it too; it has no gradient."""
    data = small_data(2, least=30, most=30)
    model = small_model("hgrn2", data, "forecast")
    batch = small_batch(model, data, [2, 9], seq_len=8)
    assert batch["past_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [1] * 8]
    states = [model(torch.from_numpy(data.values[0][first:last])[None]).state for first, last in ((0, 2), (1, 9))]
    state = State.cat(states).detach()
    carried = model(batch["values"], targets=batch["targets"], state=state)
    out = model(**batch)
    torch.testing.assert_close(out.loss, carried.loss)
    assert out.state.position.tolist() == [10, 16]
    carried.loss.backward()
    expected = gradients(model)
    out.loss.backward()
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
    assert backward_in_chunks(model, batch, 3).item() == pytest.approx(out.loss.item(), rel=1e-4)
    with pytest.raises(ValueError, match="past and state exclude each other"):
        model(**batch, state=state)


def test_scale_is_for_the_gradient_alone():
    model, batch = ragged("classify")
    loss = backward_in_chunks(model, batch, 6)
    once = gradients(model)
    assert backward_in_chunks(model, batch, 6, 0.25).item() == loss.item()
    compare(gradients(model), {name: value / 4 for name, value in once.items()})


def test_dropout_is_drawn_alike_in_both_passes():
    model, batch = ragged("classify", options={"dropout": 0.5})
    model.train()
    calls = []
    model.features.backbone.register_forward_hook(lambda module, args, out: calls.append(out[0].detach().clone()))
    backward_in_chunks(model, batch, 7)
    first, second = calls[: len(calls) // 2], calls[len(calls) // 2 :]
    assert len(first) == 3
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_memory_is_that_of_a_chunk():
    """What autograd keeps for the backward pass, counted."""
    data = small_data(4, least=256, most=256)
    model = small_model("hgrn2", data)
    batch = small_batch(model, data, [0, 1, 2, 3])

    def most_kept(run) -> int:
        kept, most = 0, 0

        def pack(tensor):
            nonlocal kept, most
            kept += tensor.nbytes
            most = max(most, kept)
            return tensor

        def unpack(tensor):
            nonlocal kept
            kept -= tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            run()
        return most

    whole = most_kept(lambda: model(**batch).loss.backward())
    pieces = most_kept(lambda: backward_in_chunks(model, batch, 16))
    assert pieces < whole / 6


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hgrn2", {"direction": "bidirectional"}, "takes whole sequences"),
        ("llama", {}, "does not have"),
        ("hyena", {"window_size": 15}, "15 frames long: got sequences of 20"),
    ],
)
def test_refusals_in_words(name, options, words):
    data = small_data(4, least=T, most=T)
    model = small_model(name, data, options=options)
    assert words in (why_not_chunks(model, T) or "")
    with pytest.raises(ValueError, match=words):
        backward_in_chunks(model, small_batch(model, data, [0, 1]), 6)
    assert why_not_chunks(small_model("hyena", data), T) is None
    with pytest.raises(ValueError, match="chunk must be >= 1"):
        backward_in_chunks(model, small_batch(model, data, [0, 1]), 0)
