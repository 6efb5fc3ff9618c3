"""Any sequence of calls of a stream, beside a simple model of what they mean: frames by row, run again in parallel.

A row is a list of episodes, each the frames since a known state, with what the stream answered; the stream's own states
never get into it. `check` runs the episodes through the model's parallel pass.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from longstream import State
from longstream.models import LanguageModel
from tests.stream.streamed import CLOSE, LONGEST, make, make_frames, make_stream, parallel_from, same

NAN = float("nan")
_ENOUGH = 48  # frames of a row before they are looked at and the oldest forgotten


@dataclass
class Episode:
    """Frames of a row that follow each other."""

    base: State | None  # before the first frame, by the model's own parallel pass; None is the start
    position: int = 0  # at base
    frames: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor | None] = field(default_factory=list)  # None where there is none to see, within a prefill

    def copy(self) -> "Episode":
        """Another list of the same frames."""
        return Episode(self.base, self.position, [*self.frames], [*self.outputs])


@dataclass
class Row:
    """What the model knows of a row."""

    held: Tensor
    kept: int = 0
    episodes: list[Episode] = field(default_factory=lambda: [Episode(None)])

    @property
    def position(self) -> int:
        """Frames taken in."""
        last = self.episodes[-1]
        return last.position + len(last.frames)

    def copy(self) -> "Row":
        """The same in other memory."""
        return Row(self.held.clone(), self.kept, [episode.copy() for episode in self.episodes])


class Calls:
    """A stream and its model.

    Args:
        name: of `MODELS`.
    """

    def __init__(self, name: str, backend: str, *, batch_size: int, history: int, nonfinite: str):
        self.model, self.backend, self.history, self.nonfinite = make(name), backend, history, nonfinite
        self.stream = make_stream(self.model, backend, batch_size=batch_size, history=history, nonfinite=nonfinite)
        self.tokens = isinstance(self.model, LanguageModel)
        self.limit = LONGEST if "hyena" in name or name == "modal" else None
        self.has_tape = backend == "native" and self.limit is not None and name != "modal"
        self.rows = [self._new() for _ in range(batch_size)]
        self.steps = self.settled = 0
        self._exact: Any = None  # the model in float64
        self.scale = 1.0

    @property
    def B(self) -> int:
        """Rows."""
        return len(self.rows)

    def _new(self) -> Row:
        return Row(torch.zeros(() if self.tokens else (5,)))

    # the calls

    def step(self, seed: int, resets: list[int], bad: list[int]) -> None:
        """One frame of every row; rows of ``resets`` begin anew, those of ``bad`` have a number that is none."""
        x = make_frames(self.model, self.B, 1, seed)[:, 0]
        at_end = [row for row in range(self.B) if self.limit and self.rows[row].position >= self.limit]
        reset = torch.tensor([row in resets or row in at_end for row in range(self.B)])
        anew = reset if bool(reset.any()) else None
        bad = [] if self.tokens else [row for row in bad if row < self.B]
        for row in bad:
            x[row, seed % 5] = (NAN, float("inf"), -float("inf"))[seed % 3]
        if bad and self.nonfinite == "raise":
            with pytest.raises(ValueError, match=f"in row {min(bad)}, channel {seed % 5}"):
                self.stream.step(x, reset=anew)
            self.look()
            return
        y = self.stream.step(x, reset=anew)
        self.steps += 1
        assert self.stream.skipped == (len(bad) if self.nonfinite == "pass" else 0)
        for i, row in enumerate(self.rows):
            frame = x[i]
            if self.nonfinite == "hold" and not self.tokens:
                if reset[i]:
                    row.held = torch.zeros(5)
                frame = row.held = torch.where(frame.isfinite(), frame, row.held)
            if i in bad and self.nonfinite == "pass":
                continue
            if reset[i]:
                row.episodes.append(Episode(None))
            row.episodes[-1].frames.append(frame)
            row.episodes[-1].outputs.append(y[i])
            row.kept = 0 if reset[i] and self.has_tape else min(row.kept + 1, self.history)
            if sum(len(episode.frames) for episode in row.episodes) > _ENOUGH + self.history:
                self.check(row)

    def prefill(self, seed: int, frames: int, masked: bool) -> None:
        """Some frames at once, with pads or without."""
        if self.limit and max(row.position for row in self.rows) + frames > self.limit:
            self.reset([*range(self.B)])
        x = make_frames(self.model, self.B, frames, seed)
        mask = None
        if masked:
            mask = torch.rand(self.B, frames, generator=torch.Generator().manual_seed(seed)) < 0.6
            mask[seed % self.B, seed % frames] = True
        y = self.stream.prefill(x, mask=mask)
        for i, row in enumerate(self.rows):
            there = [t for t in range(frames) if mask is None or mask[i, t]]
            row.kept = 0
            for t in there:
                row.episodes[-1].frames.append(x[i, t])
                row.episodes[-1].outputs.append(y[i] if t == there[-1] else None)
            if there and self.nonfinite == "hold" and not self.tokens:
                row.held = x[i, there[-1]]
            if not there:
                assert not y[i].any()

    def rollback(self, frames: int, rows: list[int]) -> None:
        """Take rows back, or be told that some cannot."""
        kept = [self.rows[row].kept for row in rows]
        if kept and frames > min(kept):
            with pytest.raises(ValueError, match="frames must be at most what each row has kept"):
                self.stream.rollback(frames, rows)
            self.look()
            return
        self.stream.rollback(frames, rows)
        for row in (self.rows[i] for i in rows):
            self.check(row, trim=False)
            row.kept -= frames
            for _ in range(frames):
                while not row.episodes[-1].frames:
                    row.episodes.pop()
                row.episodes[-1].frames.pop()
                row.episodes[-1].outputs.pop()
                if not row.episodes[-1].frames and len(row.episodes) > 1:
                    row.episodes.pop()  # it began with that frame

    def replay(self, frames: int) -> None:
        """Back, and the same frames again: bit for bit the same outputs and state."""
        frames = min(
            [frames, *(row.kept for row in self.rows), *(len(row.episodes[-1].frames) - 1 for row in self.rows)]
        )
        if frames < 1:
            return
        before = self.stream.state
        self.stream.rollback(frames)
        for t in range(-frames, 0):
            x = torch.stack([row.episodes[-1].frames[t] for row in self.rows])
            y = self.stream.step(x)
            self.steps += 1
            for i, row in enumerate(self.rows):
                told = row.episodes[-1].outputs[t]
                assert told is not None
                if self.backend == "native":
                    assert torch.equal(y[i], told)
                else:  # the model's own numbers depend on who else is in the batch
                    assert self.near(y[i], told)
        after = self.stream.state
        if self.backend == "native":
            assert same(after, before)
        if self.nonfinite == "hold" and not self.tokens:
            for row in self.rows:
                row.held = row.episodes[-1].frames[-1]

    def reset(self, rows: list[int]) -> None:
        """Rows anew."""
        self.stream.reset(rows)
        for i in rows:
            self.check(self.rows[i], trim=False)
            self.rows[i] = self._new()

    def select(self, indices: list[int]) -> None:
        """Go on with another stream, of these rows."""
        old, before = self.stream, self.stream.position
        self.stream = old.select(indices) if self.B > 1 or indices != [0] * len(indices) else old.fork(len(indices))
        old.step(make_frames(self.model, self.B, 1, 0)[:, 0], reset=torch.ones(self.B, dtype=torch.bool))  # has its own
        assert torch.equal(self.stream.position, before[indices])
        self.rows = [self.rows[i].copy() for i in indices]
        for row in self.rows:
            row.kept = 0

    def copy_rows(self, source: int, targets: list[int]) -> None:
        """Rows become another."""
        self.stream.copy_rows(source, targets)
        for i in targets:
            self.rows[i] = self.rows[source].copy()

    def save_and_load(self, order: list[int]) -> None:
        """Through bytes, into the same stream or a new one, rows in another order."""
        state = State.deserialize(self.stream.state.serialize()).select(order)
        if len(order) == self.B:
            self.stream.load(state)
        else:
            held = self.stream.held
            self.stream = make_stream(
                self.model,
                self.backend,
                batch_size=len(order),
                history=self.history,
                nonfinite=self.nonfinite,
                state=state,
            )
            self.stream.held = held[order]
        assert same(self.stream.state, state) or self.backend == "eager"
        helds = [row.held for row in self.rows]
        stays = len(order) == self.B  # what is held is no part of a state
        self.rows = [self.rows[i].copy() for i in order]
        for i, row in enumerate(self.rows):
            row.kept = 0
            row.held = helds[i if stays else order[i]].clone()

    def load_the_models_own(self) -> None:
        """Each row goes on from the state that the model's parallel pass has."""
        for i, row in enumerate(self.rows):
            self.check(row)
            base = self._run(row.episodes[-1])[1]
            self.stream.load(base, i)
            row.kept = 0

    # what it should be

    def look(self) -> None:
        """Positions, histories and held numbers."""
        assert self.stream.position.tolist() == [row.position for row in self.rows]
        assert self.stream.kept.tolist() == [row.kept for row in self.rows]
        if self.nonfinite == "hold" and not self.tokens:
            assert torch.equal(self.stream.held, torch.stack([row.held for row in self.rows]))

    def check_all(self) -> None:
        """Every row that there is."""
        for row in self.rows:
            self.check(row)
        self.look()

    def check(self, row: Row, trim: bool = True) -> None:
        """The row's outputs against the parallel pass; then frames that cannot be gone back to are forgotten."""
        for episode in row.episodes:
            if any(y is not None for y in episode.outputs):
                wanted, _ = self._run(episode)
                for t, (y, right) in enumerate(zip(episode.outputs, wanted, strict=True)):
                    if y is not None and not self.near(y, right):
                        self._settle(episode, t, y, right)
        if trim:
            needed = row.kept + 1  # and one more, so that an episode of which all frames are gone back is the first
            while len(row.episodes) > 1 and sum(len(episode.frames) for episode in row.episodes[1:]) >= needed:
                row.episodes.pop(0)
            first, rest = row.episodes[0], sum(len(episode.frames) for episode in row.episodes[1:])
            if (gone := len(first.frames) + rest - needed) > 0:
                part = Episode(first.base, first.position, first.frames[:gone], first.outputs[:gone])
                row.episodes[0] = Episode(
                    self._run(part)[1], first.position + gone, first.frames[gone:], first.outputs[gone:]
                )

    def _settle(self, episode: Episode, t: int, y: Tensor, right: Tensor) -> None:
        """Where two passes in float32 differ by more than usual, as after a norm of almost nothing: who is right?

        The stream, if float64 is as near to it as to the parallel pass, or within the tolerance, or if weights that are
        off by half a float32 digit would move float64 as far.
        """
        if self._exact is None:
            self._exact = copy.deepcopy(self.model).double()
        base = episode.base
        if base is not None:
            base = base.with_tensors([x.double() if x.is_floating_point() else x for x in base.tensors()])
        frames = torch.stack(episode.frames)[None]
        exact = parallel_from(self._exact, frames if self.tokens else frames.double(), base)[0][0, t]
        error, usual = (float((x - exact).abs().max()) for x in (y, right))
        for seed in range(8 if error > max(CLOSE * self.scale, usual) else 0):
            near = rounded(self._exact, seed)
            moved = parallel_from(near, frames if self.tokens else frames.double(), base)[0][0, t]
            usual = max(usual, 2 * float((moved - exact).abs().max()))
        assert error <= max(CLOSE * self.scale, usual), (t, episode.position, error, usual)
        self.settled += 1

    def near(self, y: Tensor, right: Tensor) -> bool:
        """Whether two outputs are the same but for rounding."""
        self.scale = max(self.scale, float(right.abs().max()))
        return bool((y - right).abs().max() <= CLOSE * self.scale)

    def _run(self, episode: Episode) -> tuple[Tensor, State]:
        if not episode.frames:
            return torch.empty(0), episode.base or self.stream._steps.init_state(1)
        y, last = parallel_from(self.model, torch.stack(episode.frames)[None], episode.base)
        return y[0], last


@torch.no_grad()
def rounded(model: Any, seed: int) -> Any:
    """A float64 model with weights off by about half a digit of float32, at random."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.mul_(1 + 6e-8 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return model
