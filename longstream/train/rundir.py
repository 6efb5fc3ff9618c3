"""The run directory: what lies where, and how it is written so that a crash never costs what was there before.

config.json, generation_config.json, model.safetensors, tokenizer files    the model, as transformers reads it; of a
generator.json                                                             token task also which one it is
settings.toml, data.json                                                   what was asked for; what was trained on
metrics.jsonl, tensorboard/, loss.png, samples/, evaluation.json           what came of it; of tasks on sequences
report.json, report.md and PICTURES                                        the report on what was held out
inspect/                                                                   what `longstream inspect` shows of it
checkpoints/checkpoint-<step>/                                             the model again, and what resuming needs
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longstream.train.settings import Settings, build_settings, read_toml, to_toml

logger = logging.getLogger("longstream")

# Everything a run may leave behind; nothing else is ever deleted.
PICTURES = ("confusion.png", "regression.png", "horizons.png", "forecasts.png")  # of reports on sequences
RUN_FILES = (
    "settings.toml",
    "data.json",
    "metrics.jsonl",
    "loss.png",
    "evaluation.json",
    "report.json",
    "report.md",
    *PICTURES,
)
GENERATOR = "generator.json"  # beside the model of a token task: which one
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", GENERATOR)
RUN_FOLDERS = ("checkpoints", "samples", "tensorboard", "inspect")
RESUME_FILES = (
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "progress.json",
)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file to: moved onto ``path`` once complete, removed if the block fails."""
    beside = path.with_name(f".writing-{path.name}")
    remove(beside)
    try:
        yield beside
        replace(beside, path)
    finally:
        remove(beside)


def replace(source: Path, target: Path) -> None:
    """Move ``source`` onto ``target``, its content on the disk before its name."""
    for file in [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]:
        with open(file, "rb+") as stream:
            os.fsync(stream.fileno())
    before = target.with_name(f".replaced-{target.name}")
    if target.is_dir():  # a folder cannot be replaced in one step: whatever happens between, one of the two is whole
        remove(before)
        os.replace(target, before)
    os.replace(source, target)
    remove(before)


def remove(path: Path) -> None:
    """Delete a file or folder that may not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within, transformers logs errors only, and draws no bars for weights that it reads and writes."""
    import transformers

    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.toml"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        self.evaluation = self.path / "evaluation.json"
        self.report = self.path / "report.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.tensorboard = self.path / "tensorboard"

    def refuse_to_overwrite(self, overwrite: bool) -> None:
        """Raise unless a new run may be written here; touches nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file, not a run directory")
        if all(found.is_dir() and not found.is_symlink() for found in self.path.rglob("*")):
            return  # nothing there, or the empty folders of a run that never began
        if not self.settings.is_file():
            raise FileExistsError(f"{self.path} exists and is not a run of longstream: choose another --out")
        if not overwrite:
            raise FileExistsError(
                f"{self.path} already holds a run: choose another --out, continue it with --resume {self.path},"
                " or replace it with --overwrite"
            )

    def create(self, settings: Settings, data: dict[str, Any]) -> None:
        """Remove an earlier run's files, and write down what this one was asked to do.

        Checkpoints go first and the two files that describe them are replaced last, so that whatever happens between,
        the directory is a run, and none whose checkpoints are another's.
        """
        texts = {self.settings: to_toml(settings), self.data: json.dumps(data, indent=2) + "\n"}
        for name in (*RUN_FOLDERS, *RUN_FILES, *MODEL_FILES):
            if self.path / name not in texts:
                remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_text(path, text)
        if settings.data.task == "next-token":
            self.samples.mkdir()
        self.checkpoints.mkdir()

    def read_settings(self) -> Settings:
        """The settings of an existing run."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such run directory")
        if not self.settings.is_file():
            raise FileNotFoundError(f"{self.path} is not a run of longstream: it has no settings.toml")
        return build_settings(read_toml(self.settings))

    def read_data(self) -> dict[str, Any]:
        """What an existing run was trained on."""
        try:
            data = json.loads(self.data.read_text(encoding="utf-8"))
            if missing := {"sha256", "processes"} - set(data):
                raise ValueError(f"it lacks {min(missing)}")
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.path} does not say what it was trained on: data.json is missing") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.data} is damaged: {error}") from None
        return data

    def newest_checkpoint(self, processes: int = 1) -> Path | None:
        """The newest checkpoint that is whole; older ones are tried when it is damaged. None when there is none yet.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        refusals = []
        for checkpoint in reversed(self.list_checkpoints()):
            reason = why_not_resumable(checkpoint, processes)
            if reason is None:
                return checkpoint
            refusals.append(reason)
            logger.warning("%s is passed over: %s", checkpoint, reason)
        if refusals:
            raise ValueError(f"{self.path}: no checkpoint can be resumed from; of the newest, {refusals[0]}")
        return None

    def list_checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("checkpoint-*"), key=checkpoint_step)

    def drop_old_checkpoints(self, keep: int, spare: int = 0) -> None:
        """Delete all but the ``keep`` newest checkpoints and that of step ``spare``; keep=0 keeps all."""
        for checkpoint in self.list_checkpoints()[:-keep] if keep else []:
            if checkpoint_step(checkpoint) != spare:
                remove(checkpoint)

    def publish(self, checkpoint: Path) -> None:
        """Copy a checkpoint's model and tokenizer to the top of the run; the weights are swapped in one step."""
        skipped = {*RESUME_FILES, "model.safetensors"} - {"config.json"}
        for file in checkpoint.iterdir():
            if file.name not in skipped and not file.name.startswith("rng_state"):
                with written_beside(self.path / file.name) as beside:
                    shutil.copyfile(file, beside)
        with written_beside(self.path / "model.safetensors") as beside:
            shutil.copyfile(checkpoint / "model.safetensors", beside)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a crash is dropped."""
        rows = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Forget what was logged after ``step``: it is about to be done again."""
        kept = [json.dumps(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
        write_text(self.metrics, "".join(kept))


def checkpoint_step(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    digits = checkpoint.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else -1


def why_not_resumable(checkpoint: Path, processes: int = 1) -> str | None:
    """None for a whole checkpoint, else what is missing or damaged. Reads every byte, executes none."""
    from safetensors import SafetensorError, safe_open

    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in (*RESUME_FILES, *states):
        file = checkpoint / name
        if not file.is_file():
            return f"{file} is missing"
        try:
            if file.suffix == ".safetensors":
                safe_open(file, framework="pt").__enter__()
            elif file.suffix in (".pt", ".pth"):
                if broken := zipfile.ZipFile(file).testzip():
                    return f"{file} is damaged at {broken}"
            else:
                json.loads(file.read_text(encoding="utf-8"))
        except (SafetensorError, zipfile.BadZipFile, ValueError) as error:
            return f"{file} is damaged or cut short: {error}"
    return None
