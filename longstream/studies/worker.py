"""The process that trains runs: ``python -m longstream.studies.worker``, a run a line on stdin, its end on stdout.

`pool.Pool` starts it, in the environment of `machine.REPRODUCIBLE` and with one thread. It ends when stdin does; when
whoever started it is gone, it saves what it trains and ends too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longstream.studies.machine import use_reproducible_kernels
from longstream.studies.registry import load_study
from longstream.studies.study import Run, Study

logger = logging.getLogger("longstream")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def main() -> None:
    """Train what is asked for until nothing is."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what packages print is not for the channel
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs; while one is trained, training listens
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    import longstream.train.run  # noqa: F401  the slow import, before the first run is asked for

    kernels = use_reproducible_kernels()
    channel.write(json.dumps({"kernels": kernels}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        run, folder = Run(**asked["run"]), Path(asked["folder"])
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            said = attempt(asked["module"], run, folder)
        except KeyboardInterrupt:  # asked to stop where nothing has to be saved, or a second time
            said = {"status": "interrupted"}
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        channel.write(json.dumps({"run": run.name, **said}) + "\n")


def ask(module: str, run: Run, folder: Path) -> str:
    """The line that asks for a run."""
    said = {**asdict(run), "settings": dict(run.settings)}
    return json.dumps({"module": module, "run": said, "folder": str(folder)}, default=str) + "\n"


def attempt(module: str, run: Run, folder: Path) -> dict[str, Any]:
    """`train_run` of the module's study; what it raises becomes ``status`` "failed" and ``why``."""
    try:
        return train_run(load_study(module), run, folder)
    except (ValueError, OSError) as error:
        return {"status": "failed", "why": str(error)}
    except Exception as error:  # of the study or of training; the log has where
        traceback.print_exc()
        return {"status": "failed", "why": f"{type(error).__name__}: {error}"}


def train_run(study: Study, run: Run, folder: Path) -> dict[str, Any]:
    """Train a run in ``folder``, from its last checkpoint if it was interrupted, and measure it.

    Returns:
        ``status`` "done", "diverged" or "interrupted", ``measured`` and ``made``; see `Result`.
    Raises:
        ValueError: its settings do not fit, or the folder holds a run of others.    OSError: of files.
    """
    from longstream.train.run import train
    from longstream.train.settings import build_settings

    settings = build_settings(run.settings, {"train.seed": run.seed, "train.threads": 1})
    resume = _prepare(run, settings, folder)
    try:
        result = train(settings, folder, resume=resume, overwrite=not resume)
    except FloatingPointError as error:
        logger.warning("%s: %s", run.name, error)
        return {
            "status": "diverged",
            "measured": _finite(run, _held_out(folder)),
            "made": _made(folder),
            "why": str(error),
        }
    if result.interrupted_by:
        return {"status": "interrupted"}
    measured = {**_held_out(folder), "parameters": _parameters(folder)}
    if study.measure is not None:
        measured |= {key: float(value) for key, value in study.measure(run, folder).items()}
    return {"status": "done", "measured": _finite(run, measured), "made": _made(folder)}


def _made(folder: Path) -> dict[str, str]:
    """What a run's digits depend on beside its settings."""
    import torch

    import longstream
    from longstream.ops import native_kernels

    versions = {"longstream": longstream.__version__, "torch": torch.__version__, "kernels": native_kernels()}
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    sums = {key: str(data[key]) for key in ("sha256", "validation_sha256") if data.get(key)}
    return {**versions, **sums}


def _finite(run: Run, measured: dict[str, float]) -> dict[str, float]:
    for key in [key for key, value in measured.items() if not math.isfinite(value)]:
        logger.warning("%s: %s is %s, and left out", run.name, key, measured.pop(key))
    return measured


def _prepare(run: Run, settings: Any, folder: Path) -> bool:
    """Whether the folder has a run to go on with; one that was begun and saved nothing is trained anew.

    Raises:
        ValueError: the run there is of other settings.    FileExistsError: there is something else.
    """
    from longstream.train.rundir import MODEL_FILES, RUN_FILES, RUN_FOLDERS, RunDirectory, remove
    from longstream.train.settings import flatten

    there = RunDirectory(folder)
    if not folder.exists():
        return False
    if not there.settings.is_file() or not there.data.is_file():  # half deleted
        for name in (*RUN_FOLDERS, *RUN_FILES, *MODEL_FILES, *TOKENIZER_FILES):
            remove(folder / name)
        return False
    before, now = flatten(there.read_settings()), flatten(settings)
    for key in run.settings:
        if key != "data.files" and before[key] != now[key]:  # files may have moved; training compares their content
            raise ValueError(f"{folder} is of {key}={before[key]!r}, not {now[key]!r}")
    try:
        checkpoint = there.newest_checkpoint()
    except ValueError as error:  # all are damaged
        logger.warning("%s is trained anew: %s", folder, error)
        return False
    if checkpoint is not None and not (folder / "model.safetensors").is_file():
        there.publish(checkpoint)
    return checkpoint is not None


def _held_out(folder: Path) -> dict[str, float]:
    """The figures of the last row of validation, or with patience of the best, and the minutes that the run took."""
    from longstream.train.compare import read_run
    from longstream.train.rundir import RunDirectory

    rows = RunDirectory(folder).read_metrics()
    figures: dict[str, float] = {}
    if any(row["kind"] == "validation" for row in rows):
        figures = dict(read_run(folder, "").figures)
    return {**figures, "minutes": rows[-1]["seconds"] / 60} if rows else figures


def _parameters(folder: Path) -> int:
    """Of the trained model."""
    from longstream import hf  # noqa: F401  its models are transformers' from here on
    from longstream.baselines import language  # noqa: F401
    from longstream.train.loading import SEQUENCE_MODEL, read_model_type
    from longstream.train.rundir import quiet_transformers

    if read_model_type(folder) == SEQUENCE_MODEL:
        from longstream.sequences import SequenceModel

        return SequenceModel.from_pretrained(folder).num_parameters()
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        ).num_parameters()


def _end_with_parent(parent: int) -> None:
    """Save and end when the process that started this one is gone, which must not leave a run behind that goes on."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(120.0)
    os._exit(1)


if __name__ == "__main__":
    main()
