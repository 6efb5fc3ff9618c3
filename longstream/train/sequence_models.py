"""From the settings of a network to a model of sequences, for every `--model`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from longstream.sequences import SequenceModel, Sequences, make_model
from longstream.sequences.chunks import why_not_chunks
from longstream.sequences.model import build_features
from longstream.train.models import choose_size
from longstream.train.network_options import frame_options
from longstream.train.settings import ModelSettings, Settings

# Of `--direction`, where it is not causal alone.
DIRECTIONS = {
    "hgrn": ("causal", "bidirectional", "2d"),
    "hgrn2": ("causal", "2d_parallel", "2d_series"),
    "hyena": ("causal", "bidirectional"),
}


def build_sequence_model(settings: Settings, train: Sequences, held_out: Sequences | None) -> SequenceModel:
    """A new model for these data, its weights drawn from torch's random state.

    Args:
        settings: the network, the task and how it is trained.
        train:    gives the model its channels, classes and normalization.
        held_out: what it will be evaluated on; a longer sequence there makes Hyena's filters longer.
    Raises:
        ValueError: settings and data do not fit.
    """
    data = settings.data
    known = DIRECTIONS.get(settings.model.name, ("causal",))
    if settings.model.direction not in known:
        others = " or ".join(known)
        raise ValueError(
            f"ModelSettings.direction must be {others} for {settings.model.name}, got {settings.model.direction!r}"
        )
    frames = longest_frames(settings, train, held_out)
    network = choose_sequence_size(settings.model, len(train.channels), frames)
    model = make_model(
        network.name,
        train,
        task=data.task,
        horizon=data.horizon,
        target_channels=data.target_channels,
        pooling=network.pooling or None,
        options=network_options(network, frames),
    )
    if settings.train.chunk and (why := why_not_chunks(model, frames)) is not None:
        raise ValueError(f"TrainSettings.chunk must be 0 here, got {settings.train.chunk}: {why}")
    return model


def longest_frames(settings: Settings, train: Sequences, held_out: Sequences | None) -> int:
    """The most frames that the network gets at once: of a forecast a window, else the longest sequence."""
    longest = max(int(part.lengths.max()) for part in (train, held_out) if part is not None)
    return min(longest, settings.data.seq_len) if settings.data.task == "forecast" else longest


def network_options(settings: ModelSettings, frames: int) -> dict[str, Any]:
    """The options of `longstream.build` or `longstream.baselines.build` that the settings stand for.

    Options of another network than the one that is named are left out: a settings file serves several.
    """
    name, more = settings.name, frame_options(settings)
    options: dict[str, Any] = {
        "hidden_size": settings.hidden_size,
        "num_layers": settings.num_hidden_layers,
        "window_size": min(frames, settings.attention_window) if name == "hybrid" else frames,
    }
    if name == "hyena" and settings.max_seq_len:
        options["window_size"] = settings.max_seq_len
    if name == "vit":
        return options | {"intermediate_size": settings.intermediate_size or None, "dropout": settings.dropout}
    if name.startswith("edifice-"):
        return options | ({"dropout": settings.dropout} if settings.dropout else {})
    if name in ("llama", "mamba", "mamba2"):
        sizes = {"llama": {"intermediate_size": settings.intermediate_size}}.get(name, {})
        return options | {key: size for key, size in sizes.items() if size}
    options |= {
        "hidden_ratio": settings.hidden_ratio,
        "intermediate_size": settings.intermediate_size or None,
        "dropout": settings.dropout,
    }
    if settings.direction != "causal":
        options |= {"causal": False} if name == "hyena" else {"direction": settings.direction}
    if name in ("hgrn", "gru", "lstm"):
        options["expand_ratio"] = settings.recurrence_ratio
    elif settings.has_expand_ratio:
        options["expand_ratio"] = settings.state_size
    elif name == "hyena":
        options["order"] = settings.hyena_order
    if name == "hybrid":
        options["attention_every"] = settings.attention_every
    if settings.use_short_conv and name in ("hgrn", "hgrn2", "hybrid"):
        options["conv_size"] = settings.conv_size
    return options | more


def choose_sequence_size(settings: ModelSettings, channels: int, frames: int) -> ModelSettings:
    """As `longstream.train.models.choose_size`, for a network of frames: no embeddings, and the head not counted."""

    @cache
    def count(sized: ModelSettings) -> int:
        with torch.device("meta"):
            network = build_features(sized.name, channels, network_options(sized, frames))
        return sum(p.numel() for p in network.parameters())

    def count_by_layers(sized: ModelSettings) -> int:
        """Parameters grow in proportion to the layers; a hybrid's, to its groups of HGRN2 and attention."""
        few = settings.attention_every if settings.name == "hybrid" else 1
        depth = sized.num_hidden_layers
        if depth <= 2 * few or depth % few:
            return count(sized)
        once, twice = (count(replace(sized, num_hidden_layers=n * few)) for n in (1, 2))
        return once + (depth // few - 1) * (twice - once)

    return choose_size(settings, 0, 0, count=count_by_layers, step=4)  # models of frames may be small
