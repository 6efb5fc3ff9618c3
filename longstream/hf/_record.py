"""What a cache keeps in order to go back: inputs since a state, which are read again up to where they still hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longstream.models import State

# Columns of one reading, at most: those before the point to return to are read again. A prompt is read in two calls,
# so that a rejected candidate right behind it does not bring all of it back.
SPAN = 64
# So many columns to read again go together with new ones in one call of the model; more are read first, which moves the
# state on, or they would add up from candidate to candidate.
JOINED = 16
# Columns that stay on record where nobody calls crop.
MOST = 4096


class Reading(NamedTuple):
    """Inputs that were read together, and the state before them."""

    before: State | None
    x: Tensor  # (B, T, D)
    mask: Tensor | None  # (B, T)

    @property
    def columns(self) -> int:
        return self.x.shape[1]

    def upto(self, columns: int) -> "Reading":
        return Reading(self.before, self.x[:, :columns], None if self.mask is None else self.mask[:, :columns])

    def then(self, x: Tensor, mask: Tensor | None) -> "Reading":
        """These inputs and others behind them, as one."""
        if self.mask is not None or mask is not None:
            masks = [
                torch.ones(part.shape[:2], dtype=torch.int8, device=part.device) if m is None else m
                for part, m in ((self.x, self.mask), (x, mask))
            ]
            mask = torch.cat(masks, 1)
        return Reading(self.before, torch.cat([self.x, x], 1), mask)

    def map(self, states: Callable[[State], State], tensors: Callable[[Tensor], Tensor]) -> "Reading":
        before = None if self.before is None else states(self.before)
        return Reading(before, tensors(self.x), None if self.mask is None else tensors(self.mask))


def begins_anew(record: list[Reading], columns: int = 1) -> bool:
    """Whether so many columns more are a reading of their own, which needs the state before it."""
    return not record or record[-1].columns + columns > SPAN


def add_reading(record: list[Reading], new: Reading) -> None:
    """Put what was read on record: short readings join, so that there is one state for many single tokens."""
    if not begins_anew(record, new.columns):
        record[-1] = record[-1].then(new.x, new.mask)
    else:
        record.append(new)
    while sum(reading.columns for reading in record[1:]) >= MOST:
        del record[0]


def go_back(record: list[Reading], columns: int) -> Reading:
    """The last state on record that is ``columns`` back or more, and the inputs between it and that point."""
    for reading in reversed(record):
        if columns <= reading.columns:
            return reading.upto(reading.columns - columns)
        columns -= reading.columns
    raise ValueError(f"{columns} more than there are")


def read_on(
    model: Callable[..., tuple[Tensor, State]],
    state: State | None,
    again: Reading | None,
    x: Tensor,
    mask: Tensor | None,
    record: list[Reading] | None,
    hidden_states: list[Tensor] | None,
    **options: Any,
) -> tuple[Tensor, State]:
    """Read x behind what has to be read again, and put it on record, if there is one.

    Args:
        model:         `longstream.models.Backbone`, or what is called like it.
        state:         where it stands; with inputs to read again, the state before these.
        hidden_states: filled as `Backbone.forward` does, with those of x.
    Returns:
        y of x, and the state after it.
    """
    T = x.shape[1]
    if again is not None and again.columns > JOINED:
        state = model(again.x, again.before, mask=again.mask)[1]
        again = None
    whole = Reading(state, x, mask) if again is None else again.then(x, mask)
    columns, parts = whole.columns, [whole]
    if record is not None and columns > 2 * SPAN and hidden_states is None:
        masks = (None, None) if whole.mask is None else (whole.mask[:, :-SPAN], whole.mask[:, -SPAN:])
        parts = [Reading(state, whole.x[:, :-SPAN], masks[0]), Reading(None, whole.x[:, -SPAN:], masks[1])]
    outputs, read = [], []
    for part in parts:
        read.append(part._replace(before=state))
        y, state = model(part.x, state, mask=part.mask, hidden_states=hidden_states, **options)
        outputs.append(y)
    assert state is not None
    if record is not None:
        for reading in read:
            add_reading(record, reading)
    if hidden_states is not None:
        hidden_states[:] = [h[:, h.shape[1] - T :] for h in hidden_states]
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return y[:, y.shape[1] - T :], state
