"""What watches a run: the clock and the signals that may end it, its log files, and the line in the terminal."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longstream.train.plots import plot_run
from longstream.train.rundir import RunDirectory

SECONDS_BETWEEN_LINES = 5.0  # where there is no terminal to draw a bar in


class RunClock(TrainerCallback):
    """How far the run is, and whether it ends now: steps done, time used up, or a signal. All processes agree.

    Time is counted over every session of a run, evaluations included.
    """

    def __init__(self, steps: int | None, minutes: float) -> None:
        self.steps = steps
        self.budget = 60 * minutes  # seconds; 0 is no limit
        self.before = 0.0  # seconds of earlier sessions
        self.agreed = 0.0  # seconds at the last step's end, the same in every process
        self.evaluation_seconds = 0.0
        self.received = 0  # signal number
        self.interrupted_by = 0  # the same, once every process knows
        self.evaluation_due = False  # and was put off for the sake of a quick end
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """From 0 to 1, by steps or by time, whichever is further."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = self.agreed / self.budget if self.budget else 0.0
        return min(1.0, max(by_steps, by_time))

    def seconds_left(self, step: int) -> float:
        """An estimate, from the progress so far."""
        progress = self.progress(step)
        return self.agreed * (1 - progress) / progress if progress else float("inf")

    def start(self, seconds_before: float) -> None:
        """Begin a session of a run that has lasted ``seconds_before``."""
        self.before, self._started = seconds_before, time.monotonic()
        self.agreed = seconds_before

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, Ctrl-C and SIGTERM end the run after its next step and a checkpoint, a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        alone = "TORCHELASTIC_RUN_ID" not in os.environ  # torchrun repeats the terminal's signal to its processes
        if self.received and alone:
            raise KeyboardInterrupt
        if not self.received and os.environ.get("RANK", "0") == "0":
            again = "; again to stop at once" if alone else ""
            os.write(
                2, f"\nstopping after this step, saving first{again}\n".encode()
            )  # print could be what was interrupted
        self.received = number

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        said = torch.tensor([self.received, self.seconds, self.evaluation_seconds], dtype=torch.float64)
        if dist.is_available() and dist.is_initialized():
            said = said.to(args.device)
            dist.all_reduce(said, dist.ReduceOp.MAX)
        received, self.agreed, evaluation_seconds = said.tolist()
        if state.global_step >= state.max_steps:
            return  # done anyway: transformers has asked for the last evaluation and checkpoint
        if received:
            self.interrupted_by, self.evaluation_due = int(received), control.should_evaluate
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        elif self.budget and self.agreed >= self.budget:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_log = control.should_save = control.should_training_stop = True
        elif self.budget and self.budget - self.agreed < evaluation_seconds:
            control.should_evaluate = False  # it would end after the time is up, and the last one comes then


class RunLog(TrainerCallback):
    """Writes metrics.jsonl, TensorBoard events, the loss plot and the samples. For the first process only."""

    def __init__(self, run: RunDirectory, clock: RunClock, trainer: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open_writer = SummaryWriter  # imported before a run is begun, where it may be missing
        self.run, self.clock, self.trainer = run, clock, trainer
        self.latest: dict[str, float] = {}  # of training
        self.writer: Any = None
        self._step_started = 0.0
        self._step_seconds = 0.0  # since the last log, without evaluations and saving
        self._tokens_logged = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.rewind_metrics(state.global_step)
        self.writer = self.open_writer(str(self.run.tensorboard), purge_step=state.global_step + 1)
        self._tokens_logged = self.trainer.tokens

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_seconds += time.monotonic() - self._step_started

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            tokens = self.trainer.tokens - self._tokens_logged
            row = {
                "loss": logs["loss"],
                **self.trainer.task.training_row(logs["loss"]),
                "learning_rate": logs["learning_rate"],
                "grad_norm": logs.get("grad_norm"),
                "tokens": self.trainer.tokens,
                "tokens_per_second": round(tokens / max(self._step_seconds, 1e-9), 1),
            }
            self._step_seconds, self._tokens_logged = 0.0, self.trainer.tokens
            self.latest = row
            self.write("train", state.global_step, row)
        elif row := {name[5:]: value for name, value in logs.items() if name.startswith("eval_")}:
            self.write("validation", state.global_step, row)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.trainer.task.show(self.trainer.network, self.run, state.global_step)
        self._plot()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()
        self._plot()

    def _plot(self) -> None:
        plot_run(self.run.read_metrics(), self.run.plot, self.trainer.task.curve)

    def close(self) -> None:
        """Let go of the event file."""
        if self.writer is not None:
            self.writer.close()

    def write(self, kind: str, step: int, row: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and each of its numbers to TensorBoard; of a list, those of the layers in turn."""
        line = {"kind": kind, "step": step, **row, "seconds": round(self.clock.seconds, 3)}
        with open(self.run.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in row.items():
            numbers = (
                {f"{name}/layer_{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
            )
            for tag, number in numbers.items():
                if number is not None and self.writer is not None:
                    self.writer.add_scalar(f"{kind}/{tag}", number, step)


class ProgressLine(TrainerCallback):
    """Loss, the task's figure, speed and time left on stderr: a bar in a terminal, else a line now and then."""

    def __init__(self, clock: RunClock, log: RunLog) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.clock, self.log = clock, log
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=self.console)
        self.task = self.bar.add_task("", total=1.0)
        self._last_line = -SECONDS_BETWEEN_LINES

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.console.is_terminal:
            self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(self.task, completed=self.clock.progress(state.global_step), description=self._text(state))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        now = time.monotonic()
        if logs and any(name.startswith("eval_") for name in logs):
            self.console.print(f"step {state.global_step}: {self.log.trainer.last_measured.brief}")
        elif (
            logs and "loss" in logs and not self.console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES
        ):
            self._last_line = now
            self.console.print(self._text(state))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self.console.is_terminal:
            self.bar.stop()

    def _text(self, state: TrainerState) -> str:
        total = f"/{self.clock.steps}" if self.clock.steps else ""
        left = self.clock.seconds_left(state.global_step)
        parts = [f"step {state.global_step}{total}"]
        if row := self.log.latest:
            task = self.log.trainer.task
            parts += [
                f"loss {row['loss']:.3f}",
                task.brief(row),
                f"{row['tokens_per_second']:,.0f} {task.unit}/s",
            ]
        if left != float("inf"):
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        return "  ".join(filter(None, parts))
