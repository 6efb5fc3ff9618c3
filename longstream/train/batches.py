"""Which windows make a batch, and what the model is asked to predict in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from longstream.train.data import IGNORED, PackedCollator

Item = TypeVar("Item", covariant=True)


class Items(Protocol[Item]):
    """What has a length, and an item for each number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class ShuffledWindows(Dataset[Item]):
    """Pass after pass over windows, or other items, each in an order of its own.

    Item i depends on the seed and on i alone, so a resumed run and parallel processes see what a single run sees.
    """

    def __init__(self, windows: Items[Item], length: int, seed: int) -> None:
        self.windows, self.length, self.seed = windows, length, seed
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        number, place = divmod(index, len(self.windows))
        if number != self._pass:
            self._pass, self._order = number, np.random.default_rng([self.seed, number]).permutation(len(self.windows))
        return self.windows[int(self._order[place])]


class Collator(PackedCollator):
    """PackedCollator with the targets spelled out.

    Given labels and boundaries alone, the model predicts nothing across a boundary: it would not learn where documents
    end.
    """

    def __call__(self, windows: Sequence[Tensor]) -> dict[str, Tensor]:
        batch = super().__call__(windows)
        batch["shift_labels"] = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
        return batch


class RowCollator(Collator):
    """The same windows and targets for models that know no packing: every part of a document is a row of its own.

    Rows are padded on the right, where a causal model does not look; no pad has a target. Windows in which documents
    end make more and shorter rows.
    """

    def __call__(self, windows: Sequence[Tensor]) -> dict[str, Tensor]:
        batch = super().__call__(windows)
        lengths = batch.pop("cu_seqlens").long().diff().tolist()
        pads = {"input_ids": 0, "labels": IGNORED, "shift_labels": IGNORED}
        return {
            key: pad_sequence(batch[key][0].split(lengths), batch_first=True, padding_value=pad)  # type: ignore[arg-type]
            for key, pad in pads.items()
        }
