"""Runs small enough for tests."""

import json
import random
from pathlib import Path

from longstream.train.settings import Settings, build_settings, flatten, setting_fields

SMALL = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 2,
    "model.expand_ratio": 4,
    "model.intermediate_size": 32,
    "data.seq_len": 32,
    "train.batch_size": 4,
    "train.steps": 6,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.save_every": 3,
    "train.sample_tokens": 8,
}


def write_text(path: Path, size: int = 6000) -> Path:
    """A file of text-like bytes, some of them no ASCII."""
    words = ["the", "sea", "and", "a", "ship", "of", "wind", "über", "stone", "with", "42", "sails,", "out.\n"]
    pick = random.Random(0)
    text = " ".join(pick.choice(words) for _ in range(size))
    path.write_bytes(text.encode()[:size])
    return path


def small(file: Path, **changes: object) -> Settings:
    """``small(file, steps=3, hidden_size=8)``: settings are named without their section."""
    sections = {key.partition(".")[2]: key for key in setting_fields()}
    return build_settings(SMALL, {"data.files": [str(file)]}, {sections[name]: v for name, v in changes.items()})


def metrics(run: Path, kind: str = "train") -> list[dict]:
    """The rows of metrics.jsonl of one kind."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def losses(run: Path, kind: str = "train") -> list[tuple[int, float]]:
    """(step, loss) as logged."""
    return [(row["step"], row["loss"]) for row in metrics(run, kind)]


def flags(settings: Settings) -> list[str]:
    """The same settings on a command line."""
    values = flatten(settings)
    files = values.pop("data.files")
    return ["--data", *files, *(f"{key}={value}" for key, value in values.items() if value != ())]
