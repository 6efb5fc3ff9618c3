"""Every --model from settings: what is built, what --params picks, and that each trains, stops, resumes and writes."""

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from longstream.models import count_parameters
from longstream.train.batches import Collator
from longstream.train.callbacks import RunClock
from longstream.train.corpus import Document
from longstream.train.data import read_documents
from longstream.train.evaluate import evaluate_documents
from longstream.train.loading import load_run
from longstream.train.models import build_model, choose_size, count, make_collator, model_config
from longstream.train.presets import USUAL
from longstream.train.run import train
from longstream.train.sample import sample_text
from longstream.train.settings import ModelSettings, build_settings, parse_count
from longstream.train.tokenizer import ByteTokenizer
from longstream.train.trainer import Trainer
from tests.train.runs import losses, small, write_text

OURS = ("hgrn2", "hgrn", "hyena", "hybrid")
NAMES = (*OURS, "llama", "mamba", "mamba2", "gru", "lstm")
TYPES = {"hyena": "longstream", "hybrid": "hgrn2", "gru": "longstream-gru", "lstm": "longstream-lstm"}


def settings(**changes: object) -> ModelSettings:
    return build_settings({f"model.{key}": value for key, value in changes.items()}).model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("params", ["60k", "2M", "0.11b"])
def test_params_picks_a_model_of_that_size(name: str, params: str):
    chosen = choose_size(settings(name=name, params=params), vocab_size=257, seq_len=64)
    size = count(chosen, 257, 64)
    assert size == pytest.approx(parse_count(params), rel=0.25 if params == "60k" else 0.1)  # small ones come in leaps
    assert not chosen.params
    assert 8 <= chosen.hidden_size / chosen.num_hidden_layers <= 200


def test_what_is_built_has_the_size_that_was_counted():
    for name in NAMES:
        asked = settings(name=name, params="100k")
        model = build_model(asked, vocab_size=257, boundary_id=256, seq_len=64)
        assert model.num_parameters() == count(choose_size(asked, 257, 64), 257, 64), name


@pytest.mark.parametrize("params", ["", "2M"])
def test_a_hybrid_ends_every_four_layers_with_attention(params: str):
    config = model_config(choose_size(settings(name="hybrid", params=params), 257, 64), 257, 64)
    kinds = [type(mixer).__name__ for mixer in config.mixers]
    assert [i for i, kind in enumerate(kinds) if kind == "AttentionConfig"] == list(range(3, len(kinds), 4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"params": "many"}, r"ModelSettings\.params must be a number such as 500k, 2M or 1\.3B, got 'many'"),
        ({"params": "-2M"}, "must be a number such as"),
        ({"name": "rwkv"}, r"model\.name must be one of hgrn2, hgrn, hyena, hybrid, llama, .*, got 'rwkv'"),
        (
            {"name": "edifice-hgrn"},
            r"ModelSettings\.name must be a model of text; .*, got 'edifice-hgrn'",
        ),
        ({"hyena_order": 1}, r"ModelSettings\.hyena_order must be >= 2, got 1"),
        ({"hyena_order": "two"}, r"model\.hyena_order must be an integer, got 'two'"),
        ({"attention_every": 0}, r"ModelSettings\.attention_every must be >= 1, got 0"),
    ],
)
def test_bad_settings(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        settings(**changes)


@pytest.mark.parametrize("changes", [{"attention_every": 1}, {"num_hidden_layers": 1}])
def test_a_hybrid_of_one_kind_is_none(changes: dict):
    with pytest.raises(
        ValueError, match="a hybrid needs both at least 2, to have HGRN2 and attention, got attention_every"
    ):
        model_config(settings(name="hybrid", **changes), 257, 64)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("preset", USUAL)
def test_params_goes_with_every_preset(preset: str, name: str):
    """Their hidden size, MLP and depth give way; their expand_ratio stays, and decides the width of HGRN2."""
    asked = build_settings(USUAL[preset], {"model.name": name, "model.params": "3M"}).model
    chosen = choose_size(asked, vocab_size=257, seq_len=64)
    assert count_parameters(model_config(chosen, 257, 64)) == pytest.approx(3e6, rel=0.25)
    assert chosen.intermediate_size == pytest.approx(8 / 3 * chosen.hidden_size, rel=0.1)
    assert chosen.expand_ratio == asked.expand_ratio
    assert name in ("hgrn", "hyena") or chosen.hidden_size % chosen.expand_ratio == 0


def test_training_sequences_must_fit_into_hyena():
    """Said of the settings, before a run that is there is overwritten."""
    asked = {"model.name": "hyena", "data.seq_len": 64}
    with pytest.raises(ValueError, match=r"ModelSettings\.max_seq_len must be 0 or >= data\.seq_len=64, got 32"):
        build_settings(asked, {"model.name": "llama", "model.max_seq_len": 32})
    with pytest.raises(ValueError, match=r"ModelSettings\.max_seq_len must be 0 or >= data\.seq_len=64, got 32"):
        build_settings(asked, {"model.max_seq_len": 32})
    for name, longest in (("hyena", 0), ("hyena", 64), ("hgrn2", 32)):
        build_settings(asked, {"model.name": name, "model.max_seq_len": longest})


def test_expand_ratio_is_of_hgrn2_alone():
    for name in ("hgrn", "hyena"):
        assert model_config(settings(name=name, expand_ratio=32, hidden_size=48), 257, 64).hidden_size == 48
    for name in ("hgrn2", "hybrid"):
        with pytest.raises(ValueError, match=r"expand_ratio must be a divisor of hidden_size=48, got 32"):
            settings(name=name, expand_ratio=32, hidden_size=48)


def test_a_size_that_no_model_has_is_refused():
    with pytest.raises(ValueError, match="--params 50: no hgrn2 of that size; use --hidden-size"):
        choose_size(settings(params="50"), 257, 64)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("mamba2", "lstm"))) for name in NAMES[1:]]
)
def test_a_run_resumes_as_if_it_had_never_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = write_text(tmp_path / "a.txt")
    train(small(text, name=name), tmp_path / "whole")
    on_step_end = RunClock.on_step_end

    def stopped(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunClock, "on_step_end", stopped)
    assert train(small(text, name=name), tmp_path / "parts").step == 3
    monkeypatch.undo()
    train(small(text, name=name), tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    loaded = load_run(tmp_path / "parts")
    assert loaded.model.config.model_type == TYPES.get(name, name)
    assert sample_text(loaded.model, loaded.tokenizer, b"the", max_new_tokens=5, seed=1, may_end=False)


@pytest.mark.parametrize("name", ["hyena", "llama"])
def test_documents_longer_than_a_model_takes_are_read_in_overlapping_pieces(name: str, tmp_path: Path):
    """Every token is counted once, and each from at least half of the longest sequence."""
    text = write_text(tmp_path / "a.txt")
    train(small(text, name=name, seq_len=16, steps=1), tmp_path / "run")
    model, tokenizer = load_run(tmp_path / "run")
    (document,) = read_documents([str(text)])
    found = evaluate_documents(model, tokenizer, [document])
    ids = torch.tensor([tokenizer.boundary_id, *document.data, tokenizer.boundary_id])
    nats = 0.0
    with torch.no_grad():
        starts = [*range(0, len(ids) - 17, 8), len(ids) - 17]
        done = 0
        for start in starts:
            logits = model(input_ids=ids[None, start : start + 16]).logits[0].double()
            loss = torch.nn.functional.cross_entropy(logits, ids[start + 1 : start + 17], reduction="none")
            nats += float(loss[done - start :].sum())
            done = start + 16
    assert found.tokens == len(document.data) + 1
    assert found.nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "gru"])
def test_a_baseline_reads_a_long_document_with_all_of_its_context(name: str, tmp_path: Path):
    """In chunks from a state, which is what one pass over the whole document gives."""
    text = write_text(tmp_path / "a.txt", 900)
    model = build_model(
        settings(name=name, hidden_size=16, num_hidden_layers=2), vocab_size=257, boundary_id=256, seq_len=8
    )
    tokenizer, documents = ByteTokenizer(), read_documents([str(text)])
    found = evaluate_documents(model, tokenizer, [*documents, Document("b", b"short")], tokens_per_pass=128)
    nats = 0.0
    for data in (documents[0].data, b"short"):
        ids = torch.tensor([[256, *data, 256]])
        with torch.no_grad():
            logits = model.eval()(input_ids=ids[:, :-1]).logits[0].double()
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
    assert found.nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2", "gru"])
def test_rows_and_packing_ask_the_same_of_a_model(name: str):
    """Windows in which documents end: the parts of documents see nothing of each other, and no target is lost."""
    torch.manual_seed(0)
    windows = [torch.tensor([256, 1, 2, 3, 256, 4, 5, 6]), torch.tensor([7, 8, 9, 9, 8, 7, 256, 1])]
    asked = settings(name=name, hidden_size=16, num_hidden_layers=1)
    model = build_model(asked, vocab_size=257, boundary_id=256, seq_len=8)
    batch = make_collator(asked, 256)(windows)
    packed = Collator(256)(windows)
    expected = torch.zeros(())
    for left, right in pairwise(packed["cu_seqlens"].tolist()):
        logits = model(input_ids=packed["input_ids"][:, left:right]).logits[0]
        targets = packed["shift_labels"][0, left:right]
        expected = expected + torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
    assert (batch["labels"] != -100).sum() == (packed["labels"] != -100).sum() == 14
    assert torch.allclose(model(**batch, num_items_in_batch=14).loss, expected / 14)
    assert ("cu_seqlens" in batch) == (name == "gru")


def test_the_trainer_honors_the_hints_of_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    create = Trainer.create_optimizer

    def watch(self: Trainer, model: object = None) -> torch.optim.Optimizer:
        optimizer = create(self, model)
        names = {id(p): name for name, p in self.network.named_parameters()}
        for group in optimizer.param_groups:
            seen.extend((names[id(p)], group["lr"], group["weight_decay"]) for p in group["params"])
        return optimizer

    monkeypatch.setattr(Trainer, "create_optimizer", watch)
    train(small(write_text(tmp_path / "a.txt"), name="hyena", steps=1, weight_decay=0.2), tmp_path / "run")
    of = {name.removeprefix("model.backbone."): hint for name, *hint in seen}
    assert of["layers.0.mixer.filter.positions"] == [1e-5, 0.0]
    assert of["layers.0.mixer.filter.hidden.0.weight"][1] == 0.0
    assert of["layers.0.mixer.in_proj.weight"][1] == 0.2
    assert of["layers.0.mixer_norm.weight"][1] == 0.0
