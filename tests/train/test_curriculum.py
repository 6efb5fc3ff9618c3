"""Generators whose difficulty grows over a run."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from longstream.tasks import make_task
from longstream.tasks._base import IGNORED
from longstream.train.curriculum import Curriculum, read_curriculum
from longstream.train.run import train
from longstream.train.settings import build_settings
from longstream.train.token_task import FreshExamples, TokenRun

MQAR = "mqar:vocabulary=64,seq_len=32,num_pairs=4"


def fields_at(curriculum: Curriculum, name: str, parts: Sequence[float]) -> list[float]:
    return [asdict(curriculum.at(part))[name] for part in parts]


def test_fields_go_in_a_straight_line():
    curriculum = read_curriculum(make_task("mqar:seq_len=128,num_pairs=8,power=0.01"), "num_pairs=1,power=1.0", 0.5)
    assert fields_at(curriculum, "num_pairs", (0, 0.25, 0.5, 0.9)) == [1, 5, 8, 8]
    assert fields_at(curriculum, "power", (0, 0.25, 0.5)) == pytest.approx([1.0, 0.505, 0.01])
    assert curriculum.at(1.0) == curriculum.task


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("num_pears=1", "did you mean 'num_pairs'"),
        ("seq_len=64", "at most its length of 32, got 64 and 64"),
        ("vocabulary=32", "its 64 tokens, and at most its length of 32, got 32"),
        ("random_fill=true", "must change numbers, got random_fill=True"),
    ],
)
def test_what_cannot_grow(start: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_curriculum(make_task(MQAR), start, 0.5)


def test_examples_grow_harder_and_depend_on_their_number_alone():
    curriculum = read_curriculum(make_task(MQAR), "num_pairs=1", 0.5)
    items = FreshExamples(curriculum, 400, seed=3)
    asked = [int((items[i][1] >= 0).sum()) for i in range(400)]
    assert asked[0] == 1
    assert asked == sorted(asked)
    assert set(asked[210:]) == {4}
    again = FreshExamples(curriculum, 400, seed=3)
    assert len({len(items[i][0]) for i in range(400)}) == 1
    for i in (399, 0, 120):  # in any order
        assert np.array_equal(again[i][0], items[i][0])


def test_sequences_grow_longer_in_lengths_that_the_task_can_have():
    curriculum = read_curriculum(make_task("mqar:vocabulary=64,seq_len=30,num_pairs=4"), "num_pairs=1,seq_len=4", 1.0)
    assert fields_at(curriculum, "seq_len", [p / 13 for p in range(14)]) == list(range(4, 31, 2))
    run = TokenRun(
        build_settings(
            {"data.task": "tokens", "data.generator": MQAR, "data.generator_start": "num_pairs=1,seq_len=16"},
            {"train.steps": 10, "train.batch_size": 4},
        )
    )
    items = run.make_items(40)
    batch = run.collator([items[8], items[26]])  # on both sides of where it grows
    lengths = [len(items[i][0]) for i in (8, 26)]
    assert lengths == [16, 32]
    assert batch["input_ids"].shape == (2, 32)
    assert not batch["input_ids"][0, 16:].any()
    assert (batch["labels"][0, 16:] == IGNORED).all()


def test_a_run_with_one(tmp_path: Path):
    common = {"data.task": "tokens", "data.generator": MQAR, "data.generator_start": "num_pairs=1"}
    model = {"model.hidden_size": 16, "model.num_hidden_layers": 1, "model.intermediate_size": 16}
    with pytest.raises(ValueError, match="generator_start must be left out without"):
        build_settings(common)
    with pytest.raises(ValueError, match="ramp_ratio must be in"):
        build_settings(common, {"train.steps": 5, "data.ramp_ratio": 0.0})
    settings = build_settings(common, model, {"train.steps": 8, "train.batch_size": 4, "data.validation_examples": 20})
    result = train(settings, tmp_path / "run")
    assert result.step == 8
    assert result.measured is not None
    fixed = build_settings(common, model, {"train.steps": 8, "data.train_examples": 50})
    with pytest.raises(ValueError, match="left out where the examples are a fixed set"):
        train(fixed, tmp_path / "fixed")


def test_a_way_on_which_there_is_no_task_is_refused_before_it_begins():
    with pytest.raises(ValueError, match=r"on the way from mqar:.* there is no task: mqar: num_pairs must be <="):
        read_curriculum(make_task("mqar:vocabulary=32,seq_len=32,num_pairs=8"), "num_pairs=2,seq_len=12", 0.6)
