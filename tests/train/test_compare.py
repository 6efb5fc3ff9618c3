"""longstream compare: what the table says, which runs it refuses, and what is written."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from longstream.cli import main
from longstream.train.compare import check_comparable, read_run
from longstream.train.comparison import measure_of
from longstream.train.contexts import decode_costs, loss_by_position
from longstream.train.corpus import Document
from longstream.train.curves import short
from longstream.train.models import build_model
from longstream.train.run import train
from longstream.train.settings import build_settings
from longstream.train.tokenizer import ByteTokenizer
from tests.train.runs import small, write_text

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one text, one on another, one of sequences."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder / "a.txt")
    quick = {"steps": 4, "log_every": 3, "eval_every": 2, "save_every": 0, "sample_tokens": 0, "seq_len": 16}
    train(small(text, name="gru", **quick), folder / "gru")
    train(small(text, name="llama", **quick), folder / "llama")
    train(small(write_text(folder / "b.txt", 4000), name="gru", **quick), folder / "other")
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    x = rng.normal(size=(40, 6, 2)) + labels[:, None, None]
    np.savez(folder / "frames.npz", X=x.astype("float32"), y=labels)
    asked = {"data.task": "classify", "data.files": [str(folder / "frames.npz")], "train.save_every": 0}
    asked |= {"model.hidden_size": 8, "model.num_hidden_layers": 1, "train.steps": 4, "train.eval_every": 2}
    for name in ("gru", "hgrn"):
        train(build_settings(asked, {"model.name": name}), folder / f"frames-{name}")
    return folder


def compare(runs: Path, out: Path, *names: str, options: tuple[str, ...] = ()) -> int:
    return main(["compare", *(str(runs / name) for name in names), "--out", str(out), *options])


def test_runs_of_text_side_by_side(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compare(runs, tmp_path / "out", "gru", "llama", options=("--lengths", "8,64", "--context", "20")) == 0
    shown = capsys.readouterr()
    for word in ("parameters", "bits per byte", "training tokens/s", "ms/token at 64", "state at 8, bytes", "gru"):
        assert word in shown.out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"loss_tokens.png", "loss_time.png", "loss_position.png", "decode.png"}
    assert written == {"compare.json", "compare.csv", "compare.md", *pictures}
    assert all((tmp_path / "out" / name).read_bytes().startswith(PNG) for name in pictures)
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    by_name = {run["name"]: run for run in found["runs"]}
    for name, run in by_name.items():
        rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if row["kind"] == "validation"][-1]
        assert run["held_out"]["bits_per_byte"] == last["bits_per_byte"]
        assert run["steps"] == 4
        assert run["tokens"] == 4 * 4 * 15  # the last row of training is of step 3
    llama, gru = by_name["llama"], by_name["gru"]
    assert [cost["length"] for cost in gru["decoding"]] == [8, 64]
    assert [cost["beyond_training"] for cost in llama["decoding"]] == [False, True]
    assert len({cost["state_bytes"] for cost in gru["decoding"]}) == 1
    assert llama["decoding"][1]["state_bytes"] == 8 * llama["decoding"][0]["state_bytes"]
    assert llama["loss_by_position"][-1]["before"] == 17  # its longest sequence, 16 tokens
    assert gru["loss_by_position"][-1]["before"] == 21
    assert any("more tokens than the model was trained on" in note for note in found["notes"])
    with (tmp_path / "out" / "compare.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert {row["model"] for row in table} == {"gru", "llama"}
    values = [float(row["bits per byte"]) for row in table]
    assert values == sorted(values)  # the best first
    page = (tmp_path / "out" / "compare.md").read_text()
    assert all(f"({name})" in page for name in pictures)


def test_runs_of_sequences_side_by_side(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compare(runs, tmp_path / "out", "frames-gru", "frames-hgrn") == 0
    assert "accuracy" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    report = json.loads((runs / "frames-gru" / "report.json").read_text())
    assert found["runs"][0]["held_out"]["accuracy"] == report["accuracy"]
    assert found["runs"][0]["held_out"]["macro_f1"] == report["macro_f1"]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".png"} == {
        "loss_tokens.png",
        "loss_time.png",
    }


def test_only_what_can_be_compared_is(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    quick = ("--lengths", "0", "--context", "0")
    assert compare(runs, tmp_path / "out", "gru", "frames-gru") == 2
    assert "must be of one task, got gru: next-token, frames-gru: classify" in capsys.readouterr().err
    assert compare(runs, tmp_path / "out", "gru", "other", options=quick) == 2
    said = capsys.readouterr().err
    assert "the runs held out different data" in said
    assert "a.txt" in said
    assert not (tmp_path / "out").exists()
    assert compare(runs, tmp_path / "out", "gru", "other", options=(*quick, "--force")) == 0
    assert "figures are not of the same thing" in capsys.readouterr().out
    assert compare(runs, tmp_path / "out", "gru", "llama", options=quick) == 2
    assert "already holds a comparison" in capsys.readouterr().err
    assert compare(runs, tmp_path / "out", "gru", "llama", options=(*quick, "--overwrite")) == 0
    capsys.readouterr()
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"loss_tokens.png", "loss_time.png"}


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (("gru", "gru"), (), "RUN must be different runs, got"),
        (("nothing",), (), "no such run directory"),
        (("gru",), ("--lengths", "8,x"), "--lengths must be integers from 1 to 1,048,576 with commas between them"),
        (("gru",), ("--lengths", "-8"), "--lengths"),
        (("gru",), ("--leng", "8"), "unknown option '--leng'; did you mean '--lengths'?"),
        ((), (), "the following arguments are required: RUN"),
    ],
)
def test_bad_input(runs: Path, tmp_path: Path, names, options, says: str, capsys: pytest.CaptureFixture[str]):
    try:
        code = compare(runs, tmp_path / "out", *names, options=options)
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.txt").write_text("mine")
    assert compare(runs, tmp_path, "gru", options=("--overwrite",)) == 2
    assert "holds no comparison: choose another --out" in capsys.readouterr().err
    assert compare(runs, tmp_path / "mine.txt", "gru") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_whose_data_are_gone_is_compared_without_them(runs: Path, tmp_path: Path, capsys):
    shutil.copytree(runs / "gru", tmp_path / "gru")
    toml = (tmp_path / "gru" / "settings.toml").read_text()
    (tmp_path / "gru" / "settings.toml").write_text(toml.replace("a.txt", "gone.txt"))
    assert compare(tmp_path, tmp_path / "out", "gru", options=("--lengths", "0")) == 0
    assert "No loss by position of gru: no file" in capsys.readouterr().out
    (tmp_path / "gru" / "metrics.jsonl").write_text("")
    assert compare(tmp_path, tmp_path / "out2", "gru") == 2
    assert "nothing was held out and evaluated yet" in capsys.readouterr().err


def test_with_patience_the_best_figure_counts(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "gru", tmp_path / "gru")
    with (tmp_path / "gru" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"kind": "validation", "step": 5, "bits_per_byte": 99.0, "seconds": 1.0}) + "\n")
    assert read_run(tmp_path / "gru", "gru").figures["bits_per_byte"] == 99.0
    toml = tmp_path / "gru" / "settings.toml"
    toml.write_text(toml.read_text().replace("patience = 0", "patience = 2"))
    assert read_run(tmp_path / "gru", "gru").figures["bits_per_byte"] < 99


def test_which_way_is_better():
    assert [measure_of(task)[1] for task in ("next-token", "classify", "regress", "forecast")] == [1, -1, 1, 1]


def test_different_training_data_are_said(runs: Path):
    first, second = (read_run(runs / name, name) for name in ("gru", "llama"))
    assert check_comparable([first, second], force=False) == []
    second.data = second.data | {"sha256": "another"}
    assert check_comparable([first, second], force=False) == [
        "The runs were trained on different data; what they held out is the same."
    ]


@torch.no_grad()
def test_loss_by_position_is_the_mean_of_the_windows():
    torch.manual_seed(0)
    asked = build_settings({"model.name": "lstm", "model.hidden_size": 16, "model.num_hidden_layers": 1}).model
    model = build_model(asked, vocab_size=257, boundary_id=256, seq_len=8).eval()
    data = bytes(range(50, 80))
    found = loss_by_position(model, ByteTokenizer(), [Document("a", data), Document("b", b"xy")], 10)
    ids = torch.tensor([256, *data])
    losses = []
    for start in (0, 10, 20):  # windows of 10 tokens and one to predict; the second document is too short
        window = ids[start : start + 11]
        logits = model(input_ids=window[None, :-1]).logits[0].double()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    mean = torch.stack(losses).mean(0) / math.log(2)
    assert [(row.after, row.before) for row in found] == [(1, 2), (2, 3), (3, 5), (5, 9), (9, 11)]
    for row in found:
        assert row.bits_per_byte == pytest.approx(float(mean[row.after - 1 : row.before - 1].mean()), rel=1e-5)


def test_costs_of_hyena_end_with_its_filters():
    asked = build_settings({"model.name": "hyena", "model.hidden_size": 16, "model.num_hidden_layers": 1}).model
    model = build_model(asked, vocab_size=257, boundary_id=256, seq_len=32).eval()
    found = decode_costs({"hyena": model}, [4, 32, 33])["hyena"]
    assert [cost.length for cost in found] == [4, 32]
    assert all(cost.ms > 0 and cost.state_bytes > 0 and not cost.beyond_training for cost in found)


def test_short_numbers():
    assert [short(x) for x in (0.5, 12, 1500, 2.5e6, 3e9)] == ["0.5", "12", "1.5k", "2.5M", "3G"]
    assert [short(x, 1024) for x in (512, 2048, 2**20)] == ["512", "2k", "1M"]
