"""The configuration of a model of sequences, as transformers keeps it beside the weights."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import PretrainedConfig
from transformers.configuration_utils import strict  # type: ignore[attr-defined]

TASKS = ("classify", "regress", "forecast")
POOLINGS = ("mean", "last")


@strict
class SequenceConfig(PretrainedConfig):
    """What `SequenceModel` is made from; the normalization is with the weights.

    Args:
        name:            of the network: one that `longstream.build` or `longstream.baselines.make_backbone` knows.
        options:         what that function takes, but embed_dim and outputs.
        task:            "classify", a class for each sequence; "regress", numbers for each; "forecast", after each
                         frame the frames that follow.
        channels:        names of the C numbers of a frame.
        indicators:      numbers of the channels that may have missing values: whether a value is there is one input
                         more for each.
        classes:         names of the classes, in the order of the logits. "classify" only.
        target_names:    names of the K predicted numbers; for "forecast" those of the channels that are predicted.
        horizon:         frames ahead. "forecast" only.
        residual:        whether a forecast is the last frame plus what the network says, not the latter alone.
        pooling:         one vector for the sequence: "mean" of all frames' vectors, or that of the "last" frame.
    Raises:
        ValueError: a field has a value that makes no sense, or the task lacks one.
    """

    model_type = "longstream-sequence"

    name: str = "hgrn2"
    options: dict[str, Any] = field(default_factory=dict)
    task: str = "classify"
    channels: list[str] = field(default_factory=list)
    indicators: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    target_names: list[str] = field(default_factory=list)
    horizon: int = 1
    residual: bool = True
    pooling: str = "mean"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name, known in (("task", TASKS), ("pooling", POOLINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"SequenceConfig: {name} must be one of {known}, got {getattr(self, name)!r}")
        if not self.channels:
            return  # transformers makes an empty one to compare with
        C = len(self.channels)
        if sorted(set(self.indicators)) != list(self.indicators) or not all(0 <= i < C for i in self.indicators):
            raise ValueError(
                f"SequenceConfig: indicators must be channel numbers in [0, {C}), in order, got {self.indicators}"
            )
        if self.task == "classify":
            if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
                raise ValueError(f"SequenceConfig: classes must be two or more different names, got {self.classes}")
        elif not self.target_names:
            raise ValueError(f"SequenceConfig: target_names must name what to {self.task}, got none")
        if self.horizon < 1:
            raise ValueError(f"SequenceConfig: horizon must be >= 1, got {self.horizon}")
        if self.task == "forecast" and (unknown := [name for name in self.target_names if name not in self.channels]):
            raise ValueError(
                f"SequenceConfig: target_names of a forecast must be of the channels {self.channels}, got {unknown}"
            )

    @property
    def is_grid(self) -> bool:
        """Whether a sequence is an image, (height, width, C)."""
        return str(self.options.get("direction", "")).startswith("2d")

    @property
    def inputs(self) -> int:
        """E, the numbers that the network gets for a frame: channels and indicators."""
        return len(self.channels) + len(self.indicators)

    @property
    def outputs(self) -> int:
        """Numbers that the head gives: of a sequence, or for "forecast" of a frame."""
        if self.task == "classify":
            return len(self.classes)
        return len(self.target_names) * (self.horizon if self.task == "forecast" else 1)

    @property
    def target_channels(self) -> list[int]:
        """Numbers of the channels that are forecast."""
        return [self.channels.index(name) for name in self.target_names]
