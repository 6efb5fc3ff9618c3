"""A run from data to directory: what it learns, what it leaves behind, how it stops."""

import functools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import longstream.hf
from longstream.train.batches import ShuffledWindows
from longstream.train.corpus import Document
from longstream.train.evaluate import evaluate_documents
from longstream.train.loading import load_run
from longstream.train.models import build_model
from longstream.train.run import train
from longstream.train.rundir import RunDirectory, written_beside
from longstream.train.sample import TextStreamer, sample_text
from longstream.train.text_task import read_data
from longstream.train.tokenizer import ByteTokenizer, JsonTokenizer, train_bpe
from longstream.train.trainer import Diverged
from tests.train.runs import losses, metrics, small, write_text


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody changes."""
    folder = tmp_path_factory.mktemp("finished")
    text = write_text(folder / "text.txt")
    train(small(text, sample_prompt="the "), folder / "run")
    return folder / "run"


SIZES = {"vocab_size": 257, "boundary_id": 256, "seq_len": 32}


def model_of(text: Path, **changes: object):
    torch.manual_seed(1)
    model = build_model(small(text, **changes).model, **SIZES)
    for parameter in model.parameters():  # at initialization all logits are nearly equal, which would hide errors
        parameter.data.mul_(3)
    return model.eval()


def test_overfits_eight_sequences(tmp_path: Path):
    file = tmp_path / "noise.bin"
    file.write_bytes(
        np.random.default_rng(0).integers(0, 256, 255, dtype=np.uint8).tobytes()
    )  # 8 windows with the boundary
    changes = {"validation_fraction": 0, "batch_size": 8, "hidden_size": 32, "expand_ratio": 8, "weight_decay": 0}
    train(small(file, **changes, steps=80, learning_rate=2e-2, save_every=0), tmp_path / "run")
    first, last = losses(tmp_path / "run")[0][1], losses(tmp_path / "run")[-1][1]
    assert first == pytest.approx(math.log(257), abs=0.05)  # knows nothing
    assert last < 0.05  # knows it by heart: random bytes cannot be learned otherwise


def test_the_run_directory_is_complete(finished: Path):
    for name in ("settings.toml", "data.json", "metrics.jsonl", "loss.png", "config.json", "generation_config.json"):
        assert (finished / name).is_file(), name
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-6"]
    assert sorted(path.name for path in (finished / "samples").iterdir()) == ["step-000003.txt", "step-000006.txt"]
    assert (finished / "samples" / "step-000006.txt").read_bytes().startswith(b"the ")
    assert not [path for path in finished.rglob("*") if "writing" in path.name or path.suffix == ".bin"]
    newest = safetensors.torch.load_file(finished / "checkpoints" / "checkpoint-6" / "model.safetensors")
    published = safetensors.torch.load_file(finished / "model.safetensors")
    assert newest.keys() == published.keys()
    assert all(torch.equal(newest[name], published[name]) for name in newest)


def test_transformers_loads_a_run(finished: Path):
    model = AutoModelForCausalLM.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    assert isinstance(model, longstream.hf.HGRN2ForCausalLM)
    assert model.config.use_cache
    ids = tokenizer("the sea", return_tensors="pt").input_ids
    assert ids.tolist() == [list(b"the sea")]
    assert torch.equal(model(ids).logits, load_run(finished).model(ids).logits)


def test_metrics_are_json_lines_and_tensorboard_events(finished: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = metrics(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    data = json.loads((finished / "data.json").read_text())
    tokens_per_byte = (data["training_bytes"] + 1) / data["training_bytes"]  # one document, so one boundary
    for row in rows:
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) * tokens_per_byte)
        assert row["tokens"] == row["step"] * 4 * 31
        assert row["tokens_per_second"] > 0
        assert row["grad_norm"] > 0
    assert [row["step"] for row in metrics(finished, "validation")] == [3, 6]
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert logged == [(step, pytest.approx(loss)) for step, loss in losses(finished)]
    assert {"validation/bits_per_byte", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_the_last_validation_figure_is_that_of_the_saved_model(finished: Path):
    held_out = read_data(RunDirectory(finished).read_settings().data)[1]
    found = evaluate_documents(*load_run(finished), held_out)
    assert metrics(finished, "validation")[-1]["bits_per_byte"] == pytest.approx(found.bits_per_byte, rel=1e-6)


@pytest.mark.parametrize("tokens_per_pass", [1, 50, 8192])
def test_evaluation_equals_one_forward_pass_over_each_whole_document(text: Path, tokens_per_pass: int):
    model = model_of(text).double()
    lengths = (0, 1, 2, 63, 64, 65, 130, 400)
    data = text.read_bytes()
    documents = [Document(str(n), data[n : n + n]) for n in lengths]
    nats = 0.0
    for document in documents:
        ids = torch.tensor([[256, *document.data, 256]])
        log_p = model(ids[:, :-1]).logits.log_softmax(-1)
        nats -= log_p.gather(-1, ids[:, 1:, None]).sum().item()
    found = evaluate_documents(model, ByteTokenizer(), documents, tokens_per_pass=tokens_per_pass)
    assert found.bytes == sum(lengths)
    assert found.tokens == sum(lengths) + len(lengths)
    # evaluate_documents takes the loss in float32, the oracle above in float64
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / sum(lengths), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats / found.tokens), rel=1e-5)


def test_patience_keeps_the_best_model(text: Path, tmp_path: Path):
    """A rate that ruins what was learned: the first evaluation stays the best."""
    changes = {"steps": 40, "eval_every": 2, "save_every": 0, "patience": 2, "keep": 1, "sample_tokens": 0}
    result = train(small(text, **changes, learning_rate=0.5, warmup_ratio=1.0), tmp_path / "run")
    rows = metrics(tmp_path / "run", "validation")
    best = min(rows, key=lambda row: row["loss"])
    assert result.kept_step == best["step"] == result.step - 4
    assert result.measured is not None
    assert result.measured.row["loss"] == pytest.approx(best["loss"], rel=1e-6)
    held_out = read_data(small(text, **changes).data)[1]
    found = evaluate_documents(*load_run(tmp_path / "run"), held_out)
    assert found.nats_per_token == pytest.approx(best["loss"], rel=1e-6)


def test_documents_learn_where_they_end(tmp_path: Path):
    """The end of a document is a target although the packed batch has a boundary there."""
    files = []
    for i in range(16):
        (tmp_path / f"{i}.txt").write_bytes(b"letters")  # and a boundary: four documents in a window of 32
        files.append(str(tmp_path / f"{i}.txt"))
    settings = small(Path(files[0]), files=files, validation_fraction=0, steps=60, save_every=0, learning_rate=2e-2)
    train(settings, tmp_path / "run")
    model, tokenizer = load_run(tmp_path / "run")
    assert losses(tmp_path / "run")[-1][1] < 0.2
    assert sample_text(model, tokenizer, b"", max_new_tokens=40, temperature=0) == b"letters"
    assert len(sample_text(model, tokenizer, b"", max_new_tokens=40, temperature=0, may_end=False)) == 40


def test_a_tokenizer_learned_from_the_training_text(text: Path, tmp_path: Path):
    settings = small(text, tokenizer="bpe:300", batch_size=2, steps=4, save_every=2)
    train(settings, tmp_path / "run")
    learned = tmp_path / "by_hand.json"
    train_documents, _ = read_data(settings.data)
    train_bpe(train_documents, 300, learned)
    model, tokenizer = load_run(tmp_path / "run")
    assert model.config.vocab_size == tokenizer.vocab_size == JsonTokenizer(learned).vocab_size
    assert (
        tokenizer.encode("the sea, über".encode()).tolist()
        == JsonTokenizer(learned).encode("the sea, über".encode()).tolist()
    )
    train(replace(settings, train=replace(settings.train, steps=6)), tmp_path / "run", resume=True)
    assert [step for step, _ in losses(tmp_path / "run")][-1] == 6


def test_a_tokenizer_of_the_tokenizers_library(text: Path, tmp_path: Path):
    from longstream.train.data import read_documents

    train_bpe(read_documents([str(text)]), 280, tmp_path / "bpe.json")
    train(small(text, tokenizer=str(tmp_path / "bpe.json"), batch_size=2), tmp_path / "run")
    model, tokenizer = load_run(tmp_path / "run")
    assert model.config.vocab_size == tokenizer.vocab_size == 280
    row = metrics(tmp_path / "run")[-1]
    assert row["bits_per_byte"] < row["loss"] / math.log(2)  # a token is more than a byte


@pytest.mark.parametrize("changes", [{"bf16": True}, {"gradient_checkpointing": True}, {"tie_word_embeddings": True}])
def test_options_train(text: Path, tmp_path: Path, changes: dict):
    train(small(text, **changes), tmp_path / "run")
    train(small(text), tmp_path / "plain")
    found, plain = losses(tmp_path / "run"), losses(tmp_path / "plain")
    # bfloat16 rounds to 3 digits; checkpointing changes nothing; a tied matrix is another model but starts alike
    assert found == [(step, pytest.approx(loss, rel=0.02)) for step, loss in plain]
    assert load_run(tmp_path / "run").model.dtype == torch.float32


def test_one_layer_trains_and_resumes(text: Path, tmp_path: Path):
    """Its lower bound is 0 whatever the parameter, so that has no gradient to speak of."""
    train(small(text, num_hidden_layers=1, steps=6), tmp_path / "whole")
    train(small(text, num_hidden_layers=1, steps=3, schedule="wsd", decay_ratio=0), tmp_path / "run")
    train(small(text, num_hidden_layers=1, steps=6, schedule="wsd", decay_ratio=0), tmp_path / "run", resume=True)
    assert [step for step, _ in losses(tmp_path / "run")] == [step for step, _ in losses(tmp_path / "whole")]
    bounds = load_run(tmp_path / "run").model.model.backbone.lower_bounds
    assert bounds.shape == (1, 16)
    assert not bounds.any()


def test_a_parameter_without_a_gradient_does_not_stop_a_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def with_spare(*args, **kwargs):
        model = build_model(*args, **kwargs)
        model.spare = torch.nn.Parameter(torch.ones(3))
        return model

    monkeypatch.setattr("longstream.train.text_task.build_model", with_spare)
    assert train(small(text, steps=2, eval_every=0, save_every=1), tmp_path / "run").step == 2
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2").is_dir()


def test_gradient_accumulation_is_a_larger_batch(text: Path, tmp_path: Path):
    train(small(text, batch_size=2, gradient_accumulation=4), tmp_path / "parts")
    train(small(text, batch_size=8), tmp_path / "whole")
    assert losses(tmp_path / "parts") == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in losses(tmp_path / "whole")
    ]


def test_norms_biases_and_bounds_do_not_decay(text: Path, tmp_path: Path):
    """In one step what decays shrinks by the learning rate times the decay, which is more than Adam moves it."""
    settings = small(text, steps=1, learning_rate=1e-3, weight_decay=100, warmup_ratio=0, use_short_conv=True)
    train(settings, tmp_path / "run")
    torch.manual_seed(0)
    before = dict(build_model(settings.model, **SIZES).named_parameters())
    for name, after in load_run(tmp_path / "run").model.named_parameters():
        spread = after.detach().norm() / before[name].detach().norm().clamp(min=1e-9)
        kept = name.endswith("lower_bounds") or after.ndim == 1
        # 1 - 1e-3 * 100 = 0.9; Adam's own step moves an entry by 1e-3, at weights of 0.02 and norms of 1
        assert spread > 0.95 if kept else spread < 0.95, f"{name}: {spread}"


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("wsd", 1.0)])
def test_schedules_warm_up_and_end_low(text: Path, tmp_path: Path, schedule: str, middle: float):
    changes = {"steps": 20, "warmup_ratio": 0.1, "min_lr_ratio": 0.1, "learning_rate": 1e-3, "eval_every": 0}
    train(small(text, schedule=schedule, save_every=0, **changes), tmp_path / "run")
    rates = [row["learning_rate"] / 1e-3 for row in metrics(tmp_path / "run")]
    assert rates[0] < rates[1] < rates[2] == 1.0
    assert rates[11] == pytest.approx(middle, abs=0.06)
    assert rates[-1] < 0.35
    assert min(rates[2:]) >= 0.1


def test_a_time_limit_ends_the_run_with_its_schedule_complete(text: Path, tmp_path: Path):
    result = train(small(text, steps=0, minutes=0.05, eval_every=20, save_every=0), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert result.step == rows[-1]["step"] > 3
    assert 3.0 <= rows[-1]["seconds"] < 6.0
    assert rows[-1]["learning_rate"] == pytest.approx(
        0.1 * 3e-3, rel=0.5
    )  # set a step earlier, when time was not quite up
    assert metrics(tmp_path / "run", "validation")[-1]["step"] == result.step
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{result.step}").is_dir()


def test_no_more_is_held_out_than_asked_for(text: Path):
    for changes, expected in [({}, 600), ({"validation_bytes": 50}, 50), ({"validation_bytes": 0}, 600)]:
        parts = read_data(small(text, **changes).data)
        assert [sum(len(document.data) for document in part) for part in parts] == [6000 - expected, expected]
    assert read_data(small(text, validation_fraction=0).data)[1] == []


def test_every_pass_shows_every_window_once_in_a_new_order():
    windows = torch.arange(7)
    items = ShuffledWindows(windows, 21, seed=3)  # type: ignore[arg-type]
    passes = [[int(items[i]) for i in range(7 * n, 7 * n + 7)] for n in range(3)]
    assert [sorted(order) for order in passes] == [list(range(7))] * 3
    assert len({tuple(order) for order in passes}) == 3
    assert [int(items[i]) for i in (20, 3, 9)] == [passes[2][6], passes[0][3], passes[1][2]]
    assert [int(ShuffledWindows(windows, 21, seed=4)[i]) for i in range(7)] != passes[0]  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = longstream.hf.HGRN2ForCausalLM.forward
    calls = []

    @functools.wraps(forward)
    def spoiled(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if kwargs.get("labels") is not None:
            calls.append(1)
            # steps 1, 2, 3, the layers' figures at its evaluation, the trial before checkpoint 3 is written, steps 4, 5
            if len(calls) == 7:
                output["loss"] = output["loss"] * float("nan")
        return output

    monkeypatch.setattr(longstream.hf.HGRN2ForCausalLM, "forward", spoiled)
    with pytest.raises(Diverged, match=r"step 5: the loss is nan; .*checkpoint-3 is the last good checkpoint"):
        train(small(text, log_every=10), tmp_path / "run")
    checkpoint = RunDirectory(tmp_path / "run").newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    assert all(torch.isfinite(p).all() for p in load_run(checkpoint).model.parameters())


def test_an_absurd_learning_rate_stops_before_anything_is_saved(text: Path, tmp_path: Path):
    with pytest.raises(Diverged, match=r"step 1: what it made of the weights .*; no checkpoint had been saved"):
        train(small(text, learning_rate=1e30, warmup_ratio=0, save_every=1, eval_every=0), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("breaks", ["safetensors", "optimizer", "rename"])
def test_a_failure_while_saving_leaves_the_previous_checkpoint_whole(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
):
    saves = []

    def full_disk(original):
        def save(*args, **kwargs):
            saves.append(1)
            if len(saves) < 2:
                return original(*args, **kwargs)
            target = next((str(a) for a in args if isinstance(a, str | Path)), None)
            if target and breaks != "rename":
                Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        return save

    if breaks == "safetensors":
        name = "transformers.modeling_utils.safe_save_file"
        monkeypatch.setattr(name, full_disk(safetensors.torch.save_file))
    elif breaks == "optimizer":
        save = torch.save
        broken = full_disk(save)
        monkeypatch.setattr(torch, "save", lambda o, f: (broken if str(f).endswith("optimizer.pt") else save)(o, f))
    else:
        rename = os.replace
        broken = full_disk(rename)
        monkeypatch.setattr(os, "replace", lambda a, b: (broken if "checkpoint-" in Path(b).name else rename)(a, b))
    with pytest.raises(OSError, match=r"checkpoint of step 6, earlier ones are whole: .*No space left on device"):
        train(small(text, keep=1), tmp_path / "run")
    monkeypatch.undo()
    run = RunDirectory(tmp_path / "run")
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-3"]
    kept = run.newest_checkpoint()
    assert kept is not None
    same = zip(load_run(kept).model.parameters(), load_run(run.path).model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_written_beside_replaces_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError), written_beside(file) as beside:
        beside.write_text("ne\udc80", encoding="utf-8")
    assert file.read_text() == "old"
    with written_beside(file) as beside:
        beside.write_text("new")
        assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "new"


def test_a_sample_is_repeatable_and_leaves_the_random_state_alone(finished: Path):
    model, tokenizer = load_run(finished)
    before = torch.get_rng_state()
    first = sample_text(model, tokenizer, b"the ", max_new_tokens=20, seed=5, may_end=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert sample_text(model, tokenizer, b"the ", max_new_tokens=20, seed=5, may_end=False) == first
    assert sample_text(model, tokenizer, b"the ", max_new_tokens=20, seed=6, may_end=False) != first
    assert len(first) == 20


@pytest.mark.parametrize("data", ["plain", "naïve 水 🚢", b"cut \xf0\x9f\x9a", b"bad \xff\xfe bytes \xe6\xb0"])
def test_a_stream_shows_whole_characters_as_soon_as_they_are_there(data: str | bytes):
    data = data.encode() if isinstance(data, str) else data
    pieces: list[str] = []
    streamer = TextStreamer(ByteTokenizer(), pieces.append)
    streamer.put(torch.tensor([[256, 120]]))  # the prompt
    for byte in data:
        streamer.put(torch.tensor([byte]))
    streamer.end()
    assert "".join(pieces) == data.decode("utf-8", "replace")
    assert all(len(piece) <= 2 for piece in pieces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"max_new_tokens": 3, "temperature": -1.0}, r"temperature must be 0 .* got -1\.0"),
        ({"max_new_tokens": 3, "temperature": math.nan}, "temperature must be 0 .* got nan"),
        ({"max_new_tokens": 3, "temperature": 1e-40}, "between 0.001 and 1000, got 1e-40"),
        ({"max_new_tokens": 3, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0\.0"),
        ({"max_new_tokens": 3, "top_k": -1}, "top_k must be >= 0, got -1"),
        ({"max_new_tokens": 3, "seed": 2**64}, "seed must fit 64 bits"),
    ],
)
def test_sampling_refuses_what_makes_no_sense(finished: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sample_text(*load_run(finished), b"x", **options)
