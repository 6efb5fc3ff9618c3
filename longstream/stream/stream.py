"""`Stream`: a model that goes on frame by frame, keeps its state, and can be taken back.

More than 300 lines, because one class is all that a user of streams meets, and half of it says what it does.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from longstream.layers._options import check_integers, check_one_of
from longstream.models import State
from longstream.stream.compile import CannotCompile, CompiledStep, compile_step
from longstream.stream.eager import EagerEngine
from longstream.stream.engine import HOLD, PASS, RAISE, TAPE_HISTORY, NativeEngine
from longstream.stream.frames import ffill, overlap, read_frame, read_frames, read_reset, read_rows, say_where
from longstream.stream.steps import Steps, inner_model

POLICIES = {"raise": RAISE, "hold": HOLD, "pass": PASS}
WEIGHTS = ("float32", "bfloat16", "int8")
BACKENDS = ("auto", "native", "eager")
# Bytes of weights below which a step takes one thread. Two take 0.6 times as long where both have a core to themselves,
# and ms where another program wants one: a step ends when all its threads have had a core.
ONE_THREAD = 64 * 2**20


class Stream:
    """B rows of one model that go on frame by frame, together, each with its own state, position and history.

    The model remembers everything since a row's first frame: see `unbounded`; `sliding_window` forgets. Backend
    "native" packs the weights once, so that a step is one call that allocates nothing: a change of the model's weights
    does not reach its steps (but that of a language model's embeddings, which are not copied, and `prefill`, which is
    the model's own, does): make a new stream then. Backend "eager" runs the model's own step, on any device.

    Numbers that are NaN or infinite never get into a state. What else happens is ``nonfinite``'s choice:

    ``"raise"``: ValueError names row and channel, and no row takes its frame in; nor does any where an output is not
                 finite though the frames are: FloatingPointError.
    ``"hold"``:  in place of such a number enters the last finite one of that row and channel, 0 before the first: a
                 zero-order hold. What is held is no part of the state: rollback and load leave it, `reset` clears it,
                 and `held` can be read and set.
    ``"pass"``:  the numbers go in as they are and the outputs come out as they are (NaN, of a model that refuses such
                 numbers itself), but such a row's state and position stay, as if the frame had never come.

    Under "hold" and "pass" a row whose output is not finite does not go on either, and `skipped` counts the rows of the
    last call that did not. NaN in a channel where the model knows missing values is no such number.

    A frame that is a tensor gives a tensor, one that is a numpy array gives an array, which is taken in without a copy
    where it is contiguous, writable and of the stream's dtype. With batch_size 1 the batch dimension may be left out.

    One stream is one caller: a second thread is told so, and nothing changes. Streams of one model, as `fork`,
    `select` and a second ``Stream(model)`` make, run on as many threads at once.

    Args:
        model:      `longstream.FeatureModel`, as `longstream.build` makes them, `Backbone`, `LanguageModel`, a causal
                    language model of longstream.hf, `longstream.sequences.SequenceModel`, one block or mixer, or any
                    module with such a step and init_state; or a `CompiledStep` of one.
        batch_size: B >= 1.
        history:    frames that each row can be taken back; each costs one more state of memory, and no copy. Of a model
                    with long convolutions at most 64 on the native backend.
        weights:    "float32", or of the native backend "bfloat16" or "int8": see `weights_report` for what is lost.
        backend:    "auto" is "native" where it can run, else "eager"; `backend` and `why_not` say which and why.
        threads:    of a native step; None: 1 where its weights are below 64 MB, else torch's. A step on several threads
                    ends when each has had a core, which on a machine that is busy takes ms.
        nonfinite:  see above.
        state:      `State` of B rows to begin with.
    Raises:
        ValueError, TypeError: an argument is not as above.    RuntimeError: the named backend cannot run this model.
    """

    backend: str
    why_not: dict[str, str]
    skipped = 0  # rows that did not go on with the last step or prefill

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int = 1,
        history: int = 0,
        weights: str = "float32",
        backend: str = "auto",
        threads: int | None = None,
        nonfinite: str = "raise",
        state: State | None = None,
    ):
        check_one_of(
            "Stream", weights=(weights, WEIGHTS), backend=(backend, BACKENDS), nonfinite=(nonfinite, [*POLICIES])
        )
        check_integers(
            "Stream", batch_size=(batch_size, 1), history=(history, 0), threads=(1 if threads is None else threads, 1)
        )
        if isinstance(model, CompiledStep) and weights not in ("float32", model.weights):
            raise ValueError(f"Stream: weights must be {model.weights!r}, as they were compiled, got {weights!r}")
        self.weights = model.weights if isinstance(model, CompiledStep) else weights
        self.why_not = {}
        compiled = None if backend == "eager" else self._compile(model, history)
        self._steps = Steps(model.model if isinstance(model, CompiledStep) else inner_model(model))
        self.backend = "eager" if compiled is None else "native"
        if compiled is not None:
            self._make_engine: Callable[[int], Any] = _native_maker(compiled, history, threads)
        elif backend == "native" or self.weights != "float32":
            why = self.why_not.get("native", "the eager step has the model's own weights")
            raise RuntimeError(
                f"Stream: backend {backend!r} with weights {self.weights!r} cannot run this model: {why}"
            )
        else:
            self._make_engine = lambda rows: EagerEngine(self._steps, rows, history)
        self._begin(batch_size, history, nonfinite, state)

    def _compile(self, model: Any, history: int) -> CompiledStep | None:
        """The compiled step, or None and a reason in `why_not`."""
        try:
            compiled = model if isinstance(model, CompiledStep) else compile_step(inner_model(model), self.weights)
        except (CannotCompile, RuntimeError) as error:
            self.why_not["native"] = str(error)
            return None
        if compiled.tape_size and history > TAPE_HISTORY:
            self.why_not["native"] = f"of a model with long convolutions it goes back {TAPE_HISTORY} frames at most"
            return None
        return compiled

    def _begin(self, batch_size: int, history: int, nonfinite: str, state: State | None) -> None:
        check_integers("Stream", batch_size=(batch_size, 1), history=(history, 0))
        check_one_of("Stream", nonfinite=(nonfinite, [*POLICIES]))
        self.batch_size, self.history, self.nonfinite = batch_size, history, nonfinite
        self._policy = POLICIES[nonfinite]
        if self._steps.tokens and self._policy == HOLD:
            self._policy = PASS  # there is nothing to hold: the same, for outputs
        self._caller = threading.Lock()
        self._frame_shape = torch.Size(self._steps.frame_shape(batch_size))
        self._output_shape = torch.Size((batch_size, *self._steps.output_shape))
        with torch.inference_mode(False):  # memory that is written to in any mode
            self._engine = self._make_engine(batch_size)
        if state is not None:
            self.load(state)

    # going on

    def step(self, frame: Any, *, reset: Any = None, out: Any = None) -> Any:
        """One frame of every row: (B, E) numbers, or (B,) numbers of tokens -> (B, ...) outputs.

        Args:
            frame: tensor or numpy array, float32 or float64; of tokens integers. (E,), or an int, for one row.
            reset: (B,) bool, rows that start anew with this frame: another episode. They can still be taken back to
                   the one before, but not in a native stream of a model with long convolutions.
            out:   where the outputs go, of their shape and dtype, contiguous. None makes a new tensor.
        Raises:
            ValueError, TypeError, FloatingPointError, RuntimeError: see the class; every row is as it was before.
        """
        if not self._caller.acquire(blocking=False):
            self._refuse_second("step")
        try:
            x, is_array, is_single = read_frame(frame, self._frame_shape, self._steps)
            if out is None:
                y = torch.empty(self._output_shape, dtype=self._steps.output_dtype, device=self._steps.device)
            else:
                y = self._read_out(out, is_single)
                if self._policy != RAISE and overlap(x, y):
                    x = x.clone()  # it is looked at again when y is written
            anew = None if reset is None else read_reset("Stream.step", reset, self.batch_size, x.device)
            engine = self._engine
            flat = y if y.dim() == 2 else y.view(self.batch_size, -1)
            if anew is not None and self._policy == HOLD:
                failed = self._step_anew(x, flat, anew)
            else:
                failed = engine.step(x, flat, anew, self._policy)
            self.skipped = 0
            if failed:
                self._judge("step", failed, x, y)
        finally:
            self._caller.release()
        if out is not None:
            return out
        if is_single:
            y = y[0]
        return y.numpy(force=True) if is_array else y

    def _step_anew(self, x: Tensor, y: Tensor, anew: Tensor) -> int:
        """A step that holds, with rows that begin anew: they hold nothing before it, and what they held if it fails."""
        engine = self._engine
        held, stays = engine.held.clone(), anew
        engine.held.masked_fill_(anew[:, None], 0.0)
        try:
            failed = engine.step(x, y, anew, HOLD)
            stays = anew & ~y.isfinite().all(1)
        finally:
            engine.held.copy_(torch.where(stays[:, None], held, engine.held))
        return int(failed)

    def prefill(self, frames: Any, *, mask: Any = None) -> Any:
        """Many frames at once, at the speed of the parallel pass: (B, T, E), or (B, T) tokens -> the last output.

        Goes on from the present state and begins a new history. Of weights "bfloat16" and "int8" it is the model's
        own float32 pass that runs. A row in which an output or a state is not finite stays as it was (all rows do, and
        FloatingPointError is raised, where nonfinite is "raise").

        Args:
            frames: as of `step`, T >= 1. (T, E), or (T,) tokens, for one row.
            mask:   (B, T), 1 for frames and 0 for pads, which are as if not there. A row of pads only has output 0.
        """
        with self._alone("prefill"):
            engine, steps = self._engine, self._steps
            x, mask, is_array, is_single = read_frames(frames, mask, self.batch_size, steps)
            dropped, held = None, None
            if not steps.tokens:
                bad = steps.is_bad(x)
                if mask is not None:
                    bad = bad & (mask != 0)[..., None]
                if self._policy == HOLD:
                    x, held = ffill(x, bad | x.isnan(), bad, engine.held, mask)
                elif bool(bad.any()):
                    if self._policy == RAISE:
                        where = say_where(bad, x, ("row", "frame", "channel"))
                        raise ValueError(f"Stream.prefill: frames must be finite, got {where}; the state stays")
                    dropped = bad.flatten(1).any(1)
                    x = x.masked_fill(dropped[:, None, None], 0.0)
            y, last = steps.prefill(x, engine.get(), mask)
            y = y.to(steps.output_dtype)
            good = y.flatten(1).isfinite().all(1)
            for tensor in last.tensors():
                good = good & steps.is_state_fine(tensor)
            if dropped is not None:
                y = y.masked_fill(dropped.view(-1, *[1] * (y.dim() - 1)), torch.nan)
                good = good & ~dropped
            rows = good.nonzero()[:, 0].tolist()
            self.skipped = self.batch_size - len(rows)
            if self._policy == RAISE and self.skipped:
                self._refuse_output("prefill", good)
            if held is not None and engine.held is not None:
                engine.held[rows] = held[rows]
            if rows:
                engine.set(last if not self.skipped else last.select(rows), rows)
        y = y[0] if is_single else y
        return y.numpy(force=True) if is_array else y

    # what was, and what else could be

    def rollback(self, frames: int, rows: Any = None) -> None:
        """Take the rows, or all, ``frames`` back: 0 <= frames <= `kept`.

        Raises:
            ValueError: a row cannot go back as far; how far each can is said, and none was moved.
        """
        if not self._caller.acquire(blocking=False):
            self._refuse_second("rollback")
        try:
            if rows is None and type(frames) is int and self.backend == "native" and self._engine.all_back(frames):
                return
            chosen = read_rows("Stream.rollback", rows, self.batch_size)
            check_integers("Stream.rollback", frames=(frames, 0))
            kept = self._engine.kept.tolist()
            if short := {row: kept[row] for row in chosen if kept[row] < frames}:
                raise ValueError(
                    f"Stream.rollback: frames must be at most what each row has kept, got {frames}; rows can go back"
                    f" {short} (row: frames), history is {self.history}"
                )
            self._engine.back(frames, chosen)
        finally:
            self._caller.release()

    def reset(self, rows: Any = None) -> None:
        """Put the rows, or all, before their first frame; their history starts anew, and nothing is held."""
        with self._alone("reset"):
            self._engine.reset(read_rows("Stream.reset", rows, self.batch_size))

    @property
    def state(self) -> State:
        """A copy of the present state of all rows, which the model itself, or another stream of it, can go on from."""
        with self._alone("state"):
            return self._engine.get()

    def load(self, state: State, rows: Any = None) -> None:
        """Go on from a state of as many rows; the history of the rows starts anew.

        Raises:
            ValueError, TypeError: it is another model's, of other rows or dtypes, or poisoned with NaN or infinity:
                layer and tensor are named, and nothing changed.
        """
        with self._alone("load"):
            chosen = read_rows("Stream.load", rows, self.batch_size)
            self._steps.check_state("Stream.load", state, len(chosen))
            self._engine.set(state, chosen)

    def fork(self, n: int) -> "Stream":
        """A stream of n rows that all begin where this one, of one row, is; the weights are shared."""
        if self.batch_size != 1:
            raise ValueError(f"Stream.fork: needs a stream of one row, got {self.batch_size}; see select")
        check_integers("Stream.fork", n=(n, 1))
        return self.select([0] * n)

    def select(self, indices: Any) -> "Stream":
        """A stream that begins where the rows ``indices`` are, repeats allowed; the weights are shared.

        Its history starts anew; what is held comes along.
        """
        with self._alone("select"):
            rows = read_rows("Stream.select", indices, self.batch_size, repeats=True)
            if not rows:
                raise ValueError("Stream.select: indices must name at least one row, got none")
            other = object.__new__(type(self))
            other.__dict__.update(self.__dict__)
            other._begin(len(rows), self.history, self.nonfinite, None)
            other._engine.set(self._engine.get(rows), list(range(len(rows))))
            if self._engine.held is not None:
                other._engine.held.copy_(self._engine.held[rows])
        return other

    def copy_rows(self, source: int, targets: Any) -> None:
        """Make the rows ``targets`` what row ``source`` is, with its history and what it holds."""
        with self._alone("copy_rows"):
            (row,) = read_rows("Stream.copy_rows", [source], self.batch_size, name="source")
            others = read_rows("Stream.copy_rows", targets, self.batch_size, name="targets")
            self._engine.copy_rows(row, [target for target in others if target != row])

    # what there is

    @property
    def position(self) -> Tensor:
        """(B,) int64: frames that each row has taken in since it began."""
        return self._engine.position.clone()

    @property
    def kept(self) -> Tensor:
        """(B,) int64: frames that each row can be taken back now, at most `history`."""
        return self._engine.kept.clone()

    @property
    def held(self) -> Tensor:
        """(B, E), a copy: what nonfinite "hold" would put in place of a bad number; of tokens (B, 0)."""
        held = self._engine.held
        return torch.empty(self.batch_size, 0) if held is None else held.clone()

    @held.setter
    def held(self, values: Tensor) -> None:
        held = self._engine.held
        shape = tuple(self.held.shape)
        if not isinstance(values, Tensor) or values.shape != shape or not bool(values.isfinite().all()):
            raise ValueError(f"Stream.held must be a finite tensor of shape {shape}, got {values!r}")
        with self._alone("held"):
            if held is not None:
                held.copy_(values)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory of all rows, their history included."""
        return self._engine.nbytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, packed ones of the native backend, that a step reads."""
        return self._engine.weight_bytes

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({type(self._steps.model).__name__}, batch_size={self.batch_size}, history="
            f"{self.history}, weights={self.weights!r}, backend={self.backend!r}, nonfinite={self.nonfinite!r})"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: a stream is not pickled or copied: keep its state (State.save, State.serialize)"
            " and make a new one with state=..., or use fork or select"
        )

    # one caller, and what is told to it

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self._caller.acquire(blocking=False):
            self._refuse_second(what)
        try:
            yield
        finally:
            self._caller.release()

    def _refuse_second(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"{type(self).__name__}.{what}: another call is inside this stream, and one stream is one caller; make a"
            " stream for each thread, they share the model"
        )

    def _judge(self, what: str, failed: int, x: Tensor, y: Tensor) -> None:
        """Say what a step's count of failed rows means."""
        if failed > 0:
            where = say_where(self._steps.is_bad(x), x, ("row", "channel"))
            raise ValueError(f"Stream.{what}: frame must be finite, got {where}; the state stays what it was")
        if self._policy == RAISE:
            self._refuse_output(what, y.flatten(1).isfinite().all(1))
        self.skipped = -failed
        if self._policy == PASS and self._steps.checks_values:
            y[self._steps.is_bad(x).any(1)] = torch.nan

    def _refuse_output(self, what: str, good: Tensor) -> NoReturn:
        """``good`` (B,): whose outputs are finite, of all rows where it is a state that is not."""
        rows = (~good).nonzero()[:, 0].tolist()
        which = f"outputs or states of the rows {rows}" if rows else "new state of a row"
        raise FloatingPointError(
            f"Stream.{what}: not finite, though the frames are: the {which}; the state stays what it was"
        )

    def _read_out(self, out: Any, is_single: bool) -> Tensor:
        if isinstance(out, np.ndarray) and not out.flags.writeable:
            raise ValueError("Stream.step: out must be an array that can be written to, got a read-only one")
        y = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
        shape = self._output_shape[1:] if is_single else self._output_shape
        dtype = self._steps.output_dtype
        if not isinstance(y, Tensor) or y.shape != shape or y.dtype != dtype or not y.is_contiguous():
            got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(out).__name__
            raise ValueError(f"Stream.step: out must be contiguous {dtype} of shape {tuple(shape)}, got {got}")
        return y[None] if is_single else y


def unbounded(model: Any, **options: Any) -> Stream:
    """A stream that remembers everything since its first frame, in a state of constant size.

    y_t is what the model says of x_1, ..., x_t. The options are those of `Stream`. The other policy, which forgets, is
    `sliding_window`.
    """
    return Stream(model, **options)


def _native_maker(compiled: CompiledStep, history: int, threads: int | None) -> Callable[[int], NativeEngine]:
    if threads is None:
        threads = 1 if compiled.weight_bytes < ONE_THREAD else torch.get_num_threads()
    return lambda rows: NativeEngine(compiled, rows, history + 2, threads)
