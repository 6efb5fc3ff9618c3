"""A run that was stopped and resumed is the run that never stopped, whatever stopped it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from longstream.cli import main
from longstream.train.callbacks import RunClock
from longstream.train.run import train
from longstream.train.rundir import RunDirectory, why_not_resumable
from tests.train.runs import flags, losses, metrics, small, write_text

STEPS = 14
CHANGES = {"steps": STEPS, "log_every": 5, "eval_every": 6, "save_every": 4, "sample_tokens": 4, "use_short_conv": True}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data") / "text.txt", 2000)  # 56 windows: some are seen a second time


@pytest.fixture(scope="module")
def unstopped(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unstopped") / "run"
    train(small(text, **CHANGES), run)
    return run


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during the given step."""
    on_step_end = RunClock.on_step_end

    def interrupted(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunClock, "on_step_end", interrupted)


def assert_same_run(found: Path, expected: Path) -> None:
    """Losses to the last bit, and the weights."""
    assert losses(found) == losses(expected)
    assert losses(found, "validation") == losses(expected, "validation")
    for rows in zip(metrics(found), metrics(expected), strict=True):
        same = ("step", "learning_rate", "grad_norm", "tokens", "bits_per_byte")
        assert [rows[0][name] for name in same] == [rows[1][name] for name in same]
    weights = [safetensors.torch.load_file(run / "model.safetensors") for run in (found, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize("step", [1, 6, 7, 13])
def test_ctrl_c_and_resume(text: Path, unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int):
    """At step 6 an evaluation is put off; at step 7 a log window of 5 is open."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(step, patch)
        result = train(small(text, **CHANGES), run)
    assert result.interrupted_by == signal.SIGINT
    assert result.step == step
    assert (run / "checkpoints" / f"checkpoint-{step}").is_dir()
    result = train(small(text, **CHANGES), run, resume=True)
    assert not result.interrupted_by
    assert result.step == STEPS
    assert_same_run(run, unstopped)


def test_killed_between_checkpoints(text: Path, unstopped: Path, tmp_path: Path):
    """What a kill leaves: an older checkpoint, later lines of metrics, half a checkpoint beside."""
    run = tmp_path / "run"
    shutil.copytree(unstopped, run)
    shutil.rmtree(run / "checkpoints" / "checkpoint-14")
    (run / "checkpoints" / ".writing" / "checkpoint-14").mkdir(parents=True)
    (run / "checkpoints" / ".writing" / "checkpoint-14" / "model.safetensors").write_bytes(b"half")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    train(small(text, **CHANGES), run, resume=True)
    assert_same_run(run, unstopped)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-12", "checkpoint-14"]


@pytest.mark.parametrize("damage", ["cut weights", "cut optimizer", "flipped byte", "no scheduler"])
def test_a_damaged_checkpoint_is_passed_over(
    text: Path, unstopped: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    run = tmp_path / "run"
    shutil.copytree(unstopped, run)
    newest = run / "checkpoints" / "checkpoint-14"
    name = {"cut weights": "model.safetensors", "no scheduler": "scheduler.pt"}.get(damage, "optimizer.pt")
    data = bytearray((newest / name).read_bytes())
    if damage == "flipped byte":
        data[len(data) // 2] ^= 1
    (newest / name).write_bytes(data if damage == "flipped byte" else data[: len(data) // 2])
    if damage == "no scheduler":
        (newest / name).unlink()
    assert name in (why_not_resumable(newest) or "")
    train(small(text, **CHANGES), run, resume=True)
    assert "checkpoint-14 is passed over" in caplog.text
    assert_same_run(run, unstopped)


def test_nothing_is_unpickled(text: Path, unstopped: Path, tmp_path: Path):
    """A checkpoint that would run code is refused before it does."""
    run = tmp_path / "run"
    shutil.copytree(unstopped, run)
    proof = tmp_path / "proof"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        for checkpoint in (run / "checkpoints").iterdir():
            torch.save(Payload(), checkpoint / name)
    with pytest.raises(ValueError, match=r"checkpoint-14 cannot be loaded: .*[Ww]eights"):
        train(small(text, **{**CHANGES, "steps": 20}), run, resume=True)
    assert not proof.exists()
    pickled = [path.name for path in unstopped.rglob("*") if path.is_file() and zipfile.is_zipfile(path)]
    assert set(pickled) == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def test_more_steps_may_be_asked_for(text: Path, unstopped: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(unstopped, run)
    result = train(small(text, **{**CHANGES, "steps": 20, "log_every": 2, "eval_every": 0}), run, resume=True)
    assert result.step == 20
    assert [step for step, _ in losses(run)][-3:] == [16, 18, 20]
    assert RunDirectory(run).read_settings().train.steps == 20


def test_what_a_resumed_run_cannot_change(text: Path, unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, longer = tmp_path / "run", {**CHANGES, "steps": 20}
    shutil.copytree(unstopped, run)
    with pytest.raises(ValueError, match=r"cannot change train\.learning_rate from 0\.003 to 0\.1"):
        train(small(text, **longer, learning_rate=0.1), run, resume=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="was trained with WORLD_SIZE=1, not 2: resume it without torchrun"):
        train(small(text, **longer), run, resume=True)
    monkeypatch.undo()
    data = text.read_bytes()
    try:
        text.write_bytes(data.replace(b"sea", b"SEA"))
        with pytest.raises(ValueError, match="the data have changed"):
            train(small(text, **longer), run, resume=True)
    finally:
        text.write_bytes(data)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint has been saved yet"):
        train(small(text, **longer), run, resume=True)


def test_a_time_limited_run_continues_its_clock(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, changes = tmp_path / "run", {**CHANGES, "steps": 0, "minutes": 0.04, "save_every": 0, "eval_every": 0}
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        train(small(text, **changes), run)
    before = json.loads((run / "checkpoints" / "checkpoint-5" / "progress.json").read_text())["seconds"]
    result = train(small(text, **changes), run, resume=True)
    after = json.loads((run / "checkpoints" / f"checkpoint-{result.step}" / "progress.json").read_text())["seconds"]
    assert before < 2.4 <= after < 6.0
    assert main(["train", "--resume", str(run)]) == 0  # and it knows that it is finished


@pytest.mark.slow
def test_signals_from_outside(text: Path, tmp_path: Path):
    """The command itself: Ctrl-C saves and exits with 130; the resumed command ends as one that was never stopped."""
    settings = flags(small(text, **{**CHANGES, "steps": 2000, "log_every": 1, "eval_every": 0, "save_every": 0}))
    command = [sys.executable, "-m", "longstream", "train", *settings, "--out", str(tmp_path / "run")]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or not losses(tmp_path / "run"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert f"longstream train --resume {tmp_path / 'run'}" in errors
    stopped = losses(tmp_path / "run")[-1][0]
    assert 0 < stopped < 2000
    rest = [*command[:4], "--resume", str(tmp_path / "run"), "--steps", str(stopped + 3)]
    subprocess.run(rest, cwd=root, check=True, timeout=120)
    assert losses(tmp_path / "run")[-1][0] == stopped + 3
