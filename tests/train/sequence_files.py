"""Files of small sequences, and settings for runs on them that take a second."""

from pathlib import Path

import numpy as np

from longstream.train.settings import Settings, build_settings, setting_fields

SMALL = {
    "model.hidden_size": 8,
    "model.num_hidden_layers": 1,
    "model.intermediate_size": 16,
    "train.batch_size": 8,
    "train.steps": 6,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.save_every": 3,
    "train.learning_rate": 1e-2,
}


def small_sequences(file: Path | str, task: str, **changes: object) -> Settings:
    """Settings of a run of a task on a file; ``changes`` are named without their section."""
    sections = {key.partition(".")[2]: key for key in setting_fields()}
    flat = {sections[name]: value for name, value in changes.items()}
    return build_settings(SMALL, {"data.files": [str(file)], "data.task": task}, flat)


def labeled(path: Path, n: int = 40, *, classes: tuple[str, ...] = ("down", "up")) -> Path:
    """An .npz of series of 2 channels and 5 to 12 frames, some values missing, that go up or down from class to class.

    Their groups are "a" to "d".
    """
    random = np.random.default_rng(0)
    lengths = random.integers(5, 13, n)
    slope = np.arange(n) % len(classes)
    values = [
        (slope[i] - (len(classes) - 1) / 2) * np.arange(T)[:, None] + random.normal(size=(T, 2))
        for i, T in enumerate(lengths)
    ]
    X = np.concatenate(values).astype(np.float32)
    X[::17, 1] = np.nan
    groups = np.array(list("abcd"))[np.arange(n) // 2 % 4]
    np.savez(path, X=X, lengths=lengths, y=np.array(classes)[slope], groups=groups)
    return path


def numbered(path: Path, n: int = 80) -> Path:
    """An .npz of series and two numbers of each: the mean of their values, and nothing that could be known."""
    random = np.random.default_rng(0)
    X = (random.normal(size=(n, 1, 1)) + 0.1 * random.normal(size=(n, 6, 1))).astype(np.float32)
    np.savez(path, X=X, y=np.stack([X.mean((1, 2)), np.arange(n) % 3], 1))
    return path


def waves(path: Path, frames: int = 200) -> Path:
    """A CSV of a wave of 10 frames and another, with a row for each frame."""
    t = np.arange(frames)
    columns = np.stack([10 + np.sin(2 * np.pi * t / 10), np.cos(2 * np.pi * t / 10) + 0.01 * (t % 7)], 1)
    path.write_text("one,two\n" + "\n".join(f"{a:.4f},{b:.4f}" for a, b in columns) + "\n")
    return path
