"""The rows of other packages in `longstream bench step`, as wide and as deep as ours.

GRU and LSTM are torch's own of several layers; minGRU's layers stand one after another with a residual, which it leaves
to its users; Mamba and Mamba-2 are transformers' whole models with their cache. Only those get a linear map from frames
to their width; none has an MLP, so a layer of theirs is less than a block of ours: the tables say how many parameters
each has. Where one layer is the subject they have one as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longstream.bench import peers
from longstream.bench.step_ours import Contender, Ready, bytes_of
from longstream.bench.step_subject import Prepared, refuse_text

ORACLE = "itself in float64, its parallel pass"


class _Rnn(nn.Module):
    """torch.nn.GRU or LSTM."""

    def __init__(self, kind: Callable[..., nn.Module], width: int, hidden: int, layers: int):
        super().__init__()
        self.rnn = kind(width, hidden, num_layers=layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, E) -> (B, T, D)."""
        return self.rnn(x)[0]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, E) -> (B, D) and the state."""
        y, state = self.rnn(x[:, None], state)
        return y[:, 0], state


class _MinGru(nn.Module):
    """Layers of minGRU-pytorch."""

    def __init__(self, width: int, hidden: int, layers: int):
        super().__init__()
        kind = peers.load("minGRU_pytorch").minGRU
        self.proj = nn.Linear(width, hidden) if width != hidden else nn.Identity()
        self.layers = nn.ModuleList(kind(hidden) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, E) -> (B, T, D)."""
        x = self.proj(x)
        for layer in self.layers:
            x = x + layer(x)
        return x

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, E) -> (B, D) and the state."""
        x, new = self.proj(x)[:, None], []
        for i, layer in enumerate(self.layers):
            y, h = layer(x, None if state is None else state[i], return_next_prev_hidden=True)
            x = x + y
            new.append(h)
        return x[:, 0], new


class _Transformers(nn.Module):
    """A model of transformers on frames, with its cache for the steps."""

    def __init__(self, name: str, width: int, hidden: int, layers: int):
        super().__init__()
        self.cache_kind = peers.load("transformers").DynamicCache
        from longstream.baselines.frames import TransformersBackbone

        self.proj = nn.Linear(width, hidden) if width != hidden else nn.Identity()
        self.model = TransformersBackbone(name, hidden, layers).model

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, E) -> (B, T, D)."""
        return self.model(inputs_embeds=self.proj(x), use_cache=False).last_hidden_state

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """x (B, E) -> (B, D) and the cache, which it changes."""
        cache = self.cache_kind(config=self.model.config) if state is None else state
        out = self.model(inputs_embeds=self.proj(x)[:, None], cache_params=cache, use_cache=True)
        return out.last_hidden_state[:, 0], cache


def _ready(build: Callable[[int, int, int], nn.Module]) -> Callable[[Prepared, int], Ready]:
    def make(given: Prepared, threads: int) -> Ready:
        refuse_text(given)
        torch.manual_seed(0)
        subject, width = given.subject, given.frames[0].shape[1]
        module: Any = build(width, subject.hidden_size, 1 if subject.is_layer else subject.layers).eval()
        module.requires_grad_(requires_grad=False)
        state: Any = None

        def step(frame: Tensor) -> Tensor:
            nonlocal state
            y, state = module.step(frame, state)
            return y

        def restart() -> None:
            nonlocal state
            state = None

        with torch.inference_mode():
            exact = copy.deepcopy(module).double()(torch.stack(given.frames[: given.checked], 1).double())
        count = sum(p.numel() for p in module.parameters())
        return Ready(step, restart, exact.transpose(0, 1), ORACLE, count, bytes_of(module))

    return make


def other_contenders() -> list[Contender]:
    """GRU, LSTM, minGRU, Mamba, Mamba-2."""
    return [
        Contender("nn.GRU", "torch", _ready(lambda *sizes: _Rnn(nn.GRU, *sizes))),
        Contender("nn.LSTM", "torch", _ready(lambda *sizes: _Rnn(nn.LSTM, *sizes))),
        Contender("minGRU", "minGRU-pytorch", _ready(_MinGru)),
        Contender("Mamba", "transformers", _ready(lambda *sizes: _Transformers("mamba", *sizes))),
        Contender("Mamba2", "transformers", _ready(lambda *sizes: _Transformers("mamba2", *sizes))),
    ]
