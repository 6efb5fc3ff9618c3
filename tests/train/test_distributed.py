"""Two processes with half the batch each are one process with the whole batch."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longstream.train.loading import load_run
from longstream.train.run import train
from longstream.train.settings import build_settings
from tests.train.runs import flags, losses, metrics, small, write_text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHANGES = {"steps": 8, "log_every": 2, "eval_every": 4, "save_every": 4, "use_short_conv": True}


def torchrun(*arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    """The command line under torchrun, one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [*launch, "-m", "longstream", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, out + errors
    return out


def test_two_processes_are_twice_the_batch_and_resume(tmp_path: Path):
    text = write_text(tmp_path / "text.txt", 3000)
    train(small(text, **CHANGES, batch_size=8), tmp_path / "one")
    out = finish(torchrun(*flags(small(text, **CHANGES, batch_size=4)), "--out", str(tmp_path / "two")))
    assert out.count("bits per byte") == 1  # one process speaks

    # float32, summed in another order and then amplified by 8 steps of Adam
    def close(rows):
        return [(step, pytest.approx(loss, rel=2e-6)) for step, loss in rows]

    assert losses(tmp_path / "two") == close(losses(tmp_path / "one"))
    assert losses(tmp_path / "two", "validation") == close(losses(tmp_path / "one", "validation"))
    tokens = [[row["tokens"] for row in metrics(tmp_path / run)] for run in ("one", "two")]
    assert tokens[0] == tokens[1]
    before = [p.detach() for p in load_run(tmp_path / "two").model.parameters()]

    # and resumed from step 4 they repeat themselves
    expected = losses(tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "checkpoint-8")
    finish(torchrun("--resume", str(tmp_path / "two")))
    assert losses(tmp_path / "two") == expected
    after = [p.detach() for p in load_run(tmp_path / "two").model.parameters()]
    assert all(a.equal(b) for a, b in zip(after, before, strict=True))


def test_one_layer_in_two_processes(tmp_path: Path):
    """Its lower bound has a gradient of zero, not none, which the processes would wait for."""
    text, changes = write_text(tmp_path / "text.txt", 3000), {"num_hidden_layers": 1, "steps": 2, "eval_every": 0}
    train(small(text, **changes, batch_size=4), tmp_path / "one")
    finish(torchrun(*flags(small(text, **changes, batch_size=2)), "--out", str(tmp_path / "two")))
    expected = [(step, pytest.approx(loss, rel=2e-6)) for step, loss in losses(tmp_path / "one")]
    assert losses(tmp_path / "two") == expected


def test_token_tasks_share_gradients_and_examples(tmp_path: Path):
    """The head reads labelled places alone, by a hook inside what wraps the model."""
    generator = "mqar:vocabulary=32,seq_len=32,num_pairs=2"
    few = {"data.task": "tokens", "data.generator": generator, "data.validation_examples": 51, "train.steps": 3}
    sizes = {"model.hidden_size": 16, "model.num_hidden_layers": 2, "model.intermediate_size": 32}
    common = {**few, **sizes, "train.log_every": 1, "train.eval_every": 3, "train.save_every": 0}
    train(build_settings(common, {"train.batch_size": 4}), tmp_path / "one")
    words = [f"{key}={value}" for key, value in {**common, "train.batch_size": 2}.items()]
    finish(torchrun(*words, "--out", str(tmp_path / "two")))
    for kind in ("train", "validation"):
        expected = [(step, pytest.approx(loss, rel=2e-6)) for step, loss in losses(tmp_path / "one", kind)]
        assert losses(tmp_path / "two", kind) == expected


def test_ctrl_c_saves_once(tmp_path: Path):
    text = write_text(tmp_path / "text.txt", 3000)
    settings = flags(small(text, **{**CHANGES, "steps": 5000, "eval_every": 0, "save_every": 0}))
    process = torchrun(*settings, "--out", str(tmp_path / "run"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or not losses(tmp_path / "run"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)  # to torchrun, which passes it on
    process.communicate(timeout=120)
    assert process.returncode != 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert (checkpoint / "rng_state_1.pth").is_file()
    load_run(checkpoint)
