"""Starts a process for each number of threads, and another one where it dies, without the contestant it died of."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from longstream.bench.limits import better
from longstream.bench.measure import Case, Effort, Row

START = 300.0  # seconds that a process may take to begin
PATIENCE = 300.0  # seconds without a word after which it is stopped; the slowest compilations take a minute


@dataclass(frozen=True)
class Plan:
    """What is measured, and how."""

    cases: Sequence[Case]
    threads: Sequence[int]
    effort: Effort
    backends: Sequence[str] = ()
    ours_only: bool = False
    budget: float = 3600.0  # seconds, after which no case begins
    limits: float = 1.0  # seconds for each limit, before and after
    excluded: Mapping[str, str] = field(default_factory=dict)  # "group/name": why


@dataclass
class Results:
    """What came of it."""

    rows: list[Row] = field(default_factory=list)
    limits: dict[int, dict[str, float | None]] = field(default_factory=dict)  # by threads

    def add_shares(self) -> None:
        """The shares of the limits, once those are known."""
        for row in self.rows:
            rate = self.limits.get(row.threads, {}).get(row.share_of)
            if row.work and row.median_ms and rate:
                row.share = row.work / (row.median_ms / 1e3) / rate


def cpus() -> list[int]:
    """Those this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def measure(plan: Plan, results: Results, log: IO[str], tell: Callable[[str], object]) -> None:
    """Fill in the results; ``tell`` is told how far it is, and what the processes print goes to the log."""
    end = time.monotonic() + plan.budget
    for turn, threads in enumerate(plan.threads):
        now = time.monotonic()
        until = now + max(end - now, 0) / (len(plan.threads) - turn)  # what one leaves the next may use
        excluded = dict(plan.excluded)
        first = 0
        while first < len(plan.cases):
            given = {
                "threads": threads,
                "cases": plan.cases[first:],
                "effort": plan.effort,
                "backends": plan.backends,
                "ours_only": plan.ours_only,
                "limits": plan.limits,
                "seconds": max(until - time.monotonic(), 0),
                "excluded": excluded,
            }
            first = _one_process(given, first, results, log, tell)


def _one_process(
    given: dict[str, Any], first: int, results: Results, log: IO[str], tell: Callable[[str], object]
) -> int:
    """Run a worker to its end or death; the number of the case to go on with."""
    threads, total = given["threads"], first + len(given["cases"])
    case, at = 0, ""
    died = "its process ended by itself"
    for message in _messages(given, log):
        if "limits" in message:
            results.limits[threads] = better(results.limits.get(threads, {}), message["limits"])
        elif "case" in message:
            case, at = message["case"], ""
            tell(f"[{first + case + 1}/{total}] {Case(*given['cases'][case])}, {threads} thread{'s' * (threads > 1)}")
        elif "at" in message:
            at = message["at"]
        elif "rows" in message:
            results.rows += [Row(**row) for row in message["rows"]]
            case, at = case + 1, ""
        elif "died" in message:
            died = message["died"]
    if case < len(given["cases"]):
        group = given["cases"][case][0]
        if not at:
            raise OSError(f"bench: the measuring process could not begin with {Case(*given['cases'][case])}: {died}")
        tell(f"  {at}: {died}")
        given["excluded"][f"{group}/{at}"] = f"failed: {died}"
    return first + case


def _messages(given: dict[str, Any], log: IO[str]) -> Iterator[dict[str, Any]]:
    """What a worker says; last, how it died, if it did."""
    worker = _start(given, log)
    assert worker.stdin is not None
    assert worker.stdout is not None
    lines: queue.Queue[str] = queue.Queue()

    def read(stream: IO[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, args=(worker.stdout,), daemon=True)
    try:
        with worker.stdin as stdin:
            json.dump(given, stdin)
        reader.start()
        line = lines.get(timeout=START)
        while line:
            yield json.loads(line)
            line = lines.get(timeout=PATIENCE)
        if code := worker.wait():
            yield {"died": f"its process ended with {f'signal {-code}' if code < 0 else f'code {code}'}"}
    except queue.Empty:
        yield {"died": f"no answer for {PATIENCE:.0f} s"}
    finally:
        worker.kill()
        worker.wait()
        if reader.ident is not None:
            reader.join()
        worker.stdout.close()


def _start(given: dict[str, Any], log: IO[str]) -> subprocess.Popen[str]:
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(given["threads"]),
        "MKL_NUM_THREADS": str(given["threads"]),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        # glibc keeps freed memory, as other allocators do: else most of a short call is new pages, whoever makes it
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**40),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes beside the clock
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get(
            "TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir() + "/longstream-bench"
        ),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    allowed = cpus()
    confined = hasattr(os, "sched_setaffinity")
    if confined:  # the child inherits what this thread may use
        os.sched_setaffinity(0, allowed[: given["threads"]])
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "longstream.bench.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    finally:
        if confined:
            os.sched_setaffinity(0, allowed)
