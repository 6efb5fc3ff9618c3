"""What a trained model says of whole sequences: in batches of like lengths, long ones piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from longstream.sequences.collate import Collator
from longstream.sequences.model import SequenceModel, SequenceOutput

PIECE = 4096  # frames of a series that a forecaster takes in at once


@contextmanager
def evaluating(model: SequenceModel) -> Iterator[None]:
    """Within, the model is in eval mode, and no graphs are made."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


def predict(model: SequenceModel, values: Sequence[np.ndarray], *, batch_size: int = 64, chunk: int = 0) -> np.ndarray:
    """Logits (n, classes) or predicted numbers (n, K) float32 of each sequence.

    Args:
        model:      to classify or regress.
        values:     n arrays (T_i, C), or (height, width, C).
        batch_size: sequences at once.
        chunk:      frames at once of a sequence, with the state carried; 0 is all.
    """
    collate, found = Collator(model.config), np.empty((len(values), model.config.outputs), dtype=np.float32)
    with evaluating(model):
        for rows in _batches(values, batch_size):
            batch = {k: v.to(model.device) for k, v in collate([{"values": values[i]} for i in rows]).items()}
            out = run(model, batch, chunk)
            answer = out.logits if model.config.task == "classify" else out.prediction
            assert answer is not None
            found[rows] = answer.float().cpu().numpy()
    return found


def run(model: SequenceModel, batch: dict[str, Tensor], chunk: int = 0) -> SequenceOutput:
    """The output of the last piece where sequences go in by pieces of ``chunk`` frames; that is the whole's."""
    values, mask = batch["values"], batch.get("mask")
    T = values.shape[1]
    if not chunk or values.dim() > 3 or chunk >= T or model.why_no_state is not None:
        return model(values, mask)
    out, state = SequenceOutput(), None
    for start in range(0, T, chunk):
        piece = slice(start, start + chunk)
        out = model(values[:, piece], None if mask is None else mask[:, piece], state=state)
        state = out.state
    return out


def forecast_at(
    model: SequenceModel,
    values: Sequence[np.ndarray],
    origins: Sequence[np.ndarray],
    *,
    batch_size: int = 16,
    piece: int = PIECE,
) -> list[np.ndarray]:
    """Forecasts after given frames, each from all frames up to it.

    A network that has no state, or whose sequences end at a longest one, is shown the frames before each origin in
    overlapping windows: an origin has at least half a window behind it, where there is so much.

    Args:
        values:  series (T_i, C).
        origins: for each series frame numbers, in order: the last frame that each forecast knows.
        piece:   frames that go in at once.
    Returns:
        for each series (origins, horizon, K) float32.
    """
    config = model.config
    found = [np.empty((len(o), config.horizon, len(config.target_names)), np.float32) for o in origins]
    window = model.window
    with evaluating(model):
        if window is not None:
            for series, places, out in zip(values, origins, found, strict=True):
                _by_windows(model, series, np.asarray(places), out, window)
            return found
        asked = [i for i, places in enumerate(origins) if len(places)]
        needed = [values[i][: int(origins[i][-1]) + 1] for i in asked]
        for batch in _batches(needed, batch_size):
            rows = [asked[j] for j in batch]
            places = [np.asarray(origins[i]) for i in rows]
            _by_pieces(model, [needed[j] for j in batch], places, [found[i] for i in rows], piece)
    return found


def _by_pieces(
    model: SequenceModel, values: list[np.ndarray], origins: list[np.ndarray], found: list[np.ndarray], piece: int
) -> None:
    """One batch, its state carried from piece to piece."""
    batch = Collator(model.config)([{"values": series} for series in values])
    mask, state = batch.get("mask"), None
    for start in range(0, batch["values"].shape[1], piece):
        part = slice(start, start + piece)
        out = model(
            batch["values"][:, part].to(model.device),
            None if mask is None else mask[:, part].to(model.device),
            state=state,
        )
        state = out.state
        assert out.prediction is not None
        predicted = out.prediction.float().cpu().numpy()  # (B, T, horizon, K)
        for row, places in enumerate(origins):
            inside = (places >= start) & (places < start + piece)
            found[row][inside] = predicted[row, places[inside] - start]


def _by_windows(model: SequenceModel, series: np.ndarray, origins: np.ndarray, found: np.ndarray, window: int) -> None:
    """One series, in windows of its own frames without a state."""
    done = 0
    while done < len(origins):
        start = max(0, int(origins[done]) - window // 2)
        last = int(np.searchsorted(origins, start + window))
        frames = torch.from_numpy(series[start : start + window]).to(model.device)
        predicted = model(frames[None]).prediction[0].float().cpu().numpy()
        found[done:last] = predicted[origins[done:last] - start]
        done = last


def _batches(values: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Numbers of sequences of like lengths, longest first; images of one size only."""
    order = sorted(range(len(values)), key=lambda i: (values[i].shape[:-1], -i), reverse=True)
    batch: list[int] = []
    for i in order:
        other_size = batch and values[i].ndim == 3 and values[i].shape != values[batch[0]].shape
        if batch and (len(batch) == batch_size or other_size):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
