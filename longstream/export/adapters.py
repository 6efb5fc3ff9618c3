"""A model as a graph sees it: one input, one output, and a state."""

from typing import Any

import torch
from torch import Tensor, nn

from longstream.edifice._parts import Stack
from longstream.models import Backbone, FeatureModel, LanguageModel, State
from longstream.models.decode import longest

FORMS = ("onnx", "pt2")
GRAPHS = ("step", "chunk")


class Adapter(nn.Module):
    """What an exporter asks of a model, whatever its kind.

    Attributes:
        inputs: names of the input, of a step and of a chunk.
        output: name of the output.
        tail:   shape of the input of a step without the batch.
        dtype:  of the input.
        each_frame: whether a chunk has an output for each frame, not one for the sequence so far.
    """

    inputs = ("frame", "frames")
    output = "output"
    dtype = torch.float32
    each_frame = True

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.tail: tuple[int, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Of what decides a state's meaning."""
        return self.init_state(1).fingerprint

    @property
    def max_seq_len(self) -> int | None:
        """The most tokens that the model takes in; None is no limit."""
        limits = [module.seq_len for module in self.modules() if type(module).__name__ == "HyenaBlock"]
        return min([*limits, *filter(None, [longest(self)])], default=None)  # type: ignore[type-var]

    def init_state(self, rows: int) -> State:
        """The state before the first token."""
        return self.model.init_state(rows)  # type: ignore[operator]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token of each row."""
        return self.model.step(x, state)  # type: ignore[operator]

    def chunk(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Some tokens of each row."""
        return self.model(x, state)

    def example(self, *shape: int) -> Tensor:
        """Random inputs, (*shape, *tail)."""
        return torch.randn(*shape, *self.tail)

    def about(self) -> dict[str, Any]:
        """What a graph's metadata say of this kind of model."""
        return {"kind": "frames"}


class Frames(Adapter):
    """A `FeatureModel`, or a backbone alone."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.tail = (getattr(model, "embed_dim", model.hidden_size),)  # type: ignore[assignment]

    def chunk(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One vector for each frame, whatever the model's ``outputs``."""
        return self.model(x, state, outputs="all") if isinstance(self.model, FeatureModel) else self.model(x, state)


class Tokens(Adapter):
    """A language model: embeddings, backbone and head, without the rows that pad its vocabulary."""

    inputs = ("token", "tokens")
    output = "logits"
    dtype = torch.int64

    def __init__(self, embeddings: nn.Module, backbone: Backbone, head: nn.Module, vocab_size: int):
        super().__init__(backbone)
        self.embeddings, self.head, self.vocab_size = embeddings, head, vocab_size

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B,) -> logits (B, vocab_size)."""
        y, state = super().step(self.embeddings(x), state)
        return self.head(y)[..., : self.vocab_size], state

    def chunk(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, T) -> logits (B, T, vocab_size)."""
        y, state = super().chunk(self.embeddings(x), state)
        return self.head(y)[..., : self.vocab_size], state

    def example(self, *shape: int) -> Tensor:
        """Random ids."""
        return torch.randint(self.vocab_size, shape)

    def about(self) -> dict[str, Any]:
        """The vocabulary's size."""
        return {"kind": "tokens", "vocab_size": self.vocab_size}


class Sequences(Adapter):
    """A `longstream.sequences.SequenceModel`: what it says of a sequence so far, or its forecasts after each frame."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.config, self.tail = model.config, (len(model.config.channels),)
        self.output = "logits" if self.config.task == "classify" else "prediction"
        self.each_frame = self.config.task == "forecast"

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, C) -> logits (B, classes), prediction (B, K) or (B, horizon, K)."""
        out, state = super().step(x, state)  # type: ignore[assignment]
        return getattr(out, self.output), state

    def chunk(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, T, C) -> of the sequence so far, or (B, T, horizon, K)."""
        out: Any = self.model(x, state=state)
        return getattr(out, self.output), out.state

    def example(self, *shape: int) -> Tensor:
        """Random values on the scale of the data, some of them missing where the model knows of that."""
        model: Any = self.model
        x = super().example(*shape) * model.std + model.mean
        for channel in self.config.indicators:
            x[..., channel].masked_fill_(torch.rand(shape) < 0.1, float("nan"))
        return x.float()

    def about(self) -> dict[str, Any]:
        """Channels, task, and classes or targets."""
        config = self.config
        names = ("task", "channels", "indicators", "classes", "target_names", "horizon", "pooling")
        return {"kind": "sequences", **{name: getattr(config, name) for name in names}}


def adapt(model: nn.Module) -> Adapter:
    """The adapter of a model.

    Raises:
        TypeError: what kind of model it is is not known.
    """
    if isinstance(model, LanguageModel):
        return Tokens(model.embeddings, model.backbone, model.lm_head, model.vocab_size)
    if isinstance(model, FeatureModel | Backbone | Stack):
        return Frames(model)
    if hasattr(model, "lm_head") and isinstance(getattr(getattr(model, "model", None), "backbone", None), Backbone):
        inner: Any = model.model  # one of longstream.hf
        return Tokens(inner.embeddings, inner.backbone, model.lm_head, model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    if getattr(getattr(model, "config", None), "model_type", "") == "longstream-sequence":
        return Sequences(model)
    raise TypeError(
        "export: model must be a FeatureModel, LanguageModel, SequenceModel, a causal language model of longstream.hf"
        f" or a backbone, got {type(model).__name__}"
    )
