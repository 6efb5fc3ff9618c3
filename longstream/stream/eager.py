"""A stream's engine that runs the model's own step."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from longstream.models import State
from longstream.stream.engine import HOLD, RAISE
from longstream.stream.steps import Steps


class EagerEngine:
    """The memory and the step of a stream by the model's own step: any device, any mixer, any dtype.

    Each row has its last states as (state of a batch, row in it): states are never changed, so a kept one is a
    reference, not a copy.

    Args:
        steps:      of the model.
        batch_size: rows, >= 1.
        history:    frames that each row can go back, >= 0.
    """

    def __init__(self, steps: Steps, batch_size: int, history: int):
        self.steps, self.batch_size, self.history = steps, batch_size, history
        self.held: Tensor | None = None
        if not steps.tokens:
            self.held = torch.zeros(batch_size, steps.n_in, dtype=steps.dtype, device=steps.device)
        self._rows: list[deque[tuple[State, int]]] = [deque(maxlen=history + 1) for _ in range(batch_size)]
        self.reset(range(batch_size))

    @property
    def kept(self) -> Tensor:
        """(B,) int64: frames that each row can go back now."""
        return torch.tensor([len(row) - 1 for row in self._rows])

    @property
    def position(self) -> Tensor:
        """(B,) int64: frames that each row has taken in."""
        return torch.cat([state.position[row : row + 1] for state, row in self._latest()])

    @property
    def nbytes(self) -> int:
        """Bytes of all states that are kept."""
        kept = {id(state): state for row in self._rows for state, _ in row}
        return sum(state.nbytes for state in kept.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's parameters and buffers."""
        return sum(t.nbytes for t in [*self.steps.model.parameters(), *self.steps.model.buffers()])

    def step(self, x: Tensor, y: Tensor, reset: Tensor | None, policy: int) -> int:
        """One frame of every row; y is written. What it returns, and what it leaves alone, is csrc/stream.h's word:

        0; or how many rows have a bad number, which "raise" refuses; or minus how many rows did not go on.
        """
        steps, good_x = self.steps, None
        if self.held is not None:
            bad = steps.is_bad(x)
            if bool(bad.any()):
                if policy == RAISE:
                    return int(bad.any(1).sum())
                if policy == HOLD:
                    x = torch.where(bad, self.held, x)
                else:
                    good_x = ~bad.any(1)
        before = self._gather(self._latest())
        if reset is not None and bool(reset.any()):
            order = [self.batch_size if anew else row for row, anew in enumerate(reset.tolist())]
            before = State.cat([before, steps.first]).select(order)
        if good_x is not None and steps.checks_values:  # the model itself would raise
            x = x.masked_fill(~good_x[:, None], 0.0)
        out, after = steps.step(x, before)
        y.copy_(out.flatten(1))
        good = out.flatten(1).isfinite().all(1)
        for tensor in after.tensors():
            good = good & steps.is_state_fine(tensor)
        if good_x is not None:
            good = good & good_x
        failed = self.batch_size - int(good.sum())
        if policy == RAISE and failed:
            return -failed
        if self.held is not None and policy == HOLD:
            self.held.copy_(torch.where(x.isnan() | ~good[:, None], self.held, x))
        for row, goes_on in enumerate(good.tolist()):
            if goes_on:
                self._rows[row].append((after, row))
        return -failed

    def get(self, rows: Sequence[int] | None = None) -> State:
        """A copy of the present state of the rows."""
        return self._gather(self._latest(rows)).clone()

    def set(self, state: State, rows: Sequence[int] | None = None) -> None:
        """Take a state of as many rows; their history starts anew."""
        state = state.clone().detach()
        for i, row in enumerate(range(self.batch_size) if rows is None else rows):
            self._rows[row].clear()
            self._rows[row].append((state, i))

    def reset(self, rows: Sequence[int]) -> None:
        """Rows before their first frame, without a history and with nothing held."""
        for row in rows:
            self._rows[row].clear()
            self._rows[row].append((self.steps.first, 0))
            if self.held is not None:
                self.held[row] = 0

    def back(self, frames: int, rows: Sequence[int]) -> None:
        """Rows as they were ``frames`` ago, which is at most what they have ``kept``."""
        for row in rows:
            for _ in range(frames):
                self._rows[row].pop()

    def copy_rows(self, source: int, targets: Sequence[int]) -> None:
        """Rows that become what row ``source`` is, with its history and what it holds."""
        for row in targets:
            self._rows[row] = self._rows[source].copy()
            if self.held is not None:
                self.held[row] = self.held[source]

    def _latest(self, rows: Sequence[int] | None = None) -> list[tuple[State, int]]:
        return [self._rows[row][-1] for row in (range(self.batch_size) if rows is None else rows)]

    def _gather(self, places: list[tuple[State, int]]) -> State:
        """One state of the rows at the places; it is not copied where it is one already."""
        states = {id(state): state for state, _ in places}
        if len(states) == 1:
            state, wanted = places[0][0], [row for _, row in places]
            return state if wanted == [*range(state.batch_size)] else state.select(wanted)
        starts, size = {}, 0
        for key, state in states.items():
            starts[key] = size
            size += state.batch_size
        return State.cat([*states.values()]).select([starts[id(state)] + row for state, row in places])
