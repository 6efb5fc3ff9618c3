"""How often a step asks for memory: every call of malloc, counted by glibc's own malloc trace in a process of its own.

`python -m longstream.bench.step_memory`, a plan on stdin, with libc_malloc_debug.so.0 loaded before everything else:
between mtrace and muntrace glibc writes a line for every block. Those that torch's allocator asked for are tensors; the
rest are small ones of the call itself, of which torch needs a few for the arguments of any op. Objects of Python that
come from its own pools are no calls of malloc. It needs Linux and glibc 2.34 or newer; elsewhere it says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

TRACER = "libc_malloc_debug.so.0"
VERSION = b"GLIBC_2.2.5"  # of its functions, which are hidden from those who ask for none
TENSORS = "alloc_cpu"  # in the line of a block that is a tensor's
STEPS = 50
PATIENCE = 600.0  # seconds


class Allocations(NamedTuple):
    """Of one step, on average."""

    tensors: float  # blocks for numbers of tensors
    mallocs: float  # calls of malloc and of what is like it
    largest: int  # bytes of the largest block


def why_not() -> str | None:
    """None where allocations can be counted, else why not."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return "allocations are not counted here: it needs Linux and glibc"
    try:
        ctypes.CDLL(TRACER)
    except OSError:
        return f"allocations are not counted here: glibc's {TRACER} is not installed"
    return None


def parse(lines: Sequence[str], steps: int) -> Allocations:
    """What a trace says: lines "@ caller + address size"; "-" is a block that goes, "<" and ">" one that is resized."""
    blocks = [words for line in lines if len(words := line.split()) >= 5 and words[2] in ("+", ">")]
    sizes = [int(words[4], 16) for words in blocks]
    tensors = sum(TENSORS in words[1] for words in blocks)
    return Allocations(tensors / steps, len(blocks) / steps, max(sizes, default=0))


def count(run: Callable[[int], object], steps: int, path: Path) -> Allocations:
    """Of ``run(steps)``, with the trace in ``path``; in the process that was started for it."""
    system, tracer = ctypes.CDLL(None), ctypes.CDLL(TRACER)
    system.dlvsym.restype, system.dlvsym.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    begin, end = (
        ctypes.CFUNCTYPE(None)(system.dlvsym(tracer._handle, name, VERSION)) for name in (b"mtrace", b"muntrace")
    )
    os.environ["MALLOC_TRACE"] = str(path)
    path.unlink(missing_ok=True)
    begin()
    run(steps)
    end()
    return parse(path.read_text(encoding="utf-8", errors="replace").splitlines(), steps)


def measure_allocations(subject: Any, weights: Sequence[str], names: Sequence[str], log: Any) -> dict[str, Allocations]:
    """By the names of contenders; those that fail there have none."""
    plan = {"subject": asdict(subject), "weights": [*weights], "names": [*names]}
    package = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        "LD_PRELOAD": TRACER,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [sys.executable, "-m", "longstream.bench.step_memory"],
        input=json.dumps(plan),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        timeout=PATIENCE,
    )
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"name"'):
            said = json.loads(line)
            name = said.pop("name")
            found[name] = Allocations(**said)
    return found


def main() -> None:
    """Count for every contender of the plan, with one thread."""
    plan = json.load(sys.stdin)
    import torch

    from longstream.bench.measure import Skip
    from longstream.bench.step_clock import WARM
    from longstream.bench.step_ours import our_contenders
    from longstream.bench.step_peers import other_contenders
    from longstream.bench.step_subject import Subject, prepare

    torch.set_num_threads(1)
    given = prepare(Subject(**plan["subject"]))
    with tempfile.TemporaryDirectory() as folder:
        for one in [*our_contenders(tuple(plan["weights"])), *other_contenders()]:
            if one.name not in plan["names"]:
                continue
            try:
                with torch.no_grad():
                    ready = one.make(given, 1)
            except Skip:
                continue
            step, frames = ready.step, given.frames

            def run(steps: int, step: Any = step, frames: Any = frames) -> None:
                for i in range(steps):
                    step(frames[i])

            with torch.inference_mode():
                ready.restart()
                run(WARM)
                found = count(run, STEPS, Path(folder, "trace"))
            sys.stdout.write(json.dumps({"name": one.name, **found._asdict()}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
