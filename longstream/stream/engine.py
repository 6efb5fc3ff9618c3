"""The native step at work: the memory of B rows, their histories, and one call of the library a step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from longstream.layers._options import check_integers
from longstream.models.heads import check_ids
from longstream.models.state import State
from longstream.ops._native import LIBRARY
from longstream.stream.compile import CompiledStep
from longstream.stream.layout import from_rows, to_rows

TAPE_HISTORY = 64  # frames that a tape can be taken back
RAISE, HOLD, PASS = range(3)  # what is done with NaN and infinite numbers, as csrc/stream.h numbers it
_REFUSED = -(2**63)  # by `_library_step`, which cannot raise


@cache
def _library_step() -> Any:
    """The step as a C function of csrc/stream.cpp: a torch op would make a handle of each tensor at every call."""
    function = ctypes.CDLL(str(LIBRARY)).longstream_stream_step  # other threads run meanwhile
    function.argtypes = [*[ctypes.c_void_p] * 4, ctypes.c_int64]
    function.restype = ctypes.c_int64
    return function


class NativeEngine:
    """Rows of one compiled step that advance together, each with its own position, resets and history.

    The states of a row are a ring of slots: a step reads the present one and writes the next. So going back is taking
    an earlier slot for the present one, and a step that fails has changed nothing.

    Args:
        compiled:   the program and its weights, which engines share.
        batch_size: rows, >= 1.
        slots:      history + 2, where history is how many frames a row can go back.
        threads:    of a step, >= 1.
    Raises:
        ValueError: an argument out of range, or more history than a tape allows.

    Attributes:
        held: (B, n_in), the last good numbers of each row, for policy 1; None for tokens.
    """

    def __init__(self, compiled: CompiledStep, batch_size: int = 1, slots: int = 2, threads: int = 1):
        check_integers("NativeEngine", batch_size=(batch_size, 1), slots=(slots, 2), threads=(threads, 1))
        self.compiled, self.batch_size, self.threads = compiled, batch_size, threads
        self.history = slots - 2
        if compiled.tape_size and self.history > TAPE_HISTORY:
            raise ValueError(
                f"NativeEngine: history must be at most {TAPE_HISTORY} frames for a model with long convolutions, got"
                f" {self.history}"
            )
        S = compiled.state_size
        self._state = torch.zeros(slots, batch_size, S)
        self._tape = torch.zeros(batch_size, compiled.tape_size)
        self._positions = torch.zeros(slots, batch_size, dtype=torch.int64)
        self._slot = torch.zeros(batch_size, dtype=torch.int64)
        self._present = self._slot.numpy().data  # the same: a tensor takes microseconds to read one number
        self._before = torch.zeros_like(self._slot)
        self._kept = [0] * batch_size
        self._steps = 0  # taken by every row that `_kept` does not count yet
        self._most = 0  # no row has taken in more frames
        self._frames = torch.zeros(batch_size, compiled.n_in)  # what the tokens of a step stand for
        self.held = None if compiled.tokens else torch.zeros(batch_size, compiled.n_in)
        self._scratch = torch.zeros(batch_size, compiled.scratch_size)
        numbers = torch.ops.longstream.stream_workspace(batch_size, S)
        self._workspace = torch.zeros(numbers, dtype=torch.int64)
        memory = compiled.program, compiled.constants, self._state, self._tape, self._positions, self._slot
        self._memory = (*memory, self.held, self._scratch, self._workspace)
        self._bound = torch.ops.longstream.stream_bind(*self._memory, threads)
        self._at = self._bound.data_ptr()
        self._shapes = torch.Size((batch_size, compiled.n_in)), torch.Size((batch_size, compiled.n_out))
        self._run = _library_step()

    # going on

    def step(self, x: Tensor, y: Tensor, reset: Tensor | None = None, policy: int = RAISE) -> int:
        """One frame of every row. No memory is allocated for it.

        Args:
            x:      (B, n_in) float32, contiguous; (B,) int of tokens.
            y:      (B, n_out) float32, contiguous; written.
            reset:  (B,) bool, rows that start anew with this frame.
            policy: for bad numbers in x: 0 refuses the step, 1 puts the last good one of that row and channel in their
                    place, 2 computes with them.
        Returns:
            0; or with policy 0 how many rows have bad numbers in x; or minus how many rows have results that are not
            finite. A row that has either, and with policy 0 every row, stays what it was.
        Raises:
            ValueError: a row has taken in all the frames that the model can, or a token is not of the vocabulary.
        """
        compiled, most = self.compiled, self._most
        if compiled.longest is not None and most >= compiled.longest:
            most = self._longest(reset)
            if most >= compiled.longest:
                compiled.check_frames(most + 1)
        if compiled.embedding is not None:
            check_ids("Stream.step", x[:, None], compiled.vocab_size or 0, "frame")
            x = torch.index_select(compiled.embedding, 0, x.long(), out=self._frames)
        if policy != RAISE:
            self._before.copy_(self._slot)
        failed = _REFUSED
        if _is_plain(x, self._shapes[0]) and _is_plain(y, self._shapes[1]) and (reset is None or self._fits(reset)):
            anew = None if reset is None else reset.data_ptr()
            failed = self._run(self._at, x.data_ptr(), y.data_ptr(), anew, policy)
        if failed == _REFUSED:
            *memory, scratch, workspace = self._memory
            failed = torch.ops.longstream.stream_step(*memory, reset, scratch, workspace, x, y, policy, self.threads)
        if not failed:
            self._most = most  # else rows that were to begin anew may be where they were
        self._count(failed, reset, policy)
        return failed

    def _fits(self, reset: Tensor) -> bool:
        return reset.dtype == torch.bool and reset.shape == (self.batch_size,) and reset.is_contiguous()

    def _count(self, failed: int, reset: Tensor | None, policy: int) -> None:
        """Note who can go back one more frame."""
        if failed and policy == RAISE:
            return
        self._most += 1
        if not failed and (reset is None or not self.compiled.tape_size):
            self._steps += 1
            return
        gone_on = [True] * self.batch_size if policy == RAISE else (self._slot != self._before).tolist()
        anew = reset.tolist() if reset is not None and self.compiled.tape_size else [False] * self.batch_size
        kept = self._counted()
        for row in filter(gone_on.__getitem__, range(self.batch_size)):
            kept[row] = 0 if anew[row] else min(kept[row] + 1, self.history)  # a tape that is begun anew has no past

    def _counted(self) -> list[int]:
        if self._steps:
            self._kept = [min(kept + self._steps, self.history) for kept in self._kept]
            self._steps = 0
        return self._kept

    def _longest(self, reset: Tensor | None) -> int:
        position = self.position
        return int((position if reset is None else position.masked_fill(reset, 0)).max())

    # what was

    def back(self, frames: int, rows: Sequence[int] | None = None) -> None:
        """Rows as they were ``frames`` ago.

        Raises:
            ValueError: a row cannot go back as far; no row has moved.
        """
        check_integers("NativeEngine.back", frames=(frames, 0))
        chosen, kept, slots = self._rows(rows), self._counted(), len(self._state)
        if any(kept[row] < frames for row in chosen):
            most = [kept[row] for row in chosen]
            raise ValueError(f"NativeEngine.back: frames must be at most what each row has kept, {most}, got {frames}")
        for row in set(chosen):
            self._present[row] = (self._present[row] - frames) % slots
            kept[row] -= frames
        if self.compiled.longest is not None:  # a row may be back before a reset
            self._most = max(self._most, self._longest(None))

    def all_back(self, frames: int) -> bool:
        """`back` for all rows, in microseconds; False, and nothing done, where one cannot go as far."""
        kept, present, slots = self._counted(), self._present, self.history + 2
        if frames < 0 or min(kept) < frames:
            return False
        for row in range(self.batch_size):
            present[row] = (present[row] - frames) % slots
            kept[row] -= frames
        if self.compiled.longest is not None:  # a row may be back before a reset
            self._most = max(self._most, self._longest(None))
        return True

    @property
    def kept(self) -> Tensor:
        """(B,) int64: frames that each row can go back now."""
        return torch.tensor([min(kept + self._steps, self.history) for kept in self._kept])  # another thread may look

    # states

    def get(self, rows: Sequence[int] | None = None) -> State:
        """A copy of the present state of the rows, or all, with which the model itself goes on."""
        chosen, compiled = torch.tensor(self._rows(rows), dtype=torch.int64), self.compiled
        slot = self._slot[chosen]
        state, position = self._state[slot, chosen], self._positions[slot, chosen]
        return from_rows(state, self._tape[chosen], position, compiled.layers, compiled.fingerprint)

    def set(self, state: State, rows: Sequence[int] | None = None) -> None:
        """Take a state of as many rows; their history starts anew.

        Raises:
            ValueError, TypeError: it is another model's, of other rows, dtypes or shapes, or has NaN; nothing changed.
        """
        chosen, compiled = self._rows(rows), self.compiled
        state_rows, tape = to_rows(
            state, compiled.layers, compiled.fingerprint, compiled.state_size, compiled.tape_size
        )
        if len(state_rows) != len(chosen):
            raise ValueError(f"State: state must have {len(chosen)} rows, got {len(state_rows)}")
        if compiled.longest is not None and len(chosen):
            longest = int(state.position.max())
            if longest > compiled.longest:
                compiled.check_frames(longest)
            self._most = max(self._most, longest)
        self._put(chosen, state_rows, tape, state.position)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Rows, or all, before their first frame, without a history and with nothing held."""
        chosen = self._rows(rows)
        self._put(chosen, torch.zeros(()), None, torch.zeros((), dtype=torch.int64))
        if self.held is not None:
            self.held[chosen] = 0

    def copy_rows(self, source: int, targets: Sequence[int]) -> None:
        """Rows that become what row ``source`` is, with its history and what it holds."""
        chosen, kept = self._rows(targets), self._counted()
        tensors = [self._state.transpose(0, 1), self._positions.t(), self._slot, self._tape]
        for tensor in tensors if self.held is None else [*tensors, self.held]:
            tensor[chosen] = tensor[source].clone()
        for row in chosen:
            kept[row] = kept[source]

    def _put(self, rows: list[int], state: Tensor, tape: Tensor | None, position: Tensor) -> None:
        slot, kept = [self._present[row] for row in rows], self._counted()
        self._state[slot, rows] = state
        self._positions[slot, rows] = position
        if tape is not None and self.compiled.tape_size:
            self._tape[rows] = tape
        for row in rows:
            kept[row] = 0

    def _rows(self, rows: Sequence[int] | None) -> list[int]:
        chosen = [*range(self.batch_size)] if rows is None else [int(row) for row in rows]
        if not all(0 <= row < self.batch_size for row in chosen):
            raise ValueError(f"NativeEngine: rows must lie in [0, {self.batch_size}), got {chosen}")
        return chosen

    # what there is

    @property
    def position(self) -> Tensor:
        """(B,) int64: frames that each row has taken in."""
        return self._positions.gather(0, self._slot[None])[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the states of all rows, with their histories."""
        return sum(t.nbytes for t in (self._state, self._tape, self._positions))

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants that a step reads."""
        return self.compiled.weight_bytes


def _is_plain(x: Tensor, shape: torch.Size) -> bool:
    """Whether the library can be given the address of these numbers."""
    return x.shape == shape and x.dtype is torch.float32 and x.is_contiguous() and x.device.type == "cpu"
