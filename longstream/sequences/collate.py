"""Sequences as items and batches: windows for forecasts, an order that batches like lengths, padding on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from longstream.sequences.config import SequenceConfig
from longstream.sequences.data import Sequences
from longstream.sequences.normalize import missing_channels

UNLIMITED = ("hgrn", "hgrn2", "hybrid", "edifice-hgrn", "gru", "lstm")  # networks whose state goes on for ever
BLOCK = 50  # batches that are sorted by length together: few pads, and still much chance


class SequenceDataset(Dataset[dict[str, Any]]):
    """What a model is trained on, an item a sequence, or for a forecast a window of one.

    Args:
        data:    the sequences.
        config:  of the model: its task, classes, horizon and target channels.
        seq_len: frames of a window; shorter series are one window. "forecast" only.
        past:    frames before a window that its state is taken from, as many as there are; a forecaster carries its
                 state over whole series, and must have met states that are old. None is seq_len where the network has a
                 state without limit, else 0.
        weights: (n,) of the sequences in the loss; None is 1 for each.
    Raises:
        ValueError: channels, labels or targets do not fit the configuration; a class is not one of the model's.
    """

    def __init__(
        self,
        data: Sequences,
        config: SequenceConfig,
        *,
        seq_len: int = 0,
        past: int | None = None,
        weights: np.ndarray | None = None,
    ) -> None:
        self.data, self.config = data, config
        check_fits("SequenceDataset", data, config)
        if weights is not None and (len(weights) != len(data) or not (np.asarray(weights) >= 0).all()):
            raise ValueError(f"SequenceDataset: weights must be {len(data)} numbers >= 0, got {weights!r:.60}")
        self.weights = weights
        self.past = (seq_len if config.name in UNLIMITED else 0) if past is None else past
        self.labels = label_numbers(data, config.classes) if config.task == "classify" else None
        frames = data.lengths
        if config.task == "forecast":
            if seq_len < 1:
                raise ValueError(f"SequenceDataset: seq_len must be >= 1 for a forecast, got {seq_len}")
            if (frames < 2).any():
                name = data.names[int((frames < 2).argmax())]
                raise ValueError(f"SequenceDataset: a series to forecast must have 2 frames or more, {name!r} has 1")
            # a window may begin at every frame from which seq_len frames, each with a frame after it, are left
            self.sizes = np.minimum(frames - 1, seq_len)
            self.ends = np.cumsum(frames - self.sizes)
        else:
            self.sizes, self.ends = frames, np.arange(1, len(data) + 1)

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(items,) frames of each item."""
        return np.repeat(self.sizes, np.diff(self.ends, prepend=0))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(np.searchsorted(self.ends, index, side="right"))
        values = self.data.values[row]
        item: dict[str, Any] = {"values": values}
        if self.config.task == "forecast":
            start = index - (int(self.ends[row - 1]) if row else 0)
            last = start + int(self.sizes[row])
            item = {
                "values": values[start:last],
                "targets": values[start + 1 : last + self.config.horizon, self.config.target_channels],
            }
            if self.past:
                item["past"] = values[max(0, start - self.past) : start]
        elif self.config.task == "regress":
            assert self.data.targets is not None
            item["targets"] = self.data.targets[row]
        else:
            assert self.labels is not None
            item["labels"] = int(self.labels[row])
        if self.weights is not None:
            item["weights"] = float(self.weights[row])
        return item


class Collator:
    """Items of a `SequenceDataset`, or arrays of values, as the arguments of a `SequenceModel`.

    Sequences are padded on the right to the longest of the batch. A mask is made where there are pads.

    Args:
        config: of the model.
    """

    def __init__(self, config: SequenceConfig) -> None:
        self.config = config

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        arrays = [item["values"] for item in items]
        batch: dict[str, Tensor] = {}
        if len({array.shape for array in arrays}) == 1:
            batch["values"] = torch.from_numpy(np.stack(arrays))
        elif arrays[0].ndim == 3:
            sizes = sorted({array.shape[:2] for array in arrays})
            raise ValueError(f"Collator: images of a batch must have one size, got {sizes}; scale them first")
        else:
            batch["values"] = torch.from_numpy(pad(arrays))
            lengths = torch.tensor([len(array) for array in arrays])
            batch["mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        if any(len(item.get("past", ())) for item in items):
            pasts = [item["past"] for item in items]
            batch["past"] = torch.from_numpy(pad(pasts))
            lengths = torch.tensor([len(past) for past in pasts])
            batch["past_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        if "labels" in items[0]:
            batch["labels"] = torch.tensor([item["labels"] for item in items])
        if "targets" in items[0]:
            targets = [item["targets"] for item in items]
            if self.config.task == "forecast":
                frames = batch["values"].shape[1] + self.config.horizon - 1
                batch["targets"] = torch.from_numpy(pad(targets, frames))
            else:
                batch["targets"] = torch.from_numpy(np.stack(targets))
        if "weights" in items[0]:
            batch["weights"] = torch.tensor([item["weights"] for item in items], dtype=torch.float32)
        return batch


class LengthBuckets(Dataset[Any]):
    """Pass after pass over a dataset, shuffled, in an order in which each batch has like lengths.

    Item i depends on the seed and on i alone, so a resumed run and parallel processes see what a single run sees. The
    passes are cut into blocks of up to 50 batches, but no more than fit into a pass; within a block items are sorted by
    length, with chance deciding among equals, and whole batches are shuffled.

    Args:
        dataset:    with ``lengths``, such as `SequenceDataset`.
        length:     items in all: steps times those of a step.
        batch_size: items of a batch.
        seed:       of the order.
    """

    def __init__(self, dataset: Any, length: int, batch_size: int, seed: int) -> None:
        self.dataset, self.length, self.batch_size, self.seed = dataset, length, batch_size, seed
        self.block = batch_size * max(1, min(BLOCK, len(dataset) // batch_size))
        self._lengths = np.asarray(dataset.lengths)
        self._passes: dict[int, np.ndarray] = {}
        self._number, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        number, place = divmod(index, self.block)
        if number != self._number:
            self._number, self._order = number, self._block_order(number)
        return self.dataset[int(self._order[place])]

    def _block_order(self, number: int) -> np.ndarray:
        """The items of one block."""
        n, first = len(self._lengths), number * self.block
        parts, at = [], first
        while at < first + self.block:
            which, place = divmod(at, n)
            part = self._permutation(which)[place : place + first + self.block - at]
            parts.append(part)
            at += len(part)
        chosen = np.concatenate(parts)
        chosen = chosen[np.argsort(self._lengths[chosen], kind="stable")].reshape(-1, self.batch_size)
        return np.random.default_rng([self.seed, 1, number]).permutation(chosen).reshape(-1)

    def _permutation(self, which: int) -> np.ndarray:
        if which not in self._passes:
            self._passes = {key: order for key, order in self._passes.items() if key >= which - 1}  # bounded memory
            self._passes[which] = np.random.default_rng([self.seed, 0, which]).permutation(len(self._lengths))
        return self._passes[which]


def pad(arrays: Sequence[np.ndarray], frames: int = 0) -> np.ndarray:
    """One array (n, T, C) of arrays (T_i, C), NaN after the end of each; T is the longest, or ``frames``."""
    frames = frames or max(len(array) for array in arrays)
    out = np.full((len(arrays), frames, arrays[0].shape[-1]), np.nan, dtype=np.float32)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


def label_numbers(data: Sequences, classes: Sequence[str]) -> np.ndarray:
    """The labels of ``data`` as places in ``classes``.

    Raises:
        ValueError: a label is not among the classes; all such are named.
    """
    if data.labels is None:
        raise ValueError("label_numbers: data must have labels, got none")
    places = {name: place for place, name in enumerate(classes)}
    if unknown := [name for name in data.classes if name not in places]:
        raise ValueError(f"data have labels that were never seen in training: {unknown}; the model knows {[*classes]}")
    return np.array([places[name] for name in data.labels.tolist()], dtype=np.int64)


def class_weights(labels: np.ndarray, classes: Sequence[str]) -> Tensor:
    """(classes,) float32: n / (classes * count) of each, so that every class has the same share of the loss; 0 for one
    that does not occur.
    """
    counts = np.array([(labels == name).sum() for name in classes])
    weights = counts.sum() / ((counts > 0).sum() * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 0.0).astype(np.float32))


def check_fits(who: str, data: Sequences, config: SequenceConfig) -> None:
    """Raise for sequences that a model of this configuration cannot take."""
    if list(data.channels) != list(config.channels):
        raise ValueError(f"{who}: data must have the channels {config.channels}, got {list(data.channels)}")
    if data.is_grid != config.is_grid:
        raise ValueError(f"{who}: data must be {'images' if config.is_grid else 'series'} for this model")
    if config.task == "classify" and data.labels is None:
        raise ValueError(f"{who}: data must have labels to classify, got none")
    if config.task == "regress":
        if data.targets is None:
            raise ValueError(f"{who}: data must have targets to regress, got none")
        if list(data.target_names) != list(config.target_names):
            raise ValueError(f"{who}: data must have the targets {config.target_names}, got {list(data.target_names)}")


def check_held_out(who: str, data: Sequences, config: SequenceConfig) -> None:
    """Raise, before hours of training and not after, for sequences that such a model could not be judged by.

    Beside `check_fits`, every class must be known, and a value may be missing only where the model has an indicator.
    """
    check_fits(who, data, config)
    if config.task == "classify":
        label_numbers(data, config.classes)
    if names := [config.channels[i] for i in missing_channels(data.values) if i not in config.indicators]:
        raise ValueError(
            f"{who}: what is held out misses values in the channels {names}, where none are missing in training; fill"
            " them in, or hold out something else"
        )
