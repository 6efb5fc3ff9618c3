"""`longstream export` on runs of text and of sequences, the document's commands and code, and its C++ program."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longstream.cli import main
from longstream.export import Runner, command, export, run
from longstream.export.adapters import FORMS, GRAPHS
from longstream.sequences import SequenceModel, Sequences, make_model
from longstream.train.loading import load_run
from tests.documents import ROOT, blocks
from tests.export.tiny import tiny
from tests.train.runs import flags, small, write_text

DOCUMENT = "docs/export.md"


def test_the_words_of_the_command():
    assert command.FORMS == FORMS
    assert (*GRAPHS, "both") == command.GRAPHS
    assert command.HYENA == run.HYENA


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that the command ends with when it fails."""
    try:
        found = main(["export", *words])
    except SystemExit as error:  # argparse
        found = error.code
    assert found == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_it_fails_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "no such run directory" in fails(capsys, str(tmp_path / "none"))
    assert "invalid choice: 'tflite'" in fails(capsys, "run", "--to", "tflite")
    assert "--chunk-length: must be dynamic or a number, got 'x'" in fails(capsys, "run", "--chunk-length", "x")
    assert "unknown option '--chunk'" in fails(capsys, "run", "--chunk", "3")


def frames(task: str) -> Sequences:
    """Series of two channels, one of which sometimes has no value."""
    generator = np.random.default_rng(0)
    values = [generator.standard_normal((length, 2)).astype(np.float32) * 3 + 1 for length in (12, 9, 12, 10)]
    values[0][3, 1] = np.nan
    more: dict[str, Any] = {"labels": np.array(["a", "b", "a", "b"])} if task == "classify" else {}
    if task == "regress":
        more = {"targets": generator.standard_normal((4, 1)).astype(np.float32), "target_names": ("y",)}
    return Sequences(values=values, channels=("x", "z"), **more)


def saved(folder: Path, task: str, name: str = "edifice-hgrn") -> SequenceModel:
    torch.manual_seed(0)
    options = {"hidden_size": 8, "num_layers": 1}
    horizon = 2 if task == "forecast" else 1
    model = make_model(name, frames(task), task=task, options=options, horizon=horizon).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("task", "name"), [("classify", "hgrn2"), ("regress", "edifice-hgrn"), ("forecast", "hyena")])
def test_sequence_runs(task: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Normalization, missing values, pooling and head are in the graph."""
    pytest.importorskip("onnxruntime")
    model = saved(tmp_path / "run", task, name)
    assert main(["export", str(tmp_path / "run"), "--graph", "both", "--steps", "60"]) == 0
    shown = capsys.readouterr().out
    assert f"wrote        {tmp_path / 'run' / 'export' / 'chunk.onnx'}" in shown
    assert "relative from the model" in shown
    runner = Runner(tmp_path / "run" / "export", batch_size=3)
    assert runner.about["channels"] == ["x", "z"]
    assert runner.about["task"] == task
    x = torch.randn(3, 9, 2)
    x[0, 2, 1] = float("nan")
    with torch.no_grad():
        out = model(x[:, :6])
        later, _ = model.step(x[:, 6], out.state)
    field = "logits" if task == "classify" else "prediction"
    np.testing.assert_allclose(runner.chunk(x[:, :6]), getattr(out, field), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runner.step(x[:, 6]), getattr(later, field), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="frame must be finite, got nan in row 0, number 0"):
        runner.step(x[:, 6] * float("nan"))


@pytest.mark.slow
def test_a_text_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Token by token as the model writes; the tokenizer is in the metadata."""
    text = write_text(tmp_path / "text.txt")
    folder = tmp_path / "run"
    assert main(["train", *flags(small(text)), "--out", str(folder)]) == 0
    assert main(["export", str(folder), "--to", "pt2", "--out", str(tmp_path / "model.pt2"), "--steps", "50"]) == 0
    runner = Runner(tmp_path / "model.pt2")
    assert runner.about["tokenizer"]["type"] == "ByteTokenizer"
    assert runner.about["tokenizer"]["boundary_id"] == 256
    model, tokenizer = load_run(folder)
    ids = torch.from_numpy(tokenizer.encode(b"the sea and a ship").astype(np.int64))
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    for token, logits in zip(ids.tolist(), expected, strict=True):
        np.testing.assert_allclose(runner.step(token), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"token must lie in \[0, 257\), got 300 to 300"):
        runner.step(300)
    capsys.readouterr()
    assert "model.pt2 exists" in fails(capsys, str(folder), "--to", "pt2", "--out", str(tmp_path / "model.pt2"))
    assert "must stay within 1e-30 of the model" in fails(
        capsys, str(folder), "--to", "pt2", "--tolerance", "1e-30", "--steps", "3"
    )
    assert not (folder / "export").exists()


# The document.


def test_the_commands_of_the_document(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for _, language, text in blocks(DOCUMENT):
        for line in text.splitlines() if language == "bash" else []:
            if line.startswith("longstream export"):
                assert set(re.findall(r"--[a-z-]+", line.partition("#")[0])) <= known, line


@pytest.mark.slow
def test_the_python_of_the_document(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    (code,) = (text for _, language, text in blocks(DOCUMENT) if language == "python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_cpp_of_the_document(tmp_path: Path):
    """Compiled against an installation of onnxruntime, it says what the runner in Python says."""
    home = os.environ.get("ONNXRUNTIME_HOME")
    if not home or not shutil.which("g++"):
        pytest.skip("needs g++, and ONNXRUNTIME_HOME to name an unpacked release of onnxruntime")
    (code,) = (text for _, language, text in blocks(DOCUMENT) if language == "cpp")
    (tmp_path / "step.cpp").write_text(code)
    library = ["-I", f"{home}/include", f"-L{home}/lib", "-lonnxruntime", f"-Wl,-rpath,{home}/lib"]
    subprocess.run(["g++", "-std=c++17", "-Wall", "step.cpp", *library, "-o", "step"], cwd=tmp_path, check=True)
    export(tiny("hgrn2"), tmp_path / "step.onnx", steps=10)
    done = subprocess.run(["./step", "step.onnx", "120", "0"], cwd=tmp_path, check=True, capture_output=True, text=True)
    runner = Runner(tmp_path / "step.onnx")
    outputs = [runner.step(np.sin(np.float32(0.1) * t + np.arange(5)).astype(np.float32)) for t in range(120)]
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], outputs[-1], rtol=1e-3, atol=1e-5)
