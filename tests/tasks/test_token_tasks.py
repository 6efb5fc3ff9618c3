"""The generators: labels against plain solvers, seeds, splits, ranges and refusals."""

import numpy as np
import pytest

from longstream.tasks import IGNORED, make_task
from longstream.tasks import _generated as generated
from longstream.tasks._base import SPLITS, Split
from longstream.tasks.mqar import MQAR
from longstream.tasks.selective_copying import SelectiveCopying
from tests.tasks.solvers import SOLVERS, solve

NAMES = [*SOLVERS, "memorization"]
TASKS = [
    *NAMES,
    "mqar:vocabulary=16,seq_len=32,num_pairs=7",
    "mqar:vocabulary=40,seq_len=80,num_pairs=18,random_fill=true,power=1.0",
    "associative_recall:absent=true,seq_len=12",
    "associative_recall:key_len=3,vocabulary=9,seq_len=48",
    "associative_recall:vocabulary=4,seq_len=4",
    "induction_heads:answer_len=3,triggers=4,seq_len=24",
    "induction_heads:seq_len=3,vocabulary=3",
    "selective_copying:rules=mamba,seq_len=40",
    "selective_copying:seq_len=5,num_tokens=2,vocabulary=4",
    "selective_copying:rules=mamba,seq_len=5,num_tokens=2",
    "copying:delay=0,num_tokens=1",
    "in_context_recall:multi_query=false,vocabulary=9,seq_len=24",
    "in_context_recall:seq_len=4,vocabulary=2",
    "noisy_recall:noise=0.9,seq_len=16",
    "noisy_recall:multi_query=false,vocabulary=13,noise_vocabulary=4",
    "noisy_recall:noise=0",
    "fuzzy_recall:vocabulary=7,seq_len=40",
    "fuzzy_recall:multi_query=false,key_len=2,value_len=4,vocabulary=12,seq_len=40",
    "fuzzy_recall:key_len=1,value_len=1,vocabulary=5,seq_len=9",
    "compression:num_tokens=1,vocabulary=3",
    "memorization:vocabulary=8,seq_len=12,map_seed=3",
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generated, "_CELLS", 1000)  # a set of examples is several blocks


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("text", [text for text in TASKS if not text.startswith("memorization")])
def test_labels_are_what_a_plain_solver_finds(text: str, split: Split):
    task = make_task(text)
    inputs, labels = task.make(60, 5, split)
    for row, wanted in zip(inputs, labels, strict=True):
        assert {int(i): int(wanted[i]) for i in np.flatnonzero(wanted != IGNORED)} == solve(task, row)


EXAMPLES = [
    ("mqar:vocabulary=16,seq_len=12,num_pairs=2", "3 9 1 12 0 0 1 0 3 0 0 0", {6: 12, 8: 9}),
    ("associative_recall:vocabulary=10,seq_len=8", "2 6 0 4 2 6 9 0", {7: 4}),
    ("induction_heads:vocabulary=10,seq_len=7", "3 0 9 5 2 2 9", {6: 5}),
    ("selective_copying:vocabulary=7,seq_len=8,num_tokens=2", "5 2 5 0 5 6 5 5", {6: 2, 7: 0}),
    ("copying:vocabulary=8,num_tokens=2,delay=3", "4 0 6 6 6 7 7", {5: 4, 6: 0}),
    ("in_context_recall:vocabulary=4,seq_len=8", "1 3 0 2 1 3 0 2", {4: 3, 6: 2}),
    ("noisy_recall:vocabulary=6,noise_vocabulary=2,seq_len=8", "1 3 5 4 0 2 1 3", {6: 3}),
    ("fuzzy_recall:vocabulary=8,seq_len=12", "1 0 4 5 2 3 1 0 4 5 7 7", {7: 4, 8: 5}),
    ("compression:vocabulary=4,num_tokens=3", "1 0 2 3 5 4 6", {4: 0, 5: 1, 6: 2}),
]


@pytest.mark.parametrize(("text", "tokens", "answers"), EXAMPLES, ids=lambda value: str(value).partition(":")[0])
def test_examples_of_the_docstrings(text: str, tokens: str, answers: dict[int, int]):
    task = make_task(text)
    assert f"``{tokens}``" in str(type(task).__doc__)
    assert solve(task, tokens.split()) == answers


def test_memorization_has_one_map():
    task = make_task("memorization:vocabulary=20")
    known = {}
    cases: list[tuple[int, Split]] = [(0, "train"), (1, "validation"), (2, "test")]
    for seed, split in cases:
        inputs, labels = task.make(200, seed, split)
        assert (inputs[:, 1::2] == 19).all()
        assert (labels[:, ::2] == IGNORED).all()
        for key, value in zip(inputs[:, ::2].ravel(), labels[:, 1::2].ravel(), strict=True):
            assert known.setdefault(int(key), int(value)) == value
    assert sorted(known) == list(range(9)), "of 19 tokens that are not the marker the lower half are keys"
    assert len(set(known.values())) == 9
    assert set(known.values()) <= set(range(9, 19))
    other = make_task("memorization:vocabulary=20,map_seed=1").make(200, 0)
    assert any(known[int(k)] != v for k, v in zip(other.inputs[:, 0], other.labels[:, 1], strict=True))


@pytest.mark.parametrize("text", TASKS)
def test_shapes_ranges_and_chance(text: str):
    task = make_task(text)
    inputs, labels = task.make(33, 0)
    assert inputs.shape == labels.shape == (33, task.length)
    assert inputs.dtype == labels.dtype == np.int64
    assert inputs.min() >= 0
    assert inputs.max() < task.vocab_size
    asked = labels[labels != IGNORED]
    assert ((asked >= 0) & (asked < task.vocab_size)).all()
    assert (labels != IGNORED).any(axis=1).all(), "every sequence asks"
    assert task.size() is None
    assert 0 < task.chance <= 1


@pytest.mark.parametrize("name", NAMES)
def test_chance_is_that_of_a_guess_among_all_answers(name: str):
    task = make_task(name)
    labels = task.make(3000 if name == "mqar" else 400, 0).labels
    answers = np.unique(labels[labels != IGNORED])
    assert task.chance == pytest.approx(1 / len(answers), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_examples_depend_on_seed_and_split_alone(name: str):
    task = make_task(name)
    made = {(seed, split): task.make(50, seed, split) for seed in (0, 1) for split in SPLITS}
    again = make_task(name).make(50, 0, "validation")
    assert (made[0, "validation"].inputs == again.inputs).all()
    assert (made[0, "validation"].labels == again.labels).all()
    rows = [row.tobytes() for examples in made.values() for row in examples.inputs]
    assert len(set(rows)) == len(rows), "no example twice, in no split and no seed"


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("mqar:num_pairs=33", "num_pairs", "<= seq_len / 4 = 32"),
        ("mqar:vocabulary=16", "num_pairs", "< vocabulary / 2 = 8"),
        ("mqar:vocabulary=15,num_pairs=2", "vocabulary", "even"),
        ("mqar:seq_len=31,num_pairs=2", "seq_len", "even"),
        ("mqar:num_pairs=0", "num_pairs", "an integer >= 1"),
        ("mqar:power=0", "power", "> 0"),
        ("mqar:power=inf", "power", "finite"),
        ("mqar:power=nan", "power", "> 0"),
        ("associative_recall:seq_len=33", "seq_len", "a multiple of key_len + 1 = 2"),
        ("associative_recall:seq_len=5,key_len=4", "seq_len", ">= 2 (key_len + 1) = 10"),
        ("associative_recall:key_len=99,seq_len=200", "key_len", "smaller"),
        ("induction_heads:seq_len=10,triggers=5", "seq_len", ">= triggers"),
        ("induction_heads:vocabulary=2", "vocabulary", "an integer >= 3"),
        ("selective_copying:seq_len=32", "seq_len", "> 2 num_tokens = 32"),
        ("copying:delay=-1", "delay", "an integer >= 0"),
        ("in_context_recall:seq_len=7", "seq_len", "even"),
        ("in_context_recall:vocabulary=2,multi_query=no", "vocabulary", "an integer >= 3"),
        ("noisy_recall:noise=1", "noise", "in [0, 1)"),
        ("noisy_recall:vocabulary=17", "vocabulary", ">= 18"),
        ("fuzzy_recall:seq_len=11", "seq_len", ">= 12"),
        ("fuzzy_recall:vocabulary=6", "vocabulary", "too few for keys"),
        ("fuzzy_recall:value_len=9", "vocabulary", "too few tokens for values"),
        ("compression:num_tokens=0", "num_tokens", "an integer >= 1"),
        ("memorization:seq_len=3", "seq_len", "even"),
    ],
)
def test_refusals_name_task_field_and_range(text: str, field: str, expected: str):
    with pytest.raises(ValueError, match=rf"^{text.partition(':')[0]}: {field} must be ") as error:
        make_task(text)
    assert expected in str(error.value)
    assert ", got " in str(error.value)


def test_fields_that_are_no_integers_are_refused():
    for value in (8.0, True, "8"):
        with pytest.raises(ValueError, match="mqar: num_pairs must be an integer >= 1, got"):
            MQAR(num_pairs=value)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="selective_copying: rules must be 'mad' or 'mamba', got 'x'"):
        SelectiveCopying(rules="x")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", NAMES)
def test_bad_counts_seeds_and_splits(name: str):
    task = make_task(name)
    with pytest.raises(ValueError, match=rf"^{name}: count must be >= 1, got 0"):
        task.make(0, 0)
    with pytest.raises(ValueError, match=rf"^{name}: seed must be >= 0, got -1"):
        task.make(1, -1)
    with pytest.raises(ValueError, match=rf"^{name}: split must be one of .* got 'dev'"):
        task.make(1, 0, "dev")  # pyright: ignore[reportArgumentType]
