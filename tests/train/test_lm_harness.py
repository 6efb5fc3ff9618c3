"""lm-evaluation-harness on our models: its numbers are the model's own, and its commands say what is wrong.

A little over 300 lines: the numbers and the command are tested on the same models, requests and task files.
"""

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from longstream.baselines.language import context_limit
from longstream.cli import main
from longstream.train import scoring
from longstream.train.corpus import Document
from longstream.train.evaluate import evaluate_documents
from longstream.train.models import build_model
from longstream.train.run import train
from longstream.train.sample import continue_texts, sample_text
from longstream.train.settings import build_settings
from longstream.train.tokenizer import BOUNDARY, ByteTokenizer, JsonTokenizer, Tokenizer, train_bpe
from tests.train.runs import small, write_text

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from longstream.train.harness import load_tasks
from longstream.train.harness_model import HarnessModel

NAMES = ("hgrn2", "hgrn", "hyena", "hybrid", "llama", "mamba", "mamba2", "gru", "lstm")
LIMIT = 48  # tokens that Hyena and Llama take here
LONG = "the wind and the sea of stone, and a ship with"  # more than WORTH_SHARING tokens, fewer than LIMIT
PAIRS = [
    (LONG, "."),
    (LONG, ""),
    (LONG, "42"),
    ("of stone, and a ship with the wind and the sea", ".."),
    ("of stone, and a ship with the wind and the sea", "u"),
    ("a ship", " with sails"),
    ("a ship", " with 42 sails, über"),
    ("a ship ", "with sails"),
    ("", "the sea"),
    ("\n", "a"),
]


def make_model(name: str, tokenizer: Tokenizer | None = None) -> Any:
    """A model whose predictions differ from place to place, as those of its first weights hardly do."""
    torch.manual_seed(3)
    tokenizer = tokenizer or ByteTokenizer()
    asked = build_settings({"model.name": name, "model.hidden_size": 16, "model.num_hidden_layers": 2}).model
    model = build_model(asked, vocab_size=tokenizer.vocab_size, boundary_id=tokenizer.boundary_id, seq_len=LIMIT)
    with torch.no_grad():
        for parameter in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            parameter.mul_(20)
    return model.eval()


def ask(*arguments: Any) -> list[Any]:
    """Requests of lm-eval."""
    return [SimpleNamespace(args=each) for each in arguments]


@torch.no_grad()
def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-likelihood of a continuation, in one pass over the whole."""
    logits = model(input_ids=torch.tensor([context + continuation])[:, :-1], use_cache=False).logits[0].double()
    logits = logits[len(context) - 1 :]
    targets = torch.tensor(continuation, dtype=torch.long)
    picked = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(picked.sum()), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("most_rows", [scoring.MOST_ROWS, 2])
@pytest.mark.parametrize("name", NAMES)
def test_log_likelihoods_are_those_of_one_pass(name: str, most_rows: int, monkeypatch):
    monkeypatch.setattr(scoring, "MOST_ROWS", most_rows)
    model = make_model(name)
    contexts = [*"abcdefghijklmnop"]
    nexts = continue_texts(model, ByteTokenizer(), [[256, *c.encode()] for c in contexts], max_new_tokens=1)
    likeliest = next((c, new.decode()) for c, new in zip(contexts, nexts, strict=True) if new and new < b"\x80")
    pairs = [*PAIRS, likeliest]
    found = HarnessModel(model, ByteTokenizer()).loglikelihood(ask(*pairs))
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        moved = len(context) - len(context.rstrip())  # lm-eval scores spaces that end the context
        cut = len(context) - moved
        whole = (context + continuation).encode()
        wanted = by_hand(model, [256, *whole[: len(context[:cut].encode())]], [*whole[len(context[:cut].encode()) :]])
        assert nats == pytest.approx(wanted[0], rel=1e-5, abs=1e-6), (context, continuation)
        assert greedy == wanted[1]
    assert found[-1][1]
    assert not all(greedy for _, greedy in found)


@pytest.mark.parametrize("name", ["hyena", "llama"])
def test_what_does_not_fit_loses_its_beginning(name: str, caplog):
    model = make_model(name)
    assert context_limit(model) == LIMIT
    text = (LONG * 4).encode()
    with caplog.at_level(logging.WARNING, "longstream"):
        found = HarnessModel(model, ByteTokenizer()).loglikelihood(
            ask((text.decode(), " of"), (text.decode(), " sea"), (LONG, text.decode()))
        )
    assert "3 of 3 requests are longer than the 48 tokens" in caplog.text
    for (nats, _), continuation in zip(found, (b" of", b" sea"), strict=False):
        kept = [*text, *continuation][-LIMIT - 1 :]
        assert nats == pytest.approx(by_hand(model, kept[: -len(continuation)], [*continuation])[0], rel=1e-5)
    # A long continuation: every token is predicted from at least the half of what fits.
    ids, nats, known = [256, *LONG.encode(), *text], 0.0, len(LONG.encode())
    ids = ids[-1 - len(text) - LIMIT // 2 :]
    known, done = LIMIT // 2, LIMIT // 2
    for start in [*range(0, len(ids) - 1 - LIMIT, LIMIT // 2), len(ids) - 1 - LIMIT]:
        end = start + LIMIT
        context = ids[start : done + 1]
        nats += by_hand(model, context, ids[done + 1 : end + 1])[0]
        done = end
    assert done == known + len(text) == len(ids) - 1
    assert found[2][0] == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_whole_texts_cost_what_evaluate_says(name: str):
    """All but the boundary that closes a document, which lm-eval does not ask for."""
    model, tokenizer = make_model(name), ByteTokenizer()
    texts = ["the sea", LONG, "", "ü", "a ship of stone"]
    found = HarnessModel(model, tokenizer).loglikelihood_rolling(ask(*((text,) for text in texts)))
    for text, nats in zip(texts, found, strict=True):
        document = Document("a text", text.encode())
        closing = by_hand(model, [256, *document.data], [256])[0]
        own = evaluate_documents(model, tokenizer, [document])
        assert nats == pytest.approx(-own.nats - closing, rel=1e-5, abs=1e-5)


def test_tokens_of_more_than_a_byte(tmp_path: Path):
    text = write_text(tmp_path / "a.txt").read_bytes()
    tokenizer = train_bpe([Document("a.txt", text)], 300, tmp_path / "tokenizer.json")
    model = make_model("hgrn2", tokenizer)
    harness = HarnessModel(model, tokenizer)
    pairs = [
        ("the sea and", " the stone"),
        ("the sea ", "and stone"),
        ("the sto", "ne"),
        ("the s", "ea"),
        ("", "stone"),
    ]
    for (context, continuation), (nats, _) in zip(pairs, harness.loglikelihood(ask(*pairs)), strict=True):
        moved = context.rstrip(), context[len(context.rstrip()) :] + continuation
        whole, before = (tokenizer.encode(part.encode()).tolist() for part in ("".join(moved), moved[0]))
        after = whole[len(before) :] or tokenizer.encode(moved[1].encode()).tolist()
        assert nats == pytest.approx(by_hand(model, [tokenizer.boundary_id, *before], after)[0], rel=1e-5)
    assert any(len(tokenizer.encode((a + b).encode())) == len(tokenizer.encode(a.encode())) for a, b in pairs)
    assert isinstance(tokenizer, JsonTokenizer)
    assert BOUNDARY not in harness.generate_until(ask(("the sea", {"until": [], "max_gen_toks": 5})))[0]


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_what_the_model_writes_up_to_where_they_end(name: str):
    model, tokenizer = make_model(name), ByteTokenizer()
    contexts = ["the sea", "a", LONG[:20], ""]
    alone = [sample_text(model, tokenizer, c.encode(), max_new_tokens=12, temperature=0) for c in contexts]
    end = alone[0].decode("utf-8", "replace")[4:6]
    how: dict[str, Any] = {"until": ["no such end", end], "max_gen_toks": 12, "do_sample": False}
    found = HarnessModel(model, tokenizer).generate_until(ask(*((c, how) for c in contexts)))
    assert found == [text.decode("utf-8", "replace").split(end)[0] for text in alone]
    assert len(found[0]) <= 4
    (stopped,) = continue_texts(model, tokenizer, [[256, *b"the sea"]], max_new_tokens=12, until=[end.encode()])
    assert len(stopped) < 12 or not alone[0].decode("utf-8", "replace").isascii()


def test_texts_that_are_drawn_differ_and_do_not_fit_in_words():
    harness = HarnessModel(make_model("llama"), ByteTokenizer())
    how = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    drawn = harness.generate_until(ask(*[(LONG * 3, how)] * 20))
    assert len(set(drawn)) == 20
    assert drawn == harness.generate_until(ask(*[(LONG * 3, how)] * 20))
    with pytest.raises(ValueError, match=r"asks for up to 49 new tokens, and the model takes 48"):
        harness.generate_until(ask(("a", {"until": [], "max_gen_toks": 49})))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(small(write_text(folder / "a.txt"), steps=2), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with a task of each kind, on the same five rows."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": f"the {word} and the wind"} for word in ("sea", "ship", "sails", "stone", "ocean")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")}
    about = {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test", "doc_to_text": "{{text}}"}
    kinds = {
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": ["of", "42", "stone"],
            "doc_to_target": 2,
            "metric_list": [{"metric": "acc"}],
        },
        "tiny_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "tiny_writing": {
            "output_type": "generate_until",
            "doc_to_target": ".",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, more in kinds.items():  # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, "tag": "tiny", **about, **more}))
    return folder


@pytest.fixture
def few_tasks(monkeypatch):
    """lm-eval without its thousands of task files, which take ten seconds to list."""
    own: Any = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **more: own(self, **more | {"include_defaults": False}))


def test_tasks_on_a_run_from_the_command_line(run: Path, tasks: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", str(run), "--harness", f"tiny_choice,tiny_w*,{tasks / 'tiny_text.yaml'}"]
    command += ["--include-path", str(tasks), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "it/s" not in said.err
    assert "lm-eval" in said.out.splitlines()[0]
    found = json.loads((out / "harness.json").read_text())
    assert found["n-samples"]["tiny_choice"] == {"original": 5, "effective": 5}
    assert set(found["results"]) == {"tiny_choice", "tiny_text", "tiny_writing"}
    texts = [json.loads(line)["text"].encode() for line in (tasks / "rows.jsonl").read_text().splitlines()]
    from longstream.train.loading import load_run

    model, tokenizer = load_run(run)
    nats = evaluate_documents(model, tokenizer, [Document("", text) for text in texts]).nats
    nats += sum(by_hand(model, [256, *text], [256])[0] for text in texts)
    bits = found["results"]["tiny_text"]["bits_per_byte,none"]
    assert bits == pytest.approx(nats / math.log(2) / sum(map(len, texts)), rel=1e-5)
    right = [
        int(np.argmax([by_hand(model, [256, *text], [*f" {word}".encode()])[0] for word in ("of", "42", "stone")]) == 2)
        for text in texts
    ]
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(np.mean(right))
    assert f"{bits:.4f}" in said.out
    assert f"{bits:.4f}" in (out / "harness.md").read_text()

    assert main(command) == 2
    assert "harness.json exists: choose another --out" in capsys.readouterr().err
    assert main([*command[:-2], "--limit", "2"]) == 0
    assert "the first 2 examples of each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--harness tiny_choise --include-path FOLDER", "no task 'tiny_choise'; did you mean tiny_choice"),
        ("--harness , --include-path FOLDER", "names no task"),
        ("--harness tiny --include-path nowhere", "--include-path nowhere: no such folder"),
        ("--harness tiny --include-path EMPTY", "holds no task file"),
        ("--harness tiny --include-path FOLDER --limit 0", "--limit must be >= 1, got 0"),
        ("--harness tiny --include-path FOLDER --num-fewshot -1", "--num-fewshot must be >= 0, got -1"),
        ("--harness tiny --data a.txt", "--data is not for --harness"),
        ("--harness tiny --batch-size 3", "train.batch_size is not for --harness"),
        ("--limit 3", "--limit is for --harness TASKS, which is missing"),
        ("--include-path FOLDER", "--include-path is for --harness TASKS, which is missing"),
    ],
)
def test_wrong_words(run: Path, tasks: Path, tmp_path: Path, few_tasks, capsys, words: str, why: str):
    (tmp_path / "empty").mkdir()
    words = words.replace("FOLDER", str(tasks)).replace("EMPTY", str(tmp_path / "empty"))
    assert main(["evaluate", str(run), *words.split()]) == 2
    said = capsys.readouterr().err.splitlines()
    assert why in said[-1]
    assert len([line for line in said if "error" in line]) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("task: [", "cannot be read"),
        ("task: wrong\nnonsense: 3\n", "cannot be asked"),
        (
            "task: wrong\ndataset_path: json\ndataset_kwargs: {data_files: none.jsonl}\ntest_split: train\n",
            "none.jsonl",
        ),
    ],
)
def test_wrong_task_files(run: Path, tmp_path: Path, few_tasks, capsys, text: str, why: str):
    (tmp_path / "wrong.yaml").write_text(text)
    assert main(["evaluate", str(run), "--harness", "wrong", "--include-path", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert len(said.splitlines()) == 1


def test_solved_examples_are_asked_for(tasks: Path):
    for given, wanted in ((None, 0), (3, 3)):
        (task,) = load_tasks(["tiny_choice"], str(tasks), given)["tasks"].values()
        assert task.config.num_fewshot == wanted
        assert task.instances[0].args[0].count("wind") == wanted + 1


def test_models_that_read_no_text(tmp_path: Path, capsys):
    from longstream.sequences import Sequences
    from longstream.sequences import make_model as make_sequence_model

    data = Sequences([np.zeros((3, 1), np.float32)] * 4, labels=np.array(["a", "b"] * 2))
    options = {"hidden_size": 16, "num_layers": 1, "expand_ratio": 8}
    make_sequence_model("hgrn2", data, task="classify", options=options).save_pretrained(tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model"), "--harness", "hellaswag"]) == 2
    assert "--harness is for models of text" in capsys.readouterr().err


def test_without_lm_eval(run: Path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    assert main(["evaluate", str(run), "--harness", "hellaswag"]) == 2
    assert "pip install 'longstream[eval]'" in capsys.readouterr().err


@pytest.mark.slow
def test_lm_evals_own_tasks(run: Path, monkeypatch, capsys):
    """They are found, and without a network it is said what they lack."""
    manager = TaskManager()  # once: the list takes ten seconds
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **options: manager)
    assert main(["evaluate", str(run), "--harness", "helaswag"]) == 2
    assert "no task 'helaswag'; did you mean hellaswag" in capsys.readouterr().err
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert main(["evaluate", str(run), "--harness", "piqa"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "baber/piqa" in said
    assert "over the network" in said
