"""What `longstream bench step` steps: a model by name, a layer, a language model, that of a run; and its frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longstream import HGRN, HGRN2, Hyena, build, list_models
from longstream.bench.measure import Skip
from longstream.edifice.hyena import HyenaBlock
from longstream.models import HGRN2Config, LanguageModel, ModelConfig
from longstream.models.decode import longest

LAYERS: dict[str, Callable[..., nn.Module]] = {"hgrn-layer": HGRN, "hgrn2-layer": HGRN2, "hyena-layer": Hyena}
TEXT = "hgrn2-text"  # a language model of random weights, for decoding
CHECKED = 64  # frames that every row is checked on, past the end of the usual window
CHECKED_TEXT = 12  # tokens, of models whose float64 passes take seconds
FRAMES = 256  # that go round and round
CONTEXT = 4096  # frames that Hyena's filters reach: it starts anew after so many


@dataclass(frozen=True)
class Subject:
    """The choice of a model and its sizes. Those of a run are its own."""

    model: str = "edifice-hgrn"  # of `names`, or the folder of a run
    embed_dim: int = 287
    hidden_size: int = 256
    layers: int = 2
    batch: int = 1
    window: int = 60  # frames that the row which runs a window anew looks at
    vocab_size: int = 32000  # of text

    @property
    def is_text(self) -> bool:
        """Whether it is a language model of random weights."""
        return self.model == TEXT

    @property
    def is_layer(self) -> bool:
        """Whether it is one layer without anything around it."""
        return self.model in LAYERS

    @property
    def title(self) -> str:
        """In words, with the sizes."""
        if self.is_layer:
            return f"{self.model.removesuffix('-layer')}, one layer {self.hidden_size} wide, B = {self.batch}"
        if self.model not in names():
            return f"{self.model}, B = {self.batch}"
        first = f"{self.vocab_size:,} tokens" if self.is_text else str(self.embed_dim)
        return f"{self.model}, {first} -> {self.hidden_size} x {self.layers} layers, B = {self.batch}"


@dataclass(frozen=True)
class Prepared:
    """A subject, made: eval mode, float32, the same for every row of it."""

    subject: Subject
    module: Any
    frames: list[Tensor]  # of one step each: (B, E), or (B,) tokens
    window: int | None  # None where there is no model to run anew
    longest: int | None  # frames until it must start anew
    exact: Tensor  # (T, B, ...), what the first T frames give in float64

    @property
    def checked(self) -> int:
        """T, how many frames the oracle covers."""
        return len(self.exact)

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.module.parameters())


def names() -> list[str]:
    """Models that `Subject` knows by name."""
    return [*(info.name for info in list_models()), *LAYERS, TEXT]


def prepare(subject: Subject) -> Prepared:
    """Make the model from a seed, or load it, and its frames.

    Raises:
        ValueError, FileNotFoundError: there is no such model.
    """
    torch.manual_seed(0)
    module = _make(subject).eval().requires_grad_(requires_grad=False)
    frames = _frames(subject, module)
    limit = _longest(module)
    checked = min(CHECKED_TEXT if is_tokens(module) else CHECKED, limit or CHECKED)
    exact = whole_pass(module, frames[:checked])
    window = None if subject.is_layer or is_tokens(module) or hasattr(module, "config") else subject.window
    return Prepared(subject, module, frames, window, limit, exact)


def is_tokens(module: Any) -> bool:
    """Whether a frame is the number of a token."""
    return isinstance(module, LanguageModel)


@torch.inference_mode()
def whole_pass(module: Any, frames: list[Tensor]) -> Tensor:
    """The outputs (T, B, ...) of a model for all frames at once, in float64."""
    exact = copy.deepcopy(module).double()
    for part in exact.modules():
        if getattr(part, "backend", None) not in (None, "reference"):
            part.backend = "torch"  # type: ignore[assignment]
    x = torch.stack(frames, 1)
    if is_tokens(module):
        return exact(x)[0].transpose(0, 1)
    x = x.double()
    if hasattr(module, "config") and hasattr(module.config, "channels"):  # answers once for a sequence: each prefix
        return torch.stack([answer(exact(x[:, : t + 1])) for t in range(x.shape[1])])
    y, _ = exact(x, outputs="all") if hasattr(module, "outputs") else exact(x)
    return y.transpose(0, 1)


def answer(output: Any) -> Tensor:
    """The tensor that a model's step gives, whatever it is wrapped in; of forecasts that of the last frame."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, np.ndarray):
        return torch.from_numpy(output)
    if output.logits is not None:
        return output.logits
    return output.prediction[:, -1] if output.prediction.dim() == 4 else output.prediction


def _make(subject: Subject) -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": subject.hidden_size, "num_layers": subject.layers}
    if subject.is_layer:
        state = {"expand_ratio": _head(subject.hidden_size)}
        more = {"hyena-layer": {"max_seq_len": CONTEXT}, "hgrn2-layer": state}.get(subject.model, {})
        return LAYERS[subject.model](subject.hidden_size, **more)
    if subject.is_text:
        mixer = HGRN2Config(expand_ratio=_head(subject.hidden_size))
        return LanguageModel(ModelConfig(mixer=mixer, vocab_size=subject.vocab_size, tie_embeddings=True, **sizes))
    if subject.model in names():
        context = CONTEXT if subject.model == "hyena" else subject.window
        return build(subject.model, embed_dim=subject.embed_dim, window_size=context, **sizes)
    return _load(subject.model)


def _head(hidden_size: int) -> int:
    """Channels of a head of HGRN2: the papers' 128, or less where they do not divide the width."""
    return next(k for k in (128, 64, 32, 16, 8, 1) if hidden_size % k == 0)


def _load(path: str) -> nn.Module:
    if not Path(path).is_dir():
        raise ValueError(f"--model must be one of {', '.join(names())}, or the folder of a run, got {path!r}")
    from longstream.train.loading import SEQUENCE_MODEL, load_run, read_model_type

    if read_model_type(path) == SEQUENCE_MODEL:
        from longstream.sequences import SequenceModel

        model = SequenceModel.from_pretrained(path)
        if model.why_no_state is not None:
            raise ValueError(f"--model {path} has no step: {model.why_no_state}")
        return model
    model = load_run(path).model
    inside = getattr(model, "language_model", None)
    if not isinstance(inside, LanguageModel):
        raise ValueError(f"--model {path} is a baseline, {type(model).__name__}; give a run of a longstream model")
    return inside


def _longest(module: Any) -> int | None:
    """The most frames that one stream may have: those that filters reach; None is no limit."""
    limits = [part.seq_len for part in module.modules() if isinstance(part, HyenaBlock)]
    return min([*limits, *filter(None, [longest(module)])], default=None)


def _frames(subject: Subject, module: Any) -> list[Tensor]:
    if is_tokens(module):
        return [*torch.randint(0, module.vocab_size, (FRAMES, subject.batch))]
    channels = getattr(getattr(module, "config", None), "channels", None)
    width = len(channels) if channels else getattr(module, "embed_dim", None) or module.hidden_size
    return [*torch.randn(FRAMES, subject.batch, width)]


def refuse_text(prepared: Prepared) -> None:
    """Skip a row that takes frames of numbers.

    Raises:
        Skip: the subject is a language model.
    """
    if is_tokens(prepared.module):
        raise Skip("it takes frames of numbers, and this is text")
