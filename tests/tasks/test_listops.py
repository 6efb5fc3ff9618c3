"""ListOps: trees against a plain solver and a plain generator, their law, splits, the benchmark's own files."""

import random

import numpy as np
import pytest
from scipy import stats

from longstream.tasks import IGNORED, make_task
from longstream.tasks._base import SPLITS
from longstream.tasks.listops import CLOSE, MAX, MED, MIN, PAD, SM, ListOps

APPLY = {MIN: min, MAX: max, MED: lambda values: int(np.median(values)), SM: lambda values: sum(values) % 10}
WORDS = {**{digit: str(digit) for digit in range(10)}, MIN: "[MIN", MAX: "[MAX", MED: "[MED", SM: "[SM", CLOSE: "]"}


def solve(tokens):
    """Value, depth and the numbers of arguments of a tree, by recursion over its tokens."""
    arguments = []

    def read(at):
        if tokens[at] < 10:
            return tokens[at], at + 1, 1
        operator, at, values, depth = tokens[at], at + 1, [], 0
        while tokens[at] != CLOSE:
            value, at, below = read(at)
            values.append(value)
            depth = max(depth, below)
        arguments.append(len(values))
        return APPLY[operator](values), at + 1, depth + 1

    value, end, depth = read(0)
    assert end == len(tokens)
    return value, depth, arguments


def plain(rng, depth=1, max_depth=10, max_args=10):
    """A tree by the benchmark's recursion: its tokens."""
    if depth == max_depth or rng.random() > 0.25:
        return [rng.randrange(10)]
    parts = [plain(rng, depth + 1, max_depth, max_args) for _ in range(rng.randint(2, max_args))]
    return [rng.randint(MIN, SM), *(token for part in parts for token in part), CLOSE]


@pytest.mark.parametrize(
    "fields", ["", "min_length=20,max_length=60", "min_length=9,max_length=90,max_args=3,max_depth=5"]
)
def test_values_are_what_a_plain_solver_finds(fields):
    task = make_task(f"listops:{fields}" if fields else "listops")
    assert isinstance(task, ListOps)
    inputs, labels = task.make(150, 3)
    assert inputs.shape == labels.shape == (150, task.length)
    for row, wanted in zip(inputs, labels, strict=True):
        length = int((row != PAD).sum())
        assert (row[length:] == PAD).all()
        assert task.min_length < length < task.max_length
        value, depth, arguments = solve(row[:length].tolist())
        assert depth <= task.max_depth
        assert set(arguments) <= set(range(2, task.max_args + 1))
        assert np.flatnonzero(wanted != IGNORED).tolist() == [length - 1]
        assert wanted[length - 1] == value


def test_the_law_of_trees_of_one_operator():
    trees = ListOps(min_length=1, max_length=14, max_depth=2).trees(30_000, 0)
    operators, digits = trees.tokens[:, 0], trees.tokens[trees.tokens < 10]
    for counts in (
        np.bincount(operators)[MIN : SM + 1],
        np.bincount(trees.lengths)[4:13],  # 2 ... 10 arguments and two tokens more
        np.bincount(digits),
    ):
        assert stats.chisquare(counts).pvalue > 1e-4


def test_the_same_law_as_a_plain_generator():
    task = ListOps(min_length=30, max_length=150)
    trees = task.trees(2000, 1)
    rng, slow = random.Random(2), []
    while len(slow) < 300:
        tree = plain(rng)
        if task.min_length < len(tree) < task.max_length:
            slow.append(tree)
    of_fast = [row[:length].tolist() for row, length in zip(trees.tokens, trees.lengths, strict=True)]
    for measure in (
        len,
        lambda tree: sum(token in APPLY for token in tree) / len(tree),
        lambda tree: solve(tree)[0],
        lambda tree: solve(tree)[1],
        lambda tree: np.mean(solve(tree)[2]),
    ):
        fast, wanted = ([measure(tree) for tree in trees] for trees in (of_fast, slow))
        assert np.asarray(stats.ks_2samp(fast, wanted))[1] > 1e-4  # the chance of such a difference


def test_seeds_and_splits():
    task = ListOps(min_length=50, max_length=120)
    first = task.make(200, 0)
    again = task.make(200, 0)
    assert (first.inputs == again.inputs).all()
    assert (first.labels == again.labels).all()
    rows = {split: {row.tobytes() for row in task.make(200, 0, split).inputs} for split in SPLITS}
    rows["other seed"] = {row.tobytes() for row in task.make(200, 1).inputs}
    assert len(set.union(*rows.values())) == 800


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_length": 0}, "min_length must be >= 1, got 0"),
        ({"max_depth": 1}, "max_depth must be >= 2, got 1"),
        ({"max_args": 101}, "max_args must be <= 100, got 101"),
        ({"min_length": 10, "max_length": 11}, r"max_length must be at least min_length \+ 2"),
        ({"max_depth": 2}, "min_length must be less than the 12 tokens of the largest tree"),
    ],
)
def test_bad_fields(fields, said):
    with pytest.raises(ValueError, match=said):
        ListOps(**fields)


def test_a_range_that_as_good_as_no_tree_has(monkeypatch):
    monkeypatch.setattr("longstream.tasks.listops.MOST_TRIES", 1)
    task = ListOps(min_length=92, max_length=94, max_depth=3, max_args=9)  # the largest tree of all
    with pytest.raises(ValueError, match=r"let none of .* trees pass .*; take a wider range"):
        task.make(1, 0)
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        ListOps().make(0, 0)
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        ListOps().make(1, -1)


def text(tokens):
    return " ".join(WORDS[token] for token in tokens)


def test_the_benchmarks_own_files(tmp_path):
    trees = ListOps(min_length=10, max_length=40).trees(40, 0)
    rows = [(row[:length].tolist(), value) for row, length, value in zip(*trees, strict=True)]
    for name, part in (("train", rows[:20]), ("val", rows[20:30]), ("test", rows[30:])):
        lines = [f"( ( {text(tree)} ) )\t{value}" for tree, value in part]  # with parentheses, as the files have them
        (tmp_path / f"basic_{name}.tsv").write_text("Source\tTarget\n" + "\n".join(lines) + "\n")
    task = ListOps(source=str(tmp_path), max_length=50)
    assert [task.size(split) for split in SPLITS] == [20, 10, 10]
    inputs, labels = task.make(10, 5, "test")
    got = {
        (tuple(row[row != PAD].tolist()), wanted[wanted != IGNORED].item())
        for row, wanted in zip(inputs, labels, strict=True)
    }
    assert got == {(tuple(tree), value) for tree, value in rows[30:]}
    with pytest.raises(ValueError, match="count must be <= 10, the test trees of"):
        task.make(11, 0, "test")
    with pytest.raises(ValueError, match="max_length must be more than"):
        ListOps(source=str(tmp_path), max_length=20, min_length=1).make(20, 0)
    whole = ListOps(source=str(tmp_path / "basic_train.tsv"), max_length=50)  # one file: a tenth, and a tenth
    parts = [{row.tobytes() for row in whole.make(whole.size(split) or 0, 0, split).inputs} for split in SPLITS]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert len(set.union(*parts)) == 20
