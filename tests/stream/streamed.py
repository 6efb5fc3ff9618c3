"""Small models of every kind, what streams of them should answer, and streams of both backends."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import longstream
from longstream.models import AttentionConfig, HGRN2Config, HyenaConfig, LanguageModel, ModelConfig, State
from longstream.models.decode import distill
from longstream.stream import Stream
from longstream.stream.program import why_not_native

E, VOCABULARY, LONGEST = 5, 23, 96
both = pytest.mark.parametrize("backend", ["eager", "native"])
CLOSE = 1e-5  # of the largest output: a model of two layers in float32


def catalog(name: str) -> nn.Module:
    """A model of `longstream.list_models`."""
    return longstream.build(name, embed_dim=E, hidden_size=16, num_layers=2, window_size=LONGEST)


def modal() -> nn.Module:
    """Hyena by modes that were fitted to its filters; its streams are to be like itself, not like the filters."""
    model = catalog("hyena")
    distill(model, 6)
    return model


def language() -> nn.Module:
    """Tokens: one layer of each kind."""
    layers = (HGRN2Config(expand_ratio=4, conv_size=3), AttentionConfig(num_heads=2, window_size=7))
    return LanguageModel(ModelConfig(hidden_size=16, num_layers=2, vocab_size=VOCABULARY, layers=layers))


def hyena_language() -> nn.Module:
    """Tokens through Hyena."""
    mixer = HyenaConfig(max_seq_len=LONGEST)
    return LanguageModel(ModelConfig(hidden_size=16, num_layers=2, vocab_size=VOCABULARY, mixer=mixer))


def sequence(task: str) -> Callable[[], nn.Module]:
    """A model of sequences whose last channel may be missing."""

    def make() -> nn.Module:
        import numpy as np

        from longstream.sequences import Sequences, make_model  # which takes seconds to import

        random = np.random.default_rng(0)
        values = [random.normal(size=(20, E)).astype(np.float32) * 3 + 1 for _ in range(4)]
        values[0][3, -1] = np.nan
        data = Sequences(values, channels=tuple("abcde"), labels=np.array(["x", "y", "x", "y"]))
        more: dict[str, Any] = {"horizon": 3} if task == "forecast" else {}
        model = make_model("hgrn2", data, task=task, options={"hidden_size": 16, "num_layers": 2}, **more)
        nn.init.normal_(model.head.weight, std=0.5)
        return model

    return make


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{info.name: (lambda name=info.name: catalog(name)) for info in longstream.list_models()},
    "modal": modal,
    "language": language,
    "hyena-language": hyena_language,
    "classify": sequence("classify"),
    "forecast": sequence("forecast"),
}


def make(name: str) -> Any:
    """A model of `MODELS`, the same in every process, in evaluation mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def make_frames(model: Any, rows: int, T: int, seed: int = 1) -> Tensor:
    """(B, T, E) numbers, or (B, T) tokens."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, LanguageModel):
        return torch.randint(VOCABULARY, (rows, T), generator=generator)
    return torch.randn(rows, T, E, generator=generator)


@torch.no_grad()
def parallel(model: Any, x: Tensor) -> Tensor:
    """(B, T, ...): what the model answers after each prefix, by its parallel pass."""
    if isinstance(model, LanguageModel):
        return model(x)[0]
    if isinstance(model, longstream.FeatureModel):
        return model(x, outputs="all")[0]
    if model.config.task == "forecast":
        return model(x).prediction
    return torch.stack([model(x[:, : t + 1]).logits for t in range(x.shape[1])], dim=1)


@torch.no_grad()
def parallel_from(model: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """(B, T, ...): the answers of a `FeatureModel` or a `LanguageModel` from a state on, and the last state."""
    return model(x, state) if isinstance(model, LanguageModel) else model(x, state, outputs="all")


def make_stream(model: Any, backend: str, **options: Any) -> Stream:
    """A stream of this backend, which skips a test where there is no library."""
    if backend == "native" and (why := why_not_native()) is not None:
        pytest.skip(f"no native step: {why}")
    return Stream(model, backend=backend, threads=1, **options)


def close(got: Tensor, wanted: Tensor, scale: Tensor | None = None, within: float = CLOSE) -> bool:
    """Whether they differ by no more than ``within`` of the largest number of ``scale``, or of ``wanted``."""
    most = (wanted if scale is None else scale).abs().max().clamp(min=1e-3)
    return bool((got - wanted).abs().max() <= within * most)


def same(a: State, b: State) -> bool:
    """Whether two states are the same, bit for bit; one may have room for more than the other."""
    if a.batch_size != b.batch_size or a.fingerprint != b.fingerprint:
        return False
    whole = State.cat([a, b])
    return all(torch.equal(*tensor.chunk(2)) for tensor in whole.tensors())
