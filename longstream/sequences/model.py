"""A model of sequences: frames of numbers in, a class, numbers or a forecast out; all at once or frame by frame.

More than 300 lines, because one class has all that a model is asked for: pieces of it would share its tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils.generic import ModelOutput

from longstream.edifice.hyena import HyenaBlock
from longstream.layers.state import register_state
from longstream.models import State
from longstream.models.decode import longest
from longstream.ops._check import check_shapes
from longstream.sequences.config import SequenceConfig
from longstream.sequences.data import Sequences
from longstream.sequences.loading import build_features, read_weights
from longstream.sequences.normalize import measure
from longstream.sequences.parts import count_frames, pool, refuse_values, weighted_mean, wide

_STATISTICS = ("mean", "std", "target_mean", "target_std")


@dataclass
class SequenceOutput(ModelOutput):
    """What `SequenceModel` returns; None for what does not apply.

    Attributes:
        loss:       () float32, with labels or targets.
        logits:     (B, classes), of "classify".
        prediction: (B, K) of "regress", (B, T, horizon, K) of "forecast", in the units of the data; 0 on pads.
        state:      after the last frame; None for a network that has none.
        hidden:     (B, T, D), the network's vector of each frame, 0 on pads; grids (B, height, width, D).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    prediction: Tensor | None = None
    state: Any = None
    hidden: Tensor | None = None


@register_state
class PooledState(NamedTuple):
    """What the pooling of a sequence carries on."""

    pooled: Tensor  # (B, D) float32: the sum of the frames' vectors so far, or the last of them


class SequenceModel(PreTrainedModel):
    """``head(pool(network(normalize(x))))``; without the pooling for forecasts.

    A frame enters as (x - mean) / std by channel; a missing value (NaN) as 0, and as 0 in the channel's indicator. The
    statistics are those of `set_normalization`, kept in the weights' file. Numbers come out in the units of the data.
    """

    config_class = SequenceConfig
    config: SequenceConfig
    base_model_prefix = "features"
    main_input_name = "values"
    step_rules = "longstream.sequences.stepping"  # see longstream.stream.rules.model_rule
    mean: Tensor
    std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, config: SequenceConfig):
        super().__init__(config)
        if not config.channels:
            raise ValueError("SequenceModel: config.channels must name the numbers of a frame, got none")
        self.features = build_features(config.name, config.inputs, config.options)
        if config.task == "forecast" and not self.causal:
            raise ValueError(f"SequenceModel: a forecast needs a causal network, got options {config.options}")
        if config.pooling == "last" and not self.causal:
            raise ValueError("SequenceModel: pooling must be 'mean' for a network that looks both ways, got 'last'")
        self.head = nn.Linear(self.features.output_size, config.outputs)
        nn.init.normal_(self.head.weight, std=0.02)  # near no preference, or for a forecast near the last value
        nn.init.zeros_(self.head.bias)
        C, K = len(config.channels), len(config.target_names)
        for name, size in zip(_STATISTICS, (C, C, K, K), strict=True):
            self.register_buffer(name, torch.ones(size) if name.endswith("std") else torch.zeros(size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module has drawn its own weights."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """The normalization stays in float32, or wider, whatever the weights become."""
        exact = {name: getattr(self, name) for name in _STATISTICS}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            now = getattr(self, name)
            if now.dtype.itemsize < 4:
                setattr(self, name, before.to(now.device))
        return self

    # what it can do

    @property
    def causal(self) -> bool:
        """Whether it goes from frame to frame."""
        return self.features.causal

    @property
    def max_frames(self) -> int | None:
        """The most frames of a sequence, which Hyena's filters limit; None is no limit."""
        limits = [m.seq_len for m in self.features.modules() if isinstance(m, HyenaBlock)]
        return min([*limits, *filter(None, [longest(self.features)])], default=None)

    @property
    def window(self) -> int | None:
        """The most frames to show a forecaster at once: `max_frames`, or of a network without a state those that it was
        made for; None is no limit.
        """
        options = self.config.options
        made_for = options.get("seq_len") or options.get("window_size")
        return self.max_frames or (None if self.why_no_state is None else made_for)

    @cached_property
    def why_no_state(self) -> str | None:
        """None for a network that carries a state from frame to frame, else why it does not, in words."""
        if not self.causal:
            return f"a {self.config.name} that looks both ways takes whole sequences"
        try:
            state = self.features.init_state(1)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            return str(error)
        return None if state is not None else f"{self.config.name} has no state"

    @cached_property
    def fingerprint(self) -> str:
        """Of what decides a state's meaning."""
        config = self.config
        inner = getattr(self.features.backbone, "fingerprint", config.name)
        parts = [inner, config.channels, config.indicators, config.task, config.pooling, self.features.hidden_size]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    # the data's own scale

    @torch.no_grad()
    def set_normalization(self, data: Sequences) -> None:
        """Take means and standard deviations, by channel and target, over the values of ``data`` that are there."""
        if list(data.channels) != list(self.config.channels):
            raise ValueError(
                f"SequenceModel.set_normalization: data must have the channels {self.config.channels}, got"
                f" {list(data.channels)}"
            )
        mean, std = measure(data.values)
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))
        if self.config.task == "forecast":
            self.target_mean.copy_(self.mean[self.config.target_channels])
            self.target_std.copy_(self.std[self.config.target_channels])
        elif self.config.task == "regress":
            if data.targets is None:
                raise ValueError("SequenceModel.set_normalization: data must have targets, got none")
            mean, std = measure([data.targets])
            self.target_mean.copy_(torch.from_numpy(mean))
            self.target_std.copy_(torch.from_numpy(std))

    # whole sequences, or pieces of them

    def forward(
        self,
        values: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        state: State | None = None,
        past: Tensor | None = None,
        past_mask: Tensor | None = None,
    ) -> SequenceOutput:
        """Logits or predictions for sequences, or for pieces of them that go on from a state.

        Args:
            values:  (B, T, C), or (B, height, width, C) for two-dimensional networks; NaN: missing.
            mask:    (B, T), 1 for frames and 0 for pads, which are as if not there. Not with grids.
            labels:  (B,) int, numbers of the classes.
            targets: "regress": (B, K). "forecast": (B, T + horizon - 1, K), the target channels from the second frame
                     on. In the units of the data; NaN: unknown, and left out of the loss.
            weights: (B,) of the sequences in the loss; None is 1 for each.
            state:   of B rows, or None for the start.
            past:    (B, P, C) frames before these, from whose state it starts, without gradients. Not with state.
            past_mask: (B, P), 1 for frames and 0 for pads of the past.
        Returns:
            `SequenceOutput`. With a state, logits and predictions are about the sequence from its start. The loss is a
            mean over sequences, observed targets or both: cross entropy; squared error ("regress") or absolute error
            ("forecast") on normalized targets.
        Raises:
            ValueError: shapes disagree, a value is infinite, or one is missing in a channel without an indicator.
        """
        if past is not None:
            if state is not None:
                raise ValueError("SequenceModel: past and state exclude each other, got both")
            with torch.no_grad():
                state = self.forward(past, past_mask).state
        hidden, last, z = self._encode(values, mask, state)
        pooled = None
        if self.config.task == "forecast":
            raw = self.head(hidden).unflatten(-1, (self.config.horizon, -1))  # (B, T, horizon, K)
            if self.config.residual:
                raw = raw + z[..., None, self.config.target_channels]
        else:
            before = None if state is None else state.layers[-1].pooled
            pooled = pool(hidden, mask, before, self.config.pooling)
            frames = count_frames(hidden, mask)
            raw = self.read(pooled, frames if state is None else frames + state.position)
        out = self._interpret(raw, mask, labels, targets, weights)
        out.hidden, out.state = hidden, self._wrap(last, pooled)
        return out

    def step(self, frame: Tensor, state: State | None = None) -> tuple[SequenceOutput, State]:
        """One frame: frame (B, C) -> the output after it, and the state.

        "classify" and "regress" answer for the frames so far, "forecast" (B, horizon, K) for those that follow.

        Raises:
            RuntimeError: the network has no state to go on from.    ValueError: as `forward`.
        """
        check_shapes("SequenceModel.step", {"C": len(self.config.channels)}, frame=(frame, "B C"))
        if not self.causal:
            raise RuntimeError(f"SequenceModel.step: {self.why_no_state}")
        out = self.forward(frame[:, None], state=state)
        if out.state is None:
            raise RuntimeError(f"SequenceModel.step: {self.why_no_state}")
        assert out.hidden is not None
        out.hidden = out.hidden[:, 0]
        if self.config.task == "forecast" and out.prediction is not None:
            out.prediction = out.prediction[:, 0]
        return out, out.state

    def init_state(self, batch_size: int = 1) -> State:
        """The state before the first frame, for ``batch_size`` rows.

        Raises:
            RuntimeError: the network has none.
        """
        if (why := self.why_no_state) is not None:
            raise RuntimeError(f"SequenceModel.init_state: {why}")
        pooled = self.head.weight.new_zeros(batch_size, self.features.output_size, dtype=torch.float32)
        state = self._wrap(self.features.init_state(batch_size), pooled)
        assert state is not None
        return state

    def read(self, pooled: Tensor, frames: Tensor) -> Tensor:
        """The head's numbers (B, outputs) from a `PooledState`'s tensor and how many frames (B,) it is of."""
        if self.config.pooling == "mean":
            pooled = pooled / frames.clamp(min=1)[:, None]
        return self.head(pooled.to(self.head.weight.dtype))

    def loss_of(
        self, raw: Tensor, labels: Tensor | None = None, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """The loss of the head's numbers for whole sequences, as `forward` has it; not of forecasts."""
        loss = self._interpret(raw, None, labels, targets, weights).loss
        if loss is None:
            raise ValueError(f"SequenceModel.loss_of: to {self.config.task} needs labels or targets, got none")
        return loss

    def _encode(self, values: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, Any, Tensor]:
        """Vectors of the frames, the network's own state, and the normalized values without NaN."""
        shape = "B Y X C" if self.config.is_grid else "B T C"
        check_shapes("SequenceModel", {"C": len(self.config.channels)}, values=(values, shape))
        values = values.to(self.mean.dtype)
        missing = values.isnan()
        if not torch.compiler.is_compiling():
            refuse_values(self.config, values, missing, mask)
        z = ((values - self.mean) / self.std).masked_fill(missing, 0.0)
        x = torch.cat([z, (~missing[..., self.config.indicators]).to(z.dtype)], dim=-1) if self.config.indicators else z
        hidden, last = self.features(x.to(self.head.weight.dtype), self._unwrap(state), mask=mask, outputs="all")
        return hidden, last, z

    def _interpret(
        self, raw: Tensor, mask: Tensor | None, labels: Tensor | None, targets: Tensor | None, weights: Tensor | None
    ) -> SequenceOutput:
        """The head's numbers in the units of the data, and the loss."""
        if self.config.task == "classify":
            if labels is None:
                return SequenceOutput(logits=raw)
            if labels.shape != raw.shape[:1] or labels.is_floating_point():
                got = f"{labels.dtype} {tuple(labels.shape)}"
                raise ValueError(f"SequenceModel: labels must be integers of shape (B={len(raw)},), got {got}")
            errors = F.cross_entropy(wide(raw), labels, reduction="none")
            return SequenceOutput(
                loss=weighted_mean(errors, torch.ones_like(labels, dtype=torch.bool), weights), logits=raw
            )
        raw = raw.to(self.target_mean.dtype)
        prediction = raw * self.target_std + self.target_mean
        if self.config.task == "forecast" and mask is not None:
            prediction = prediction * (mask != 0)[..., None, None]
        if targets is None:
            return SequenceOutput(prediction=prediction)
        sizes = {"B": len(raw), "K": len(self.config.target_names)}
        if self.config.task == "regress":
            check_shapes("SequenceModel", sizes, targets=(targets, "B K"))
        else:
            T, horizon = raw.shape[1:3]
            check_shapes(
                "SequenceModel", {**sizes, "T+horizon-1": T + horizon - 1}, targets=(targets, "B T+horizon-1 K")
            )
            targets = targets.unfold(1, horizon, 1).transpose(-1, -2)  # (B, T, horizon, K)
        observed = ~targets.isnan()
        if self.config.task == "forecast" and mask is not None:
            observed = observed & (mask != 0)[..., None, None]
        goal = (targets.to(raw.dtype).masked_fill(~observed, 0.0) - self.target_mean) / self.target_std
        errors = (raw - goal).square() if self.config.task == "regress" else (raw - goal).abs()
        return SequenceOutput(loss=weighted_mean(errors, observed, weights), prediction=prediction)

    # the state: the network's, with what the pooling carries on as one layer more

    def _wrap(self, state: Any, pooled: Tensor | None) -> State | None:
        if not isinstance(state, State) or not self.causal:
            return None
        extra = () if self.config.task == "forecast" or pooled is None else (PooledState(pooled),)
        return State((*state.layers, *extra), state.position, self.fingerprint)

    def _unwrap(self, state: State | None) -> State | None:
        if state is None:
            return None
        if (why := self.why_no_state) is not None:
            raise ValueError(f"SequenceModel: state must be None, got {type(state).__name__}: {why}")
        if not isinstance(state, State):
            raise TypeError(f"SequenceModel: state must be a State or None, got {type(state).__name__}")
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"SequenceModel: the state belongs to another model: expected fingerprint {self.fingerprint}, got"
                f" {state.fingerprint}"
            )
        layers = state.layers if self.config.task == "forecast" else state.layers[:-1]
        return State(layers, state.position, self.features.backbone.fingerprint)

    # files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what ``save_pretrained`` wrote: config.json and model.safetensors, of a folder or of the hub.

        Args:
            kwargs: config, dtype, output_loading_info, and what says where to look on the hub.
        Raises:
            ValueError: tensors are missing, spare or misshapen (all are named), or a file is damaged.
            OSError: there are no such files.
        """
        return read_weights(cls, pretrained_model_name_or_path, *args, **kwargs)


AutoConfig.register(SequenceConfig.model_type, SequenceConfig, exist_ok=True)
AutoModel.register(SequenceConfig, SequenceModel, exist_ok=True)
