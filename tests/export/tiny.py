"""Models small enough to be traced in a second, and what an exported graph is compared with."""

from typing import Any

import numpy as np
import torch

import longstream
from longstream.export import Runner
from longstream.models import HGRN2Config, HGRNConfig, HyenaConfig, LanguageModel, ModelConfig

E = 5

MODELS: dict[str, dict[str, Any]] = {
    "hgrn": {"num_layers": 2},
    "hgrn2": {"num_layers": 2, "expand_ratio": 4},
    "hyena": {"num_layers": 2, "window_size": 40},
    "hybrid": {"num_layers": 2, "attention_every": 2, "window_size": 9, "expand_ratio": 4, "num_heads": 2},
    "edifice-hgrn": {"num_layers": 2},
    "edifice-hyena": {"num_layers": 2, "window_size": 40},
}


def tiny(name: str, **options: Any) -> Any:
    """A model of frames of E numbers, 8 channels wide, in evaluation mode."""
    torch.manual_seed(0)
    model = longstream.build(name, **{"embed_dim": E, "hidden_size": 8, **MODELS[name], **options})
    with torch.no_grad():  # no parameter may be of the kind that changes nothing
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_language(kind: str = "hgrn2", **options: Any) -> LanguageModel:
    """A language model of 11 ids in a vocabulary padded to 16."""
    torch.manual_seed(0)
    mixers: dict[str, Any] = {
        "hgrn": HGRNConfig(unit="complex", conv_size=3),
        "hgrn2": HGRN2Config(expand_ratio=4, conv_size=2),
        "hyena": HyenaConfig(max_seq_len=30, order=3, num_heads=2, activation="gelu"),
    }
    sizes = {"hidden_size": 8, "num_layers": 2, "intermediate_size": 16, "vocab_size": 11, "vocab_multiple": 8}
    return LanguageModel(ModelConfig(mixer=mixers[kind], **{**sizes, **options})).eval()


@torch.no_grad()
def largest_difference(runner: Runner, model: Any, tokens: int, lengths: tuple[int, ...], most: int | None) -> float:
    """Of outputs and states, over the largest value, between a runner and its model on inputs of its own.

    lengths: of the chunks in turn; () for steps. most: tokens after which both begin anew.
    """
    B, is_text = runner.batch_size, isinstance(model, LanguageModel)
    generator = torch.Generator().manual_seed(1)
    state, at, worst, largest, turn = model.init_state(B), 0, 0.0, 0.0, 0
    done = 0
    while done < tokens:
        n = lengths[turn % len(lengths)] if lengths else 1
        turn += 1
        if most is not None and at + n > most:
            state, at = model.init_state(B), 0
            runner.reset()
        shape = (B, n) if lengths else (B,)
        if is_text:
            x = torch.randint(11, shape, generator=generator)
        else:
            x = torch.randn(*shape, E, generator=generator)
        if lengths:
            got = runner.chunk(x)
            y, state = model(x, state) if is_text else model(x, state, outputs="all")
        else:
            got = runner.step(x)
            y, state = model.step(x, state)
        y = y[..., :11].numpy() if is_text else y.numpy()
        worst, largest = max(worst, float(np.abs(got - y).max())), max(largest, float(np.abs(y).max()))
        at, done = at + n, done + n
    assert runner.position.tolist() == state.position.tolist()
    before = runner.state
    runner.load(state)  # the model's own, in the form of the graph
    for name, tensor in runner.state.items():
        scale = max(float(np.abs(tensor).max()), 1e-30)
        assert np.abs(before[name] - tensor).max() <= 1e-4 * scale, name
    return worst / largest
