"""The processes that train a study's runs, one thread each, and what they say."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from longstream.studies.machine import REPRODUCIBLE
from longstream.studies.study import Run
from longstream.studies.worker import ask

START = "start"  # what a worker says first, in place of a run's name


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One process, its pipes, and the run that it is at."""

    def __init__(self, said: queue.Queue[tuple[Worker, dict[str, Any]]], log: IO[str]) -> None:
        package = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            **REPRODUCIBLE,
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        }
        self.run: Run | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "longstream.studies.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C comes from `Pool.stop`, once
        )
        self._reader = threading.Thread(target=self._read, args=(said,), daemon=True)
        self._reader.start()

    def begin(self, module: str, run: Run, folder: Path) -> None:
        """Ask for a run."""
        assert self.process.stdin is not None
        self.run = run
        try:
            self.process.stdin.write(ask(module, run, folder))
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, which its reader says

    def _read(self, said: queue.Queue[tuple[Worker, dict[str, Any]]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said.put((self, json.loads(line)))
        code = self.process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"code {code}"
        said.put((self, {"status": "died", "why": f"its process ended with {how}"}))

    def end(self) -> None:
        """Let the process go; at once if it is at a run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.run is not None:
            self.process.kill()
        try:
            self.process.stdin.close()
            self.process.wait(timeout=20.0)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


class Pool:
    """As many processes as there are jobs, each at one run at a time."""

    def __init__(self, module: str, folder: Path, jobs: int, log: IO[str]) -> None:
        self.module, self.folder, self.jobs, self.log = module, folder, jobs, log
        self.kernels = ""  # longstream's own instruction set in the workers
        self._said: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        self._workers: list[Worker] = []

    @property
    def at_work(self) -> list[Run]:
        """The runs that are trained now."""
        return [worker.run for worker in self._workers if worker.run is not None]

    def train(
        self, runs: Sequence[Run], stop: Mapping[str, str], every: float = 0.5
    ) -> Iterator[tuple[Run, dict[str, Any]] | None]:
        """Train runs in this order; yields each with what came of it, and None now and then.

        Args:
            stop:  once it has anything in it, no more runs begin.
            every: seconds between two Nones.
        """
        waiting = list(runs)
        while (waiting and not stop) or self.at_work:
            while waiting and not stop and len(self.at_work) < self.jobs:
                run = waiting.pop(0)
                self._idle().begin(self.module, run, self.folder / run.name)
            try:
                worker, said = self._said.get(timeout=every)
            except queue.Empty:
                yield None
                continue
            if "kernels" in said:
                self.kernels = said["kernels"]
                continue
            if said["status"] == "died":
                self._workers.remove(worker)
            done, worker.run = worker.run, None
            if said["status"] == "died":
                worker.end()
            if done is not None:
                yield done, said

    def interrupt(self) -> None:
        """Ask all that is trained to save and stop; a second time, to stop at once."""
        for worker in self._workers:
            if worker.run is not None:
                worker.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _idle(self) -> Worker:
        for worker in self._workers:
            if worker.run is None:
                return worker
        worker = Worker(self._said, self.log)
        self._workers.append(worker)
        return worker
