"""An exact sliding window: what a model says of the last W frames, and of nothing before them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longstream.layers._padding import run_unpadded
from longstream.layers.state import register_state
from longstream.ops._check import check_cu_seqlens

_WINDOWS_AT_ONCE = 64  # in a parallel pass: bounds its memory to that of so many windows


@register_state
class WindowState(NamedTuple):
    """The last frames that were seen."""

    frames: Tensor  # (B, W - 1, ...), newest last, zeros where nothing has been seen yet
    length: Tensor  # (B,) int64, how many of them have been seen, at most W - 1


class Window(nn.Module):
    """``y_t = model(x_{t-W+1}, ..., x_t)``, its last output: the model starts anew for every frame.

    The other policy is the model's own state, which remembers what came before the window too. A window costs W frames
    of work for each; it takes any number of frames, also with a model, such as Hyena, that ends at a longest sequence.

    Args:
        model:  takes (B, W, ...) and a mask, and returns (B, W, ...) or (B, ...), and a state.
        frames: W >= 1.
    Raises:
        ValueError: frames is not an integer >= 1.
    """

    def __init__(self, model: nn.Module, frames: int):
        super().__init__()
        if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
            raise ValueError(f"Window: frames must be an integer >= 1, got {frames!r}")
        self.model, self.frames = model, frames
        for name in ("hidden_size", "embed_dim", "vocab_size"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def forward(
        self,
        x: Tensor,
        state: WindowState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, WindowState]:
        """x (B, T, ...) -> y (B, T, ...), the window's output at each frame, and the state.

        mask and cu_seqlens as everywhere: pads are as if not there, a boundary empties the window.
        """
        if mask is not None:
            return run_unpadded("Window", self.forward, x, state, mask, cu_seqlens=cu_seqlens)
        bounds = check_cu_seqlens("Window", cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None:
            frames = x.new_zeros(rows, self.frames - 1, *x.shape[2:])
            state = WindowState(frames, torch.zeros(rows, dtype=torch.long, device=x.device))
        self._check_state(state, x, rows)
        if bounds is None:
            return self._slide(x, state)
        outs, lasts = [], []
        for row, (left, right) in enumerate(pairwise(bounds)):
            y, last = self._slide(x[:, left:right], WindowState(*(t[row : row + 1] for t in state)))
            outs.append(y)
            lasts.append(last)
        return torch.cat(outs, dim=1), WindowState(*(torch.cat(tensors) for tensors in zip(*lasts, strict=True)))

    def step(self, x_t: Tensor, state: WindowState | None = None) -> tuple[Tensor, WindowState]:
        """One frame: x_t (B, ...) -> y_t (B, ...) and the state after it."""
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def _slide(self, x: Tensor, state: WindowState) -> tuple[Tensor, WindowState]:
        W, T = self.frames, x.shape[1]
        stream = torch.cat([state.frames.to(x.dtype), x], dim=1)  # (B, W - 1 + T, ...)
        seen = state.length[:, None] + torch.arange(1, T + 1, device=x.device)  # (B, T) frames up to each, ever
        last = WindowState(stream[:, T:], seen[:, -1].clamp(max=W - 1) if T else state.length)
        if not T:
            some, _ = self.model(stream.new_zeros(1, 1, *x.shape[2:]))
            return some.new_zeros(x.shape[0], 0, some.shape[-1]), last
        windows = stream.unfold(1, W, 1).movedim(-1, 2)  # (B, T, W, ...)
        mask = torch.arange(W, device=x.device) >= W - seen[..., None]  # (B, T, W)
        outs = [
            self._look(windows[:, t : t + _WINDOWS_AT_ONCE], mask[:, t : t + _WINDOWS_AT_ONCE])
            for t in range(0, T, _WINDOWS_AT_ONCE)
        ]
        return torch.cat(outs, dim=1), last

    def _look(self, windows: Tensor, mask: Tensor) -> Tensor:
        shape = windows.shape[:2]
        windows, mask = windows.flatten(0, 1), mask.flatten(0, 1)
        y, _ = self.model(windows) if bool(mask.all()) else self.model(windows, mask=mask)
        return (y[:, -1] if y.dim() == 3 else y).unflatten(0, shape)

    def _check_state(self, state: Any, x: Tensor, rows: int) -> None:
        if not isinstance(state, WindowState):
            raise TypeError(f"Window: state must be a WindowState or None, got {type(state).__name__}")
        expected = (rows, self.frames - 1, *x.shape[2:])
        if tuple(state.frames.shape) != expected:
            raise ValueError(f"Window: state.frames must have shape {expected}, got {tuple(state.frames.shape)}")
