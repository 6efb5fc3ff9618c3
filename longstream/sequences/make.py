"""A new model for a set of sequences: what the configuration must know of the data, and their scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longstream.sequences.config import SequenceConfig
from longstream.sequences.data import Sequences
from longstream.sequences.model import SequenceModel
from longstream.sequences.normalize import missing_channels

# Frames of attention, and of the first memory, in a hybrid that is told nothing else: its cost grows with them.
_HYBRID_WINDOW = 256


def make_model(
    name: str,
    data: Sequences,
    *,
    task: str,
    horizon: int = 1,
    target_channels: Sequence[str] = (),
    pooling: str | None = None,
    residual: bool = True,
    seq_len: int | None = None,
    options: dict[str, Any] | None = None,
) -> SequenceModel:
    """A new model, its weights drawn from torch's random state, its normalization taken from ``data``.

    Args:
        name:            of the network: `longstream.list_models` or `longstream.baselines`.
        data:            what it will be trained on. Their labels are the classes; channels that miss values get an
                         indicator.
        task:            "classify", "regress" or "forecast".
        horizon:         frames ahead, of a forecast.
        target_channels: names of the channels to forecast; none given: all.
        pooling:         see `SequenceConfig`; None is "mean".
        residual:        see `SequenceConfig`.
        seq_len:         frames of the windows that a forecaster is trained on, or of the longest sequence there will
                         be; None is the longest of ``data``. For a hybrid at most 256 of them count.
        options:         see `SequenceConfig`. Where they have neither window_size nor seq_len, window_size is seq_len.
    Raises:
        ValueError: the data lack labels or targets, have one class, are shorter than the horizon, or are grids where
            the network takes no grids; an unknown name or channel.
    """
    options = dict(options or {})
    _refuse_unfit(task, data, options)
    if not {"window_size", "seq_len", "max_seq_len"} & set(options):
        longest = seq_len or int(data.lengths.max())
        options["window_size"] = min(longest, _HYBRID_WINDOW) if name == "hybrid" else longest
    targets: list[str] = []
    if task == "regress":
        targets = list(data.target_names)
    elif task == "forecast":
        if horizon >= (frames := int(data.lengths.max())):
            raise ValueError(
                f"make_model: horizon must be less than the {frames} frames of the longest series to learn from, got"
                f" {horizon}"
            )
        targets = list(target_channels or data.channels)
        if unknown := [channel for channel in targets if channel not in data.channels]:
            raise ValueError(f"make_model: target_channels must be of {list(data.channels)}, got {unknown}")
    config = SequenceConfig(
        name=name,
        options=options,
        task=task,
        channels=list(data.channels),
        indicators=missing_channels(data.values),
        classes=data.classes if task == "classify" else [],
        target_names=targets,
        horizon=horizon if task == "forecast" else 1,
        residual=residual,
        pooling=pooling or "mean",
    )
    model = SequenceModel(config)
    model.set_normalization(data)
    return model


def _refuse_unfit(task: str, data: Sequences, options: dict[str, Any]) -> None:
    """Raise for data that the task, or the network's direction, cannot use."""
    is_grid = str(options.get("direction", "")).startswith("2d")
    if data.is_grid != is_grid:
        kind, need = ("images", "a direction of 2d") if data.is_grid else ("series", "a direction that is not 2d")
        raise ValueError(f"make_model: data are {kind}, which need {need}, got {options.get('direction', 'causal')!r}")
    if task == "classify":
        if data.labels is None:
            raise ValueError("make_model: data must have labels to classify, got none")
        if len(data.classes) < 2:
            raise ValueError(f"make_model: data must have two classes or more, got only {data.classes[0]!r}")
    if task == "regress" and data.targets is None:
        raise ValueError("make_model: data must have targets to regress, got none")
    if task == "forecast" and data.is_grid:
        raise ValueError("make_model: data must be series to forecast, got images")
