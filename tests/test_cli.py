"""The command line, from train to info, and what it says when it is asked for something that cannot be done."""

import bz2
import json
import lzma
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longstream import ops
from longstream.cli import main
from longstream.train import rundir
from longstream.train.loading import load_run
from longstream.train.settings import DataSettings, ModelSettings, TrainSettings, read_toml
from tests.train.runs import flags, small, write_text

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the command; nobody changes it."""
    folder = tmp_path_factory.mktemp("cli")
    text = write_text(folder / "text.txt")
    assert main(["train", *flags(small(text)), "--out", str(folder / "run")]) == 0
    return folder / "run"


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a command ends with when it fails."""
    try:
        found = main(words)
    except SystemExit as error:  # argparse
        found = error.code
    errors = capsys.readouterr().err.splitlines()
    assert found == code
    assert errors[-1].startswith("longstream: error: ")
    assert not any("Traceback" in line for line in errors)
    return errors[-1].removeprefix("longstream: error: ")


def test_train_tells_where_everything_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = write_text(tmp_path / "text.txt")
    assert main(["train", *flags(small(text)), "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    for name in ("model.safetensors", "metrics.jsonl", "loss.png", "samples", "tensorboard", "checkpoints"):
        assert str(tmp_path / "run" / name) in shown.out
    assert "bits per byte on 600 held-out bytes" in shown.out
    assert "parameters" in shown.err


def test_evaluate_beside_xz_and_bz2(run: Path, capsys: pytest.CaptureFixture[str]):
    """On what was held out: the figure of training, and the compressors on the same bytes."""
    assert main(["evaluate", str(run)]) == 0
    shown = capsys.readouterr().out
    held_out = (run.parent / "text.txt").read_bytes()[-600:]
    stored = json.loads((run / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]
    assert stored["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
    assert stored["perplexity"] == pytest.approx(math.exp(last["loss"]), rel=1e-6)
    assert (stored["bytes"], stored["tokens"]) == (600, 601)
    assert stored["xz_bits_per_byte"] == 8 * len(lzma.compress(held_out, preset=9)) / 600
    assert stored["bz2_bits_per_byte"] == 8 * len(bz2.compress(held_out, 9)) / 600
    for name in ("bits_per_byte", "perplexity", "xz_bits_per_byte", "bz2_bits_per_byte"):
        assert f"{stored[name]:.4f}" in shown


def test_evaluate_other_data(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Bytes of any kind; the figure is that of one forward pass, and it is only shown."""
    data = bytes(range(256))
    (tmp_path / "data.bin").write_bytes(data)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "evaluation.json").write_text("of what was held out")
    checkpoint = copy / "checkpoints" / "checkpoint-6"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["evaluate", str(checkpoint), "--data", str(tmp_path / "data.bin")]) == 0
    from_checkpoint = capsys.readouterr().out.splitlines()
    assert main(["evaluate", str(copy), "--data", str(tmp_path / "data.bin")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "data.bin: 256 bytes, 257 tokens" in shown[0]
    assert shown[1:] == from_checkpoint[1:]
    ids = torch.tensor([[256, *data, 256]])
    log_p = load_run(run).model(ids[:, :-1]).logits.log_softmax(-1)
    bits = -log_p.gather(-1, ids[:, 1:, None]).sum().item() / math.log(2) / 256
    assert float(shown[2].split()[2]) == pytest.approx(bits, abs=1e-4)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_evaluate_refuses_data_that_have_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Held out is the end of the data: with more behind it, what was trained on would be taken for it."""
    text, copy = write_text(tmp_path / "text.txt"), str(tmp_path / "run")
    assert main(["train", *flags(small(text, steps=1, eval_every=0)), "--out", copy]) == 0
    data = text.read_bytes()
    for changed in (data[:-500], data.replace(b"sea", b"SEA", 1), data[::-1]):
        text.write_bytes(changed)
        message = fails(capsys, "evaluate", copy)
        assert "the data have changed since this run began" in message
        assert "give --data" in message
    assert main(["evaluate", copy, "--data", str(text)]) == 0
    assert not (tmp_path / "run" / "evaluation.json").exists()
    text.write_bytes(data)
    (tmp_path / "run" / "data.json").write_text("{}")
    assert "data.json is damaged" in fails(capsys, "evaluate", copy)
    (tmp_path / "run" / "data.json").unlink()
    assert "data.json is missing" in fails(capsys, "evaluate", copy)


def test_generate_streams_the_prompt_and_more(run: Path, capsys: pytest.CaptureFixture[str]):
    command = ["generate", str(run), "--prompt", "über the", "--max-new-tokens", "30", "--no-end"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*command, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("über the") and len(text) > len("über the") + 8 for text in texts)
    assert main([*command, "--greedy"]) == 0
    greedy = capsys.readouterr().out
    assert main([*command, "--temperature", "0", "--seed", "4"]) == 0
    assert capsys.readouterr().out == greedy


def test_info(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in ("longstream", torch.__version__, "transformers", "threads"):
        assert word in shown
    assert main(["info", str(run)]) == 0
    shown = capsys.readouterr().out
    model = load_run(run).model
    assert f"{model.num_parameters():,}" in shown
    # 2 layers of 4 heads with 4 x 4 float32 each, and the position
    assert f"{2 * 4 * 4 * 4 * 4 + 8:,} bytes per sequence" in shown
    assert f"2 x HGRN2State {4 * 4 * 4 * 4} bytes, and 8 of the position" in shown
    assert "hidden_size=16" in shown
    assert "train.steps=6" in shown
    assert "bits_per_byte=" in shown


def test_info_of_every_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = write_text(tmp_path / "text.txt")
    for name, said in {
        "hgrn": "mixer=HGRNConfig(",
        "hyena": "mixer=HyenaConfig(max_seq_len=32)",
        "hybrid": "layers=(3 x HGRN2Config(expand_ratio=4",
    }.items():
        settings = small(text, name=name, steps=1, num_hidden_layers=4)
        assert main(["train", *flags(settings), "--out", str(tmp_path / name)]) == 0
        assert main(["info", str(tmp_path / name)]) == 0
        shown = capsys.readouterr().out
        assert "ModelConfig(hidden_size=16, num_layers=4, " in shown
        assert said in shown


def test_generate_ends_where_hyena_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Unless told how much, it writes what there is room for; what does not fit is refused before a word is written."""
    settings = small(write_text(tmp_path / "text.txt"), name="hyena", steps=1)
    assert main(["train", *flags(settings), "--out", str(tmp_path / "run")]) == 0
    command = ["generate", str(tmp_path / "run"), "--prompt", "the sea", "--seed", "0", "--no-end"]
    capsys.readouterr()
    assert main(command) == 0
    assert main([*command, "--max-new-tokens", "25"]) == 0
    shown = capsys.readouterr().out
    assert shown == 2 * shown[: len(shown) // 2]
    for words in (["--max-new-tokens", "26"], ["--prompt", 32 * "a"]):
        message = fails(capsys, *command, *words)
        assert "--prompt and --max-new-tokens must fit into the 32 tokens that this model takes, got" in message


def test_info_tells_which_backend_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The first that can run here, in order of preference."""

    def rows() -> dict[str, dict[str, str]]:
        assert main(["info"]) == 0
        found: dict[str, dict[str, str]] = {name: {} for name in ops.op_names()}
        for line in capsys.readouterr().out.splitlines():
            if line.partition(" ")[0] in found:
                op, backend, what = line.split(maxsplit=2)
                found[op][backend] = what
        return found

    for op, backends in rows().items():
        able = [backend for backend, why_not in ops.available_backends(op).items() if why_not is None]
        assert [backend for backend, what in backends.items() if what == "used"] == able[:1]
    answers = {"fast": "needs CUDA tensors, got cpu", "plain": None, "slow": None}
    monkeypatch.setattr(ops, "available_backends", lambda op: answers)
    expected = {"fast": "needs CUDA tensors, got cpu", "plain": "used", "slow": "available"}
    assert rows() == dict.fromkeys(ops.op_names(), expected)


def test_resume_of_a_finished_run_says_so(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--resume", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_run_is_not_overwritten_unless_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    settings = flags(small(run.parent / "text.txt", steps=1))
    message = fails(capsys, "train", *settings, "--out", str(copy))
    assert "already holds a run" in message
    assert f"--resume {copy}" in message
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    # not for data that cannot be read, either
    fails(capsys, "train", "--data", str(tmp_path / "none"), "--out", str(copy), "--overwrite")
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["train", *settings, "--out", str(copy), "--overwrite"]) == 0
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert (copy / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("breaks", ["name", "prompt", "arguments", "trainer"])
def test_what_cannot_begin_does_not_cost_the_run_that_is_there(
    run: Path, tmp_path: Path, breaks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    copy, new = shutil.copytree(run, tmp_path / "run"), tmp_path / "new"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    words, message = [], "this machine cannot"
    bad = os.fsdecode(b"bad\xff.txt")
    if breaks == "name":
        words, message = ["--data", bad], "data.files must be UTF-8 text"
    elif breaks == "prompt":
        words, message = [f"train.sample_prompt={bad}"], "train.sample_prompt must be UTF-8 text"
    else:
        broken = (
            "transformers.Trainer.add_callback" if breaks == "trainer" else "longstream.train.run.TrainingArguments"
        )

        def refuse(*args: object, **kwargs: object):
            raise ValueError(message)

        monkeypatch.setattr(broken, refuse)
    settings = [*flags(small(run.parent / "text.txt", steps=1)), *words]
    assert message in fails(capsys, "train", *settings, "--out", str(copy), "--overwrite")
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert message in fails(capsys, "train", *settings, "--out", str(new))
    monkeypatch.undo()
    good = flags(small(run.parent / "text.txt", steps=1))
    assert main(["train", *good, "--out", str(new)]) == 0  # nothing was left behind that stands in the way
    assert main(["train", *good, "--out", str(copy), "--overwrite"]) == 0


def test_an_overwrite_cut_short_leaves_a_run_without_checkpoints(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    copy = shutil.copytree(run, tmp_path / "run")
    settings = flags(small(run.parent / "text.txt", steps=1, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(rundir, "write_text", lambda path, text: main([]))  # SystemExit, as good as a kill
        with pytest.raises(SystemExit):
            main(["train", *settings, "--out", str(copy), "--overwrite"])
    assert "no checkpoint has been saved yet; start again with --overwrite" in fails(
        capsys, "train", "--resume", str(copy)
    )
    assert main(["train", *settings, "--out", str(copy), "--overwrite"]) == 0


def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = write_text(tmp_path / "text.txt")
    message = fails(capsys, "train", *flags(small(text)), "--out", str(tmp_path), "--overwrite")
    assert "is not a run of longstream" in message
    assert "is a file" in fails(capsys, "train", *flags(small(text)), "--out", str(text), "--overwrite")
    assert text.is_file()


def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = ("--out", str(tmp_path / "run"))
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"x" * 100)
    assert "nothing to train on" in fails(capsys, "train", *out)
    assert "no file" in fails(capsys, "train", "--data", str(tmp_path / "none"), *out)
    assert "directory" in fails(capsys, "train", "--data", str(tmp_path), *out)
    assert "empty" in fails(capsys, "train", "--data", str(tmp_path / "empty"), *out)
    message = fails(capsys, "train", "--data", str(tmp_path / "short"), *out)
    assert "100 bytes of data are fewer than one sequence of seq_len=512" in message
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "short").chmod(0)
        assert "cannot read" in fails(capsys, "train", "--data", str(tmp_path / "short"), *out)
    assert not (tmp_path / "run").exists()


def test_any_bytes_are_data(tmp_path: Path):
    (tmp_path / "noise.bin").write_bytes(os.urandom(3000))
    assert main(["train", *flags(small(tmp_path / "noise.bin", steps=1)), "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--learnin-rate", "1"], "unknown option '--learnin-rate'; did you mean '--learning-rate'?"),
        (
            ["train", "train.learnin_rate=1"],
            "unknown setting 'train.learnin_rate'; did you mean 'train.learning_rate'?",
        ),
        (["train", "--data", "x", "nonsense.y=1"], "unknown setting 'nonsense.y'"),
        (["train", "stray"], "unknown option 'stray'"),
        (["train", "--steps", "many"], "train.steps must be an integer, got 'many'"),
        (["train", "--learning-rate", "-1"], "TrainSettings.learning_rate must be finite and > 0, got -1.0"),
        (["train", "--schedule", "linear"], "train.schedule must be one of cosine, wsd, got 'linear'"),
        (["train", "--threads", "-1"], "TrainSettings.threads must be between 0 and 1024, got -1"),
        (["train", "--threads", "100000"], "TrainSettings.threads must be between 0 and 1024, got 100000"),
        (["train", "--seed", "4294967296"], "TrainSettings.seed must be between 0 and 2**32 - 1, got 4294967296"),
        (
            ["train", "--hidden-size", "10", "--expand-ratio", "64"],
            "expand_ratio must be a divisor of hidden_size=10, got 64",
        ),
        (["train", "--preset", "huge"], "invalid choice: 'huge'"),
        (["train", "--config", "no.toml"], "no.toml"),
        (["train", "--resume", "no-run"], "no-run: no such run directory"),
        (["evaluate", "no-run"], "no-run: no such run directory"),
        (["generate", "no-run", "--tempratur", "1"], "unknown option '--tempratur'; did you mean '--temperature'?"),
        (["evaluate"], "the following arguments are required: RUN"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert message in fails(capsys, *words)


def test_bad_numbers_for_generate(run: Path, capsys: pytest.CaptureFixture[str]):
    assert "max_new_tokens must be >= 1, got 0" in fails(capsys, "generate", str(run), "--max-new-tokens", "0")
    assert "top_p must be in (0, 1], got 2.0" in fails(capsys, "generate", str(run), "--top-p", "2")
    assert "top_k must be >= 0, got -1" in fails(capsys, "generate", str(run), "--top-k", "-1")
    assert "seed must fit 64 bits" in fails(capsys, "generate", str(run), "--seed", str(2**64))
    for temperature in ("nan", "inf", "-1", "1e-40", "9e-4", "1e300"):
        message = fails(capsys, "generate", str(run), f"--temperature={temperature}")
        assert "temperature must be 0 (greedy) or between 0.001 and 1000, got" in message


@pytest.mark.parametrize("temperature", ["0.001", "1000"])
def test_the_ends_of_the_temperature_scale_work(run: Path, temperature: str):
    assert main(["generate", str(run), "--temperature", temperature, "--no-end", "--max-new-tokens", "5"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "generate"])
@pytest.mark.parametrize("threads", ["-1", "1025", "100000"])
def test_bad_numbers_of_threads(run: Path, command: str, threads: str, capsys: pytest.CaptureFixture[str]):
    before = torch.get_num_threads()
    message = fails(capsys, command, str(run), f"--threads={threads}")
    assert f"--threads must be between 1 and 1024, or 0 for torch's choice, got {threads}" in message
    assert torch.get_num_threads() == before


def damaged(run: Path, folder: Path, kind: str) -> Path:
    copy = shutil.copytree(run, folder / "run")
    config = json.loads((copy / "config.json").read_text())
    if kind == "cut":
        data = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif kind == "no safetensors":
        (copy / "model.safetensors").write_bytes(b"PK\x03\x04 something else")
    elif kind == "pickle only":
        (copy / "model.safetensors").unlink()
        torch.save({"weight": torch.ones(1)}, copy / "pytorch_model.bin")
    elif kind == "other sizes":
        config |= {"hidden_size": 32, "num_heads": 8}
    elif kind == "other layers":
        config["num_hidden_layers"] = 3
    elif kind == "fewer layers":
        config["num_hidden_layers"] = 1
    elif kind == "other model":
        config["model_type"] = "bert"
    elif kind == "no json":
        (copy / "config.json").write_text("{")
        return copy
    elif kind == "no tokenizer":
        (copy / "tokenizer.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "safetensors"),
        ("no safetensors", "safetensors"),
        ("pickle only", "model.safetensors is missing"),
        ("other sizes", "does not fit"),
        ("other layers", "model.layers.2"),
        ("fewer layers", "model.layers.1"),
        ("other model", "is of a 'bert' model; longstream reads hgrn, hgrn2, longstream"),
        ("no json", "config.json is not the configuration of a model"),
        ("no tokenizer", "tokenizer.json"),
    ],
)
def test_a_damaged_or_foreign_model(
    run: Path, tmp_path: Path, kind: str, message: str, capsys: pytest.CaptureFixture[str]
):
    copy = damaged(run, tmp_path, kind)
    said = fails(capsys, "generate", str(copy))
    assert message in said
    assert str(copy) in said


def test_settings_come_from_everywhere_and_the_last_one_wins(tmp_path: Path):
    """Preset, then TOML, then flags and overrides; what was settled is written down."""
    text = write_text(tmp_path / "text.txt")
    toml = ["[model]", "hidden_size = 16", "expand_ratio = 8", "[data]", "seq_len = 16"]
    toml += ["[train]", "steps = 3", "batch_size = 2", "seed = 7"]
    (tmp_path / "run.toml").write_text("\n".join(toml))
    words = ["--preset", "tiny", "--config", str(tmp_path / "run.toml"), "--steps", "2", "--bf16"]
    words += ["--sample-tokens", "0"]
    overrides = ["train.batch_size=1", "model.expand_ratio=4"]
    assert main(["train", *words, "--data", str(text), *overrides, "--out", str(tmp_path / "run")]) == 0
    stored = read_toml(tmp_path / "run" / "settings.toml")
    assert stored["model.hidden_size"] == 16  # TOML over preset
    assert stored["model.expand_ratio"] == 4  # override over TOML
    assert stored["model.num_hidden_layers"] == 2  # preset over default
    assert stored["train.steps"] == 2  # flag over TOML
    assert stored["train.batch_size"] == 1
    assert stored["train.bf16"] is True
    assert stored["train.seed"] == 7
    assert stored["data.files"] == [str(text)]
    assert not list((tmp_path / "run" / "samples").iterdir())


def test_help_fits_a_screen_and_names_every_setting(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 50
    assert max(map(len, shown.splitlines())) <= 100
    for section in (ModelSettings, DataSettings, TrainSettings):
        for name in section.__dataclass_fields__:
            flag = section.__dataclass_fields__[name].metadata["flag"].lstrip("-") or name.replace("_", "-")
            assert f"--{flag}" in shown or f"--[no-]{flag}" in shown


def test_version(capsys: pytest.CaptureFixture[str]):
    import longstream

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"longstream {longstream.__version__}\n"


def test_a_closed_pipe_is_no_error(run: Path):
    """``longstream generate ... | head -c 5``."""
    command = [sys.executable, "-m", "longstream", "generate", str(run), "--max-new-tokens", "2000", "--no-end"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_help_loads_neither_transformers_nor_the_tokenizers():
    code = """
import sys
from longstream.cli import main
try:
    main(["train", "--help"])
except SystemExit:
    assert not {"transformers", "tokenizers", "matplotlib", "rich", "accelerate"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
