"""Small sets of sequences and small models of them."""

from typing import Any

import numpy as np
import torch

from longstream.sequences import Collator, SequenceDataset, SequenceModel, Sequences, make_model

SIZES = {"hidden_size": 16, "num_layers": 2}
CAUSAL = ["hgrn", "hgrn2", "hyena", "hybrid", "edifice-hgrn", "edifice-hyena", "gru", "lstm"]


def small_data(
    n: int = 12,
    *,
    classes: int = 3,
    channels: int = 3,
    least: int = 5,
    most: int = 20,
    seed: int = 0,
    scale: float = 5.0,
) -> Sequences:
    """n series of random lengths, off center and of different scales by channel, with labels and two targets."""
    random = np.random.default_rng(seed)
    lengths = random.integers(least, most, n, endpoint=True)
    scales, offsets = scale ** np.arange(channels), 10 * np.arange(channels)
    values = [(random.normal(size=(T, channels)) * scales + offsets).astype(np.float32) for T in lengths]
    return Sequences(
        values,
        channels=tuple("abcdefgh"[:channels]),
        labels=np.array([f"class {i % classes}" for i in range(n)]),
        targets=random.normal(size=(n, 2)) * [3, 100] + [0, 1000],
        target_names=("small", "large"),
    )


def small_model(
    name: str = "hgrn2", data: Sequences | None = None, task: str = "classify", **more: Any
) -> SequenceModel:
    """A model of `small_data`, in eval mode, its head drawn larger than usual so that outputs differ."""
    options = {**SIZES, **more.pop("options", {})}
    if task == "forecast":
        more.setdefault("horizon", 3)
    torch.manual_seed(0)
    model = make_model(name, small_data() if data is None else data, task=task, options=options, **more)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model.eval()


def small_batch(model: SequenceModel, data: Sequences, rows: list[int], seq_len: int = 8) -> dict[str, torch.Tensor]:
    """Some items as the arguments of a model."""
    items = SequenceDataset(data, model.config, seq_len=seq_len)
    return Collator(model.config)([items[row] for row in rows])
