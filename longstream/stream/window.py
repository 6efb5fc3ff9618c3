"""A stream that forgets: each output is the model's for the last W frames, exactly, and for nothing before them."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longstream.models import State, Window, WindowState
from longstream.stream.eager import EagerEngine
from longstream.stream.steps import Steps, inner_model
from longstream.stream.stream import Stream


class WindowStream(Stream):
    """B rows of a sliding window that go on frame by frame; see `sliding_window`, which makes it, and `Stream`.

    Its state is the last W - 1 frames of each row, as `longstream.models.WindowState`, and `position` counts all frames
    since the row began. There is no native backend: the whole model runs anew for each frame.
    """

    def __init__(
        self,
        model: Any,
        frames: int,
        *,
        batch_size: int = 1,
        history: int = 0,
        nonfinite: str = "raise",
        state: State | None = None,
    ):
        steps = self._steps = _WindowSteps(model, frames)
        self.frames, self.weights, self.backend = frames, "float32", "eager"
        self.why_not = {"native": "a window runs the whole model anew for each frame"}
        self._make_engine = lambda rows: EagerEngine(steps, rows, history)
        self._begin(batch_size, history, nonfinite, state)


def sliding_window(model: Any, frames: int, **options: Any) -> WindowStream:
    """A stream that sees the last ``frames`` frames, W, and nothing before: y_t = model(x_{t-W+1}, ..., x_t).

    What was seen longer ago than W frames has no influence at all, as with a model that is run over a window anew for
    each frame, because that is what happens: a step costs W frames of work, and a state holds W - 1 frames. The other
    policy, `unbounded`, remembers all that came, at the cost of one frame; the two agree on the first W frames.

    Args:
        model:   what `Stream` takes, and models without a state: those that look both ways are run over the window.
        frames:  W >= 1, no more than the model takes at once.
        options: batch_size, history, nonfinite and state, as of `Stream`.
    Raises:
        ValueError: frames is not an integer >= 1, or more than the model takes.
    """
    return WindowStream(model, frames, **options)


class _WindowSteps(Steps):
    """`Steps` whose state is the window."""

    def __init__(self, model: Any, frames: int):
        if not isinstance(model, nn.Module):
            raise TypeError(f"sliding_window: model must be a torch.nn.Module, got {type(model).__name__}")
        self._look_at(inner_model(model))
        self._window = Window(_Last(self._last), frames)
        if getattr(getattr(model, "config", None), "is_grid", False):
            raise ValueError(f"sliding_window: {type(model).__name__} takes pictures, not frames")
        inner = getattr(model, "fingerprint", None) or getattr(getattr(model, "backbone", None), "fingerprint", "")
        deciding = ["window", type(model).__name__, inner, frames, self.n_in, self.tokens]
        self._fingerprint = hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]
        self.first = self.init_state(1)
        zeros = torch.zeros(1, frames, *self.frame_shape(1)[1:], dtype=self.dtype, device=self.device)
        with torch.no_grad():  # a whole window, so that one that is too long for the model is refused now
            y, _ = self._run(zeros, None, None)
        self.output_shape, self.output_dtype = y.shape[1:], torch.promote_types(y.dtype, torch.float32)

    def init_state(self, rows: int) -> State:
        inner = self.frame_shape(rows)[1:]
        frames = torch.zeros(rows, self._window.frames - 1, *inner, dtype=self.dtype, device=self.device)
        length = torch.zeros(rows, dtype=torch.long, device=self.device)
        return State((WindowState(frames, length),), length.clone(), self._fingerprint)

    def is_state_fine(self, tensor: Tensor) -> Tensor:
        return ~self.is_bad(tensor).flatten(1).any(1) if tensor.dim() == 3 else super().is_state_fine(tensor)

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, last = self._window.step(x, state.layers[0])
        return y.unflatten(1, self.output_shape), State((last,), state.position + 1, self._fingerprint)

    @torch.no_grad()
    def prefill(self, x: Tensor, state: State | None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """One window, however many frames: the last one's."""
        state = self.init_state(len(x)) if state is None else state
        if mask is None:
            return self._take(x, state)
        rows = []
        for row in range(len(x)):
            there, before = x[row][mask[row] != 0], state.select([row])
            nothing = x.new_zeros(1, *self.output_shape, dtype=self.output_dtype), before
            rows.append(self._take(there[None], before) if len(there) else nothing)
        return torch.cat([y for y, _ in rows]), State.cat([last for _, last in rows])

    def _take(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        before, T, past = state.layers[0], x.shape[1], self._window.frames - 1
        seen = torch.cat([before.frames, x[:, :-1]], dim=1)
        layer = WindowState(seen[:, seen.shape[1] - past :], (before.length + T - 1).clamp(max=past))
        return self._step(x[:, -1], State((layer,), state.position + T - 1, self._fingerprint))

    def _last(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._run(x, None, mask)[0].flatten(1)


class _Last(nn.Module):
    """A function as the model of a `Window`; it has nothing to register, so the model stays one of its owner's."""

    def __init__(self, function: Callable[[Tensor, Tensor | None], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return self.function(x, mask), None
