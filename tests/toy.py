"""A task that only memory solves: a cue shown for one frame, asked for some frames later, in a window of noise."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CUES = 4
NOISE, SIGNAL = 0.3, 2.0  # at which 250 steps are enough, and no more than enough


def cue_recall(
    model_factory: Callable[[], nn.Module],
    steps: int = 250,
    *,
    frames: int = 60,
    lag: int = 10,
    width: int = 24,
    batch: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
) -> float:
    """Train a new model for ``steps`` steps of Adam, each on fresh data; its accuracy on fresh data, chance being 1/4.

    model_factory: () -> a module that takes (B, frames, width) and returns (B, D) or (B, frames, D), and a state. A
    linear layer reads the cue off its last vector. lag: 0 shows the cue in the last frame.
    """
    torch.manual_seed(seed)
    model = model_factory()
    with torch.no_grad():
        read_out = nn.Linear(_last(model, torch.zeros(1, frames, width)).shape[-1], CUES)
    data = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([*model.parameters(), *read_out.parameters()], lr=lr)
    for _ in range(steps):
        x, cue = _draw(batch, frames, lag, width, data)
        loss = F.cross_entropy(read_out(_last(model, x)), cue)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        x, cue = _draw(512, frames, lag, width, data)
        return (read_out(_last(model, x)).argmax(-1) == cue).double().mean().item()


def _last(model: nn.Module, x: Tensor) -> Tensor:
    y, _ = model(x)
    return y if y.dim() == 2 else y[:, -1]


def _draw(batch: int, frames: int, lag: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise (B, frames, width), the cue's own channel raised in one frame, and the cues (B,)."""
    x = NOISE * torch.randn(batch, frames, width, generator=generator)
    cue = torch.randint(CUES, (batch,), generator=generator)
    x[torch.arange(batch), frames - 1 - lag, cue] += SIGNAL
    return x, cue
