"""Splits: whole groups, classes in proportion, the end of a series; and what cannot be split."""

import numpy as np
import pytest

from longstream.sequences import Sequences, split_sequences, split_time
from tests.sequences.known import known


def make(labels=None, groups=None, n=0, **more):
    n = n or len(labels if labels is not None else groups or ())
    return Sequences([np.full((3, 1), i) for i in range(n)], labels=labels, groups=groups, **more)


def numbers(data):
    return [int(name) for name in data.names]


def both(parts):
    return sorted(numbers(parts[0]) + numbers(parts[1]))


def test_a_split_is_of_the_size_asked_for_and_repeats():
    data = make(n=50)
    train, held_out = split_sequences(data, 0.2, 0)
    assert (len(train), len(held_out)) == (40, 10)
    assert both((train, held_out)) == list(range(50))
    assert numbers(train) == sorted(numbers(train))
    assert numbers(split_sequences(data, 0.2, 0)[1]) == numbers(held_out)
    assert numbers(split_sequences(data, 0.2, 1)[1]) != numbers(held_out)
    assert held_out.values[0][0, 0] == numbers(held_out)[0]


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.99, 4)])
def test_both_parts_have_something(fraction, expected):
    assert len(split_sequences(make(n=5), fraction, 0)[1]) == expected


def test_classes_keep_their_proportions():
    labels = ["a"] * 80 + ["b"] * 15 + ["c"] * 5
    for seed in range(5):
        train, held_out = split_sequences(make(labels), 0.2, seed)
        assert [known(held_out.labels).tolist().count(label) for label in "abc"] == [16, 3, 1]
        assert train.classes == ["a", "b", "c"]


def test_a_class_of_one_sequence_stays_in_training():
    for seed in range(20):
        train, held_out = split_sequences(make(list("aaaab")), 0.5, seed)
        assert "b" in train.classes
        assert len(held_out) == 2


def test_many_small_classes_share_the_held_out_part():
    labels = [str(i // 2) for i in range(104)]
    train, held_out = split_sequences(make(labels), 0.1, 0)
    assert len(held_out) == 10
    assert len(held_out.classes) == 10
    assert len(train.classes) == 52


def test_the_choice_within_a_class_is_of_chance():
    chosen = {tuple(numbers(split_sequences(make(["a"] * 6 + ["b"] * 6), 0.2, seed)[1])) for seed in range(30)}
    assert len(chosen) > 15


def test_whole_groups_stay_together():
    random = np.random.default_rng(1)
    groups = [f"subject {i}" for i in random.integers(0, 20, 300)]
    labels = random.integers(0, 3, 300)
    for seed in range(5):
        train, held_out = split_sequences(make(labels, groups), 0.2, seed)
        assert not set(known(train.groups)) & set(known(held_out.groups))
        assert both((train, held_out)) == list(range(300))
        assert 45 <= len(held_out) <= 75
        assert train.classes == held_out.classes == ["0", "1", "2"]


def test_groups_without_labels_and_groups_larger_than_the_fraction():
    train, held_out = split_sequences(make(groups=["a"] * 10 + ["b"] * 4), 0.05, 0)
    assert numbers(held_out) == [10, 11, 12, 13]
    assert len(train) == 10


def test_groups_do_not_take_a_class_out_of_training():
    labels, groups = ["x", "x", "y", "x", "y", "z"], ["1", "1", "2", "3", "3", "3"]
    for seed in range(10):
        train, _ = split_sequences(make(labels, groups), 0.4, seed)
        assert train.classes == ["x", "y", "z"]
    with pytest.raises(ValueError, match="no group can be held out"):
        split_sequences(make(["x", "y"], ["1", "2"]), 0.5, 0)
    assert len(split_sequences(make(["x", "y"], ["1", "2"]), 0.5, 0, stratify=False)[1]) == 1


def test_named_groups_are_held_out_exactly():
    data = make(["x", "y"] * 3, ["a", "a", "b", "b", "c", "c"])
    train, held_out = split_sequences(data, 0.1, 0, hold_out_groups=["c", "a"])
    assert (numbers(train), numbers(held_out)) == ([2, 3], [0, 1, 4, 5])


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (make(n=1), {}, "a set of one sequence .'0'."),
        (make(n=3), {"fraction": 0.0}, "fraction must be between 0 and 1, got 0.0"),
        (make(n=3), {"fraction": 1.0}, "fraction must be between 0 and 1"),
        (make(n=3), {"hold_out_groups": ["a"]}, "the data have no groups"),
        (make(groups=list("aab")), {"hold_out_groups": ["a", "d"]}, "must be of 'a', 'b', got 'd'"),
        (make(groups=list("aab")), {"hold_out_groups": "a"}, "must be a list of names"),
        (make(groups=list("aab")), {"hold_out_groups": ["b", "a"]}, "leaves nothing for training"),
        (make(["x", "x", "q"], list("aab")), {"hold_out_groups": ["b"]}, "of 'q' all sequences would be held out"),
        (make(groups=list("aaa")), {}, "all sequences are of the group 'a'"),
        (make(list("abc")), {}, "every class has one sequence only"),
    ],
)
def test_what_cannot_be_split_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        split_sequences(data, **{"fraction": 0.5, "seed": 0} | options)


def test_unknown_groups_are_listed_in_a_message_that_stays_short():
    data = make(groups=[f"g{i}" for i in range(1000)])
    with pytest.raises(ValueError, match=r"\.\.\. \(1000 in all\), got 'x'") as refusal:
        split_sequences(data, 0.5, 0, ["x"])
    assert len(str(refusal.value)) < 500


def test_the_end_of_every_series_is_held_out():
    values = [np.arange(10.0)[:, None], np.arange(3.0)[:, None], np.arange(2.0)[:, None]]
    data = Sequences(values, ("x",), names=("a", "b", "c"), labels=np.array(["l", "m", "n"]))
    begin, end = split_time(data, 0.3)
    assert begin.lengths.tolist() == [7, 2, 1]
    assert end.lengths.tolist() == [3, 1, 1]
    for value, one, other in zip(values, begin.values, end.values, strict=True):
        assert np.array_equal(np.concatenate([one, other]), value)
    assert (end.names, end.channels) == (data.names, ("x",))


def test_what_has_no_end_is_refused():
    with pytest.raises(ValueError, match="series 'b' has one frame"):
        split_time(Sequences([np.zeros((3, 1)), np.zeros((1, 1))], names=("a", "b")), 0.5)
    with pytest.raises(ValueError, match="images"):
        split_time(Sequences([np.zeros((3, 3, 1))]), 0.5)
    with pytest.raises(ValueError, match="fraction"):
        split_time(Sequences([np.zeros((3, 1))]), 1.5)
