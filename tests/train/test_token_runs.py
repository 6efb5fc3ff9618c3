"""The task `tokens`: what a run trains on and measures, how it goes on, what evaluate, compare and info say of it."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longstream.cli import main
from longstream.tasks import IGNORED, Examples, TokenTask, make_task
from longstream.train import token_task
from longstream.train.loading import load_model, load_run, read_generator
from longstream.train.models import build_model
from longstream.train.run import train
from longstream.train.settings import ModelSettings, Settings, build_settings
from longstream.train.token_evaluation import evaluate_examples, labelled_logits
from longstream.train.token_task import FreshExamples, TokenRun, digest, fixed_examples
from tests.train.runs import SMALL, losses, metrics

EASY = "mqar:vocabulary=16,seq_len=16,num_pairs=2"


def tokens(generator: str = EASY, **changes: object) -> Settings:
    """Settings of a small run, without "train." and with "__" for points."""
    small = {key: value for key, value in SMALL.items() if not key.startswith("data.")}
    flat = {key.replace("__", ".") if "__" in key else f"train.{key}": value for key, value in changes.items()}
    return build_settings(small, {"data.task": "tokens", "data.generator": generator, "train.sample_tokens": 0}, flat)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks on one task."""
    folder = tmp_path_factory.mktemp("tokens")
    for name in ("hgrn2", "gru"):
        train(tokens(model__name=name, data__validation_examples=50), folder / name)
    return folder


@pytest.mark.parametrize("name", ["hgrn2", "hgrn", "hyena", "hybrid", "llama", "mamba2", "gru"])
def test_the_head_at_labelled_places_is_the_full_pass(name: str):
    asked = build_settings(SMALL, {"model.name": name}).model
    torch.manual_seed(0)
    model = build_model(asked, vocab_size=16, seq_len=16)
    inputs, labels = make_task(EASY).make(5, 3)
    ids, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    whole = model(input_ids=ids, labels=targets, shift_labels=targets)
    there = labelled_logits(model, ids, targets)
    torch.testing.assert_close(there, whole.logits[targets != IGNORED])
    loss = F.cross_entropy(there, targets[targets != IGNORED])
    torch.testing.assert_close(loss, whole.loss)
    found, expected = (torch.autograd.grad(x, list(model.parameters()), allow_unused=True) for x in (loss, whole.loss))
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert not model.get_output_embeddings()._forward_pre_hooks


class Oracle(torch.nn.Module):
    """A model that reads the answers: it says each token again."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head, self.size = torch.nn.Identity(), size
        self.config, self.device = type("Config", (), {"vocab_size": size}), torch.device("cpu")

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        return type("Output", (), {"logits": self.head(F.one_hot(input_ids, self.size).float() * 5)})


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_evaluation_counts_places_and_whole_sequences(rows: int):
    labels = np.array([[IGNORED, 1, 2], [3, IGNORED, IGNORED], [IGNORED] * 3, [0, 1, 2]])
    said = np.array([[0, 1, 0], [3, 0, 0], [0, 0, 0], [0, 1, 2]])
    found = evaluate_examples(Oracle(4), Examples(said, labels), rows=rows)
    assert (found.places, found.right, found.examples, found.whole) == (6, 5, 4, 3)
    assert found.accuracy == 5 / 6
    assert found.sequences == 3 / 4
    right, wrong = (-np.log(np.exp(x) / (3 + np.exp(5))) for x in (5, 0))
    assert found.loss == pytest.approx((5 * right + wrong) / 6, rel=1e-5)
    assert found.by_place.tolist() == [[2, 2], [2, 2], [2, 1]]


def test_evaluation_refuses_what_asks_nothing():
    nothing = Examples(np.zeros((2, 3), dtype=np.int64), np.full((2, 3), IGNORED))
    with pytest.raises(ValueError, match="examples must have labelled places, got none in 2 examples"):
        evaluate_examples(Oracle(4), nothing)
    with pytest.raises(ValueError, match="rows must be >= 0, got -1"):
        evaluate_examples(None, Examples(nothing.inputs, nothing.inputs), rows=-1)


def test_fresh_examples_depend_on_the_seed_and_their_number_alone(monkeypatch: pytest.MonkeyPatch):
    task = make_task(EASY)
    monkeypatch.setattr(token_task, "BLOCK_TOKENS", 16 * 8)
    data = FreshExamples(task, 40, seed=1)
    in_order = [data[i] for i in range(40)]
    again, other = FreshExamples(task, 40, seed=1), FreshExamples(task, 40, seed=2)
    for i in (39, 3, 17, 2):  # not in order, and with a length of another run
        for a, b in zip(FreshExamples(task, 99, seed=1)[i], in_order[i], strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(other[i][0], in_order[i][0])
    assert len({row.tobytes() for row, _ in in_order}) > 35
    fixed = fixed_examples(task, 19, 1)
    assert fixed is not None
    assert fixed.inputs.dtype == np.int8
    for i in range(19):
        np.testing.assert_array_equal(fixed.inputs[i], again[i][0])
        np.testing.assert_array_equal(fixed.labels[i], again[i][1])


def test_a_fixed_set_is_passed_over_in_a_new_order_each_time():
    run = TokenRun(tokens(data__train_examples=12))
    items = run.make_items(36)
    passes = [[items[i][0].tobytes() for i in range(start, start + 12)] for start in (0, 12, 24)]
    assert len({tuple(sorted(each)) for each in passes}) == 1
    assert len({tuple(each) for each in passes}) == 3
    assert len(set(passes[0])) > 10


def test_what_is_held_out_is_the_same_for_every_seed_and_network():
    same = [TokenRun(tokens(seed=seed, model__name=name)) for seed, name in ((0, "hgrn2"), (5, "gru"))]
    facts = [run.facts() for run in same]
    assert facts[0] == facts[1]
    other = TokenRun(tokens(data__split_seed=1)).facts()
    assert other["validation_sha256"] != facts[0]["validation_sha256"]
    items = [run.make_items(4) for run in same]
    assert not np.array_equal(items[0][0][0], items[1][0][0])
    assert TokenRun(tokens(data__validation_examples=0)).has_validation is False


def test_a_digest_knows_examples_in_any_order():
    inputs, labels = make_task(EASY).make(9, 0)
    order = np.random.default_rng(0).permutation(9)
    assert digest(Examples(inputs, labels)) == digest(Examples(inputs[order], labels[order].astype(np.int8)))
    changed = labels.copy()
    changed[0, 0] = 1
    assert digest(Examples(inputs, changed)) != digest(Examples(inputs, labels))


@dataclass(frozen=True, kw_only=True)
class Six(TokenTask):
    """Real data of six examples."""

    name: ClassVar[str] = "six"
    vocab_size: ClassVar[int] = 300  # type: ignore[assignment]
    length: ClassVar[int] = 4  # type: ignore[assignment]
    chance: ClassVar[float] = 0.5  # type: ignore[assignment]

    def make(self, count: int, seed: int, split: str = "train") -> Examples:  # type: ignore[override]
        rows = np.random.default_rng(seed).permutation(6)[:count]
        inputs = np.repeat(rows[:, None] + 290, 4, axis=1)
        return Examples(inputs, inputs.copy())

    def size(self, split: str = "train") -> int | None:  # type: ignore[override]
        return 6


def test_real_data_are_taken_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_task, "make_token_task", lambda text: Six())
    runs = [TokenRun(tokens("six", seed=seed)) for seed in (0, 1)]
    for run in runs:
        assert run.fixed is not None
        assert run.held_out is not None
        assert sorted(run.fixed.inputs[:, 0]) == [290, 291, 292, 293, 294, 295]
        assert run.fixed.inputs.dtype == np.int16
        assert len(run.held_out.inputs) == 6
    assert runs[0].facts() == runs[1].facts()


@pytest.mark.slow
def test_it_learns(tmp_path: Path):
    easy = "copying:num_tokens=2,delay=2,vocabulary=6"
    settings = tokens(easy, model__name="gru", steps=150, batch_size=32, learning_rate=2e-2, eval_every=0, save_every=0)
    found = train(settings, tmp_path / "run").measured
    assert found is not None
    assert found.found.accuracy > 2 * make_task(easy).chance
    assert found.row.keys() == {"loss", "accuracy", "sequences"}


@pytest.mark.parametrize("examples", [0, 10])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path, examples: int):
    settings = tokens(steps=6, data__train_examples=examples, gradient_accumulation=2)
    train(settings, tmp_path / "whole")
    train(settings, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "checkpoint-6")  # as if it had ended after the third step
    result = train(settings, tmp_path / "parts", resume=True)
    assert result.trained
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert a == b


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path):
    for name, rows, parts in (("one", 8, 1), ("two", 4, 2)):
        train(
            tokens(steps=2, batch_size=rows, gradient_accumulation=parts, eval_every=0, save_every=0), tmp_path / name
        )
    for (_, a), (_, b) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    norms = [[row["grad_norm"] for row in metrics(tmp_path / name)] for name in ("one", "two")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_what_a_run_leaves(runs: Path):
    run = runs / "hgrn2"
    assert read_generator(run) == make_task(EASY).describe()
    rows = metrics(run, "validation")
    assert [row["step"] for row in rows] == [3, 6]
    assert {"loss", "accuracy", "sequences"} <= rows[0].keys()
    assert not (run / "samples").exists()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert metrics(run)[-1]["tokens"] == 6 * 4 * 16
    found = evaluate_examples(load_model(run), make_task(EASY).make(50, 0, "validation"))
    assert found.accuracy == rows[-1]["accuracy"]


def test_evaluate_takes_the_test_split_and_other_difficulties(runs: Path, capsys: pytest.CaptureFixture[str]):
    run = runs / "hgrn2"
    assert main(["evaluate", str(run), "--examples", "40"]) == 0
    assert "40 examples of 16 tokens" in capsys.readouterr().out
    figures = json.loads((run / "evaluation.json").read_text())
    found = evaluate_examples(load_model(run), make_task(EASY).make(40, 0, "test"))
    assert (figures["accuracy"], figures["split"], figures["examples"]) == (found.accuracy, "test", 40)
    longer = "mqar:vocabulary=16,seq_len=64,num_pairs=4"
    assert main(["evaluate", str(run / "checkpoints" / "checkpoint-6"), "--generator", longer, "--examples", "9"]) == 0
    assert "9 examples of 64 tokens" in capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text()) == figures


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--generator", "mqar:vocabulary=32"], "must be of the model's 16 tokens, got mqar:.* of 32"),
        (["--generator", "mqr"], "unknown task 'mqr', did you mean 'mqar'"),
        (["--examples", "-1"], "--examples must be >= 1, got -1"),
        (["--data", "a.txt"], "--data is for runs that read files; .* is of mqar"),
        (["--season", "2"], "data.season is for runs that read files"),
    ],
)
def test_evaluate_refuses_in_a_line(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str):
    assert main(["evaluate", str(runs / "hgrn2"), *words]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_hyena_takes_no_longer_examples_than_its_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(tokens(model__name="hyena", steps=1, eval_every=0, save_every=0), tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--generator", EASY.replace("len=16", "len=32")]) == 2
    assert "at most the 16 tokens that this model takes" in capsys.readouterr().err
    with pytest.raises(ValueError, match="max_seq_len must be 0 or >= the 16 tokens of mqar"):
        TokenRun(tokens(model__name="hyena", model__max_seq_len=8))


def test_compare_and_info_know_such_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [str(runs / name) for name in ("hgrn2", "gru")]
    assert main(["compare", *words, "--out", str(tmp_path / "out"), "--lengths", "8"]) == 0
    table = (tmp_path / "out" / "compare.md").read_text()
    for head in ("accuracy", "sequences", "training tokens/s", "ms/token at 8", "state at 8, bytes"):
        assert head in table
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {run["task"] for run in found["runs"]} == {"tokens"}
    capsys.readouterr()
    assert main(["info", words[0]]) == 0
    said = capsys.readouterr().out
    assert "tokens; mqar:vocabulary=16" in said
    assert "none, 16 tokens" in said


def test_runs_of_other_examples_are_not_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(tokens("mqar:vocabulary=16,seq_len=16,num_pairs=3", steps=1, eval_every=0), tmp_path / "other")
    assert main(["compare", str(runs / "gru"), str(tmp_path / "other"), "--out", str(tmp_path / "out")]) == 2
    assert f"held out different data (gru: {EASY}, other: mqar" in capsys.readouterr().err


def test_generate_refuses_in_words(runs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", str(runs / "gru")]) == 2
    assert "a model of the task mqar" in capsys.readouterr().err
    with pytest.raises(ValueError, match="knows no text: use longstream evaluate"):
        load_run(runs / "hgrn2")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.generator": ""}, "generator must be given with task tokens, as mqar:num_pairs=8, got ''"),
        ({"data.seq_len": 64}, "seq_len must be left out with task tokens"),
        ({"data.files": ["a"]}, "files must be left out with task tokens"),
        ({"train.chunk": 8}, "chunk must be left out with task tokens"),
        ({"data.validation_examples": -1}, "validation_examples must be >= 0, got -1"),
        ({"model.name": "edifice-hgrn"}, "must be a model of text"),
        ({"data.task": "next-token"}, "generator must be left out with task next-token: it is for tokens"),
    ],
)
def test_settings_that_do_not_fit(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        build_settings({"data.task": "tokens", "data.generator": EASY}, changes)


def test_a_damaged_generator_file_is_named(runs: Path, tmp_path: Path):
    (tmp_path / "generator.json").write_text("{")
    with pytest.raises(ValueError, match=r"generator\.json is damaged"):
        read_generator(tmp_path)
    assert read_generator(runs) is None


def test_evaluate_of_text_refuses_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = build_model(ModelSettings(hidden_size=8, num_hidden_layers=1, expand_ratio=4), vocab_size=8, seq_len=8)
    model.save_pretrained(tmp_path)
    assert main(["evaluate", str(tmp_path), "--generator", EASY]) == 2
    assert "--generator and --examples are for runs of the task tokens" in capsys.readouterr().err
