"""Training in memory: it learns, is the same again, keeps the best weights, stops, and says what is wrong."""

import itertools
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from longstream.sequences import SequenceModel, Sequences, evaluate, make_model
from longstream.train import callbacks
from longstream.train.fit import fit_sequences
from longstream.train.optimize import schedule_arguments

SIZES = {"hidden_size": 16, "num_layers": 1, "expand_ratio": 8}


def waves(n: int, seed: int = 0, frames: int = 24) -> Sequences:
    """Sines of three frequencies in noise, of different lengths; the target is the frequency."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 3, n)
    values = []
    for kind in kinds:
        t = np.arange(random.integers(frames, 2 * frames))[:, None]
        values.append(np.sin((0.25 + 0.4 * kind) * t + random.uniform(0, 6)) + 0.2 * random.normal(size=(len(t), 1)))
    targets = 100 + 10.0 * kinds[:, None]
    return Sequences([v.astype(np.float32) for v in values], labels=kinds.astype(str), targets=targets)


def made(data: Sequences, task: str = "classify", **more) -> SequenceModel:
    torch.manual_seed(0)
    return make_model("hgrn2", data, task=task, options=SIZES | more.pop("options", {}), **more)


@pytest.mark.parametrize("chunk", [0, pytest.param(16, marks=pytest.mark.slow)])
def test_it_learns_classes(chunk):
    train, held_out = waves(96), waves(48, seed=1)
    model = made(train)
    before = evaluate(model, held_out).score
    history = fit_sequences(model, train, held_out, steps=60, batch_size=16, learning_rate=1e-2, chunk=chunk)
    assert before < 0.6 < 0.8 < evaluate(model, held_out).score
    assert not model.training
    assert history.steps == 60
    assert history.training[-1]["loss"] < history.training[0]["loss"] / 2
    assert [row["step"] for row in history.validation] == [60]
    assert history.score_name == "accuracy"


def test_it_learns_numbers():
    train = waves(96)
    model = made(train, "regress")
    fit_sequences(model, train, steps=60, batch_size=16, learning_rate=1e-2)
    assert evaluate(model, waves(48, seed=1)).score > 0.8


def test_it_learns_to_forecast():
    t = np.arange(600)[:, None]
    noise = np.random.default_rng(0).normal(size=t.shape)
    series = (50 + 5 * np.sin(2 * np.pi * t / 12) + 0.1 * noise).astype(np.float32)
    model = made(Sequences([series[:500]]), "forecast", horizon=6, seq_len=48)
    fit_sequences(model, Sequences([series[:500]]), steps=80, batch_size=8, learning_rate=1e-2, seq_len=48)
    errors = evaluate(model, Sequences([series]), start=500, season=12).metrics["errors"]
    assert errors["model"]["mae"] < 0.2 * errors["naive"]["mae"]
    assert errors["model"]["mase"] < 1.5


def test_the_same_seed_gives_the_same_model():
    train = waves(20)
    models = []
    for seed in (5, 5, 6):
        models.append(made(train, options={"dropout": 0.1}))
        fit_sequences(models[-1], train, steps=4, batch_size=4, seed=seed)
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_best_weights_stay_and_patience_ends_it():
    train, held_out = waves(16), waves(30, seed=1)
    held_out = Sequences(held_out.values, labels=np.random.default_rng(0).permutation(held_out.labels))  # type: ignore[arg-type]
    model = made(train)
    history = fit_sequences(
        model, train, held_out, steps=200, batch_size=8, learning_rate=2e-2, eval_every=5, patience=3
    )
    assert history.steps < 200
    ranks = [(row["score"], -row["loss"]) for row in history.validation]
    best = ranks.index(max(ranks))
    assert len(ranks) - best == 4
    assert history.best_step == history.validation[best]["step"]
    report = evaluate(model, held_out)
    assert (report.score, report.loss) == pytest.approx((ranks[best][0], -ranks[best][1]), rel=1e-4)


def test_minutes_end_it(monkeypatch):
    ticks = itertools.count(0.0, 0.5)  # each look at the clock is half a second later
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    train = waves(16)
    model, heads = made(train), []
    model.register_forward_hook(lambda *args: heads.append(model.head.weight.detach().clone()))
    history = fit_sequences(model, train, steps=0, minutes=0.5, batch_size=4, learning_rate=1e-2, weight_decay=0.0)
    assert 20 < history.steps < 70
    assert history.training[-1]["seconds"] >= 30
    moved = [(b - a).abs().mean().item() for a, b in itertools.pairwise(heads)]
    assert sum(moved[-4:]) < 0.5 * sum(moved[len(moved) // 4 :][:4])  # the schedule followed the clock to its end


def test_weights_of_classes_and_sequences_count():
    """A sequence of weight 0 is as if not there."""
    train = waves(24)
    assert train.labels is not None
    labels = train.labels.copy()
    labels[:8] = "2"  # wrong
    wrong = Sequences(train.values, labels=labels)
    weight = np.r_[np.zeros(8), np.ones(16)]
    batches = []
    every: list[dict[str, Any]] = [
        {"sample_weight": weight},
        {"class_weight": "balanced", "sample_weight": weight},
        {"class_weight": torch.tensor([1.0, 2.0, 3.0])},
    ]
    for arguments in every:
        model = made(wrong)
        seen = []
        model.register_forward_pre_hook(lambda m, args, kwargs, seen=seen: seen.append(kwargs), with_kwargs=True)
        fit_sequences(model, wrong, steps=6, batch_size=8, **arguments)
        pairs = [
            pair for batch in seen for pair in zip(batch["labels"].tolist(), batch["weights"].tolist(), strict=True)
        ]
        batches.append({label: weight for label, weight in pairs if weight})
    counts = np.array([(labels == str(k)).sum() for k in range(3)])
    assert batches[0] == {0: 1, 1: 1, 2: 1}
    assert batches[1] == pytest.approx({k: 24 / 3 / counts[k] for k in range(3)}, rel=1e-5)
    assert batches[2] == {0: 1, 1: 2, 2: 3}


def test_the_learning_rate_of_a_run():
    """The same schedule, optimizer groups and batch order as `longstream train`."""
    train = waves(12)
    history = fit_sequences(made(train), train, steps=10, batch_size=4, learning_rate=1e-3, warmup_ratio=0.2)
    rates = {row["step"]: row["learning_rate"] for row in history.training}
    half = 0.5 * (1 + np.cos(np.pi * (5 - 2) / 8))  # of the sixth step, two of ten being warmup
    assert rates[6] == pytest.approx(1e-3 * (0.1 + 0.9 * half), rel=1e-6)
    fields = schedule_arguments("wsd", steps=100, minutes=0, warmup_ratio=0.1)
    assert fields["warmup_steps"] == 10
    assert fields["lr_scheduler_kwargs"]["num_decay_steps"] == 20
    with pytest.raises(ValueError, match="schedule must be one of"):
        schedule_arguments("linear", steps=1, minutes=0, warmup_ratio=0)


def test_verbose_says_how_it_goes(caplog):
    train, before = waves(8), logging.getLogger("transformers").level
    with caplog.at_level(logging.INFO, logger="longstream"):
        fit_sequences(made(train), train, train, steps=2, batch_size=4, verbose=True)
    assert "loss" in caplog.text
    assert "score" in caplog.text
    assert logging.getLogger("transformers").level == before


def with_a_gap(data: Sequences) -> Sequences:
    values = [value.copy() for value in data.values]
    values[0][1, 0] = np.nan
    return Sequences(values, labels=data.labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps or minutes must be > 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"chunk": -1}, "chunk must be >= 0"),
        ({"patience": 2}, "patience must be 0 without held-out sequences"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"class_weight": "even"}, "class_weight must be 'balanced'"),
        ({"class_weight": [1.0, 2.0]}, "class_weight must be 3 numbers"),
        ({"sample_weight": np.ones(3)}, "weights must be 12 numbers"),
        ({"held_out": Sequences(waves(2).values, labels=np.array(["0", "other"]))}, "never seen in training: .'other'"),
        ({"held_out": Sequences(waves(2).values)}, "must have labels to classify"),
        ({"held_out": with_a_gap(waves(2))}, r"held out misses values in the channels \['0'\]"),
    ],
)
def test_settings_that_do_not_fit(arguments, message):
    train = waves(12)
    with pytest.raises(ValueError, match=message):
        fit_sequences(made(train), train, **arguments)


def test_chunks_are_refused_where_there_is_no_state():
    train = waves(12)
    with pytest.raises(ValueError, match="needs a network that carries a state"):
        fit_sequences(made(train, options={"direction": "bidirectional"}), train, steps=2, chunk=8)


def test_a_loss_that_is_no_number_ends_it():
    train = waves(12)
    model = made(train)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="training stopped at step 0: the loss is nan"):
        fit_sequences(model, train, steps=2)
