"""Training on sequences longer than memory: piece by piece with the state carried, truncated backpropagation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from longstream.sequences.model import SequenceModel


def why_not_chunks(model: SequenceModel, frames: int) -> str | None:
    """None for a model that can be trained by chunks on sequences of so many frames, else why not, in words."""
    if model.why_no_state is not None:
        return f"--chunk needs a network that carries a state: {model.why_no_state}"
    if model.max_frames is not None and frames > model.max_frames:
        return (
            f"--chunk does not lift the limit of {model.config.name}, whose filters are {model.max_frames} frames long:"
            f" got sequences of {frames}; build it with a larger window_size"
        )
    return None


def backward_in_chunks(model: SequenceModel, batch: dict[str, Tensor], chunk: int, scale: float = 1.0) -> Tensor:
    """Add the gradient of ``scale * loss`` to the parameters' ``grad``, with the memory of a chunk; the loss.

    A batch of T frames goes through in pieces of ``chunk``, the state carried from one to the next without a gradient.
    Loss and state are exact; the gradient lacks what would flow through the state from a piece to those before it, and
    nothing else. With chunk >= T it is the whole gradient.

        forecasts:     the loss is a sum over frames; each piece adds its own.
        pooling mean:  twice through: first without gradients for the mean and the loss's gradient in it, then each
                       piece hands that gradient on through its own frames. Dropout is drawn alike both times.
        pooling last:  pieces end with the sequence, and the last one has the gradient.

    Args:
        model: as it is; where it is wrapped for several processes, these must add up their gradients afterwards.
        batch: of a `Collator`, on the model's device.
        chunk: frames of a piece, >= 1.
        scale: what the loss is multiplied by before the gradient is taken, such as 1 / accumulated batches.
    Returns:
        () the loss, without scale and without a graph.
    Raises:
        ValueError: chunk < 1, or the model cannot be trained so; see `why_not_chunks`.
    """
    if chunk < 1:
        raise ValueError(f"backward_in_chunks: chunk must be >= 1, got {chunk}")
    T = batch["values"].shape[1]
    if chunk >= T:
        loss = model(**batch).loss
        (loss * scale).backward()
        return loss.detach()
    if (why := why_not_chunks(model, T)) is not None:
        raise ValueError(f"backward_in_chunks: {why}")
    if model.config.task == "forecast":
        return _forecast(model, batch, chunk, scale)
    return _mean(model, batch, chunk, scale) if model.config.pooling == "mean" else _last(model, batch, chunk, scale)


def _forecast(model: SequenceModel, batch: dict[str, Tensor], chunk: int, scale: float) -> Tensor:
    whole = _share(model, batch)
    loss, state = torch.zeros((), device=whole.device), None
    if "past" in batch:
        with torch.no_grad():
            state = model(batch["past"], batch["past_mask"]).state
    for piece in _pieces(model, batch, chunk):
        out = model(**piece, state=state)
        part = out.loss * (_share(model, piece) / whole.clamp(min=torch.finfo(whole.dtype).tiny)).to(out.loss.dtype)
        (part * scale).backward()
        loss = loss + part.detach()
        state = out.state.detach()
    return loss


def _mean(model: SequenceModel, batch: dict[str, Tensor], chunk: int, scale: float) -> Tensor:
    state = None
    with torch.no_grad(), _same_chance(batch["values"]):
        for piece in _pieces(model, _inputs(batch), chunk):
            state = model(**piece, state=state).state
    assert state is not None
    total = state.layers[-1].pooled.detach().requires_grad_()  # (B, D), the sum over all frames
    loss = model.loss_of(model.read(total, state.position), **_goals(batch))
    (loss * scale).backward()
    state = None
    for piece in _pieces(model, _inputs(batch), chunk):
        out = model(**piece, state=state)
        out.state.layers[-1].pooled.backward(total.grad)
        state = out.state.detach()
    return loss.detach()


def _last(model: SequenceModel, batch: dict[str, Tensor], chunk: int, scale: float) -> Tensor:
    batch, state = _aligned_right(batch), None
    T = batch["values"].shape[1]
    early = {name: tensor[:, : T - chunk] for name, tensor in _inputs(batch).items()}
    with torch.no_grad():
        for piece in _pieces(model, early, chunk):
            state = model(**piece, state=state).state
    late = {name: tensor[:, T - chunk :] for name, tensor in _inputs(batch).items()}
    loss = model(**late, **_goals(batch), state=state).loss
    (loss * scale).backward()
    return loss.detach()


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("values", "mask") if name in batch}


def _goals(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("labels", "targets", "weights") if name in batch}


def _pieces(model: SequenceModel, batch: dict[str, Tensor], chunk: int) -> Iterator[dict[str, Tensor]]:
    """The batch cut along time; a forecast's targets reach further than its frames."""
    for start in range(0, batch["values"].shape[1], chunk):
        piece = {name: tensor[:, start : start + chunk] for name, tensor in _inputs(batch).items()}
        if "targets" in batch:
            piece["targets"] = batch["targets"][:, start : start + piece["values"].shape[1] + model.config.horizon - 1]
        if "weights" in batch:
            piece["weights"] = batch["weights"]
        yield piece


def _share(model: SequenceModel, batch: dict[str, Tensor]) -> Tensor:
    """What the mean of a forecast's loss divides by: observed targets, weighted."""
    observed = ~batch["targets"].unfold(1, model.config.horizon, 1).isnan()  # (B, T, K, horizon)
    if "mask" in batch:
        observed = observed & (batch["mask"] != 0)[..., None, None]
    counts = observed.flatten(1).sum(1).to(torch.float64)
    return (counts * batch["weights"]).sum() if "weights" in batch else counts.sum()


def _aligned_right(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same sequences with their pads on the left, so that they end together."""
    if "mask" not in batch:
        return batch
    order = batch["mask"].argsort(dim=1, stable=True)  # pads first, frames in their order
    values = batch["values"].gather(1, order[..., None].expand_as(batch["values"]))
    return {**batch, "values": values, "mask": batch["mask"].gather(1, order)}


@contextmanager
def _same_chance(like: Tensor) -> Iterator[None]:
    """Within, random numbers are drawn that the same code draws again after it."""
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        yield
