"""Sequences in memory: what is checked, kept and counted in the digest."""

from typing import Any

import numpy as np
import pytest
import torch

from longstream.sequences import Sequences, as_labels, concatenate
from tests.sequences.known import known


def make(n=3, width=2, **more):
    random = np.random.default_rng(0)
    return Sequences([random.normal(size=(4 + i, width)) for i in range(n)], **more)


def test_values_become_float32_and_names_are_filled_in():
    data = make(labels=[3.0, 1, "b"], targets=[1, 2, np.nan], groups=np.array([7, 8, 7]))
    assert len(data) == 3
    assert {value.dtype for value in data.values} == {np.dtype(np.float32)}
    assert data.channels == ("0", "1")
    assert data.names == ("0", "1", "2")
    assert data.lengths.tolist() == [4, 5, 6]
    assert known(data.labels).tolist() == ["3", "1", "b"]
    assert data.classes == ["1", "3", "b"]
    assert (known(data.targets).shape, data.target_names) == ((3, 1), ("target",))
    assert known(data.groups).tolist() == ["7", "8", "7"]
    assert len(repr(data)) < 200


def test_classes_are_in_the_order_of_their_numbers():
    assert make(4, labels=["10", "9", "-1", "x"]).classes == ["-1", "9", "10", "x"]


def test_a_missing_value_stays_missing():
    value = np.array([[1, np.nan], [np.nan, 4]])
    assert np.isnan(Sequences([value]).values[0]).tolist() == [[False, True], [True, False]]


def test_torch_takes_the_values_as_they_are():
    whole = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    frozen = whole.copy()
    frozen.setflags(write=False)
    for value in Sequences([*whole, *frozen, whole[0][::-1], np.moveaxis(whole, 1, 2)[0].T]).values:
        torch.from_numpy(value)  # warns of arrays that cannot be written to, fails at negative strides


def test_large_arrays_are_shared_and_not_copied():
    whole = np.zeros((3, 5, 1), np.float32)
    data = Sequences(list(whole))
    assert all(np.shares_memory(value, whole) for value in data.select([2, 0]).values)


def test_select_takes_everything_along():
    data = make(labels=["a", "b", "c"], targets=[[1, 2], [3, 4], [5, 6]], groups=["g", "h", "g"], names=["x", "y", "z"])
    for part in (data.select([2, 0]), data.select(np.array([2, 0])), data.select(iter([2, 0]))):
        assert part.names == ("z", "x")
        assert known(part.labels).tolist() == ["c", "a"]
        assert known(part.targets).tolist() == [[5, 6], [1, 2]]
        assert known(part.groups).tolist() == ["g", "g"]
        assert part.lengths.tolist() == [6, 4]
    assert data.select(np.array([True, False, True])).names == ("x", "z")
    assert data.names == ("x", "y", "z")
    with pytest.raises(ValueError, match="at least one sequence"):
        data.select([])
    with pytest.raises(ValueError, match="mask of select must be one a sequence, 3, got 2"):
        data.select(np.array([True, False]))


def test_the_digest_is_of_everything_and_its_order():
    base: dict[str, Any] = {"labels": ["a", "b", "c"], "targets": [1.0, 2, 3], "groups": ["g", "h", "g"]}
    data = make(3, 2, **base)
    assert data.sha256() == make(3, 2, **base).sha256()
    others = [
        make(3, 2, **base | {"labels": ["a", "b", "d"]}),
        make(3, 2, **base | {"labels": None}),
        make(3, 2, **base | {"targets": [1.0, 2, 4]}),
        make(3, 2, **base | {"targets": None}),
        make(3, 2, **base | {"groups": ["g", "h", "h"]}),
        make(3, 2, **base, target_names=["t"]),
        make(3, 2, **base, channels=["a", "b"]),
        make(3, 1, **base),
        data.select([0, 2, 1]),
        data.select([0, 1]),
        Sequences([data.values[0], data.values[1], data.values[2] + 1e-6], **base),
    ]
    digests = {other.sha256() for other in others}
    assert len(digests) == len(others)
    assert data.sha256() not in digests


def test_the_digest_sees_one_nan():
    one, other = np.array([[np.nan]], np.float32), np.array([[np.nan]], np.float32)
    other.view(np.uint32)[0] += 1
    assert one.tobytes() != other.tobytes()
    assert Sequences([one]).sha256() == Sequences([other]).sha256() != Sequences([np.zeros((1, 1))]).sha256()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "at least one sequence, got none"),
        ({"values": [np.zeros((2, 3)), np.zeros((0, 3))], "names": ["a", "b"]}, r"'b' has no frames.*\(0, 3\)"),
        ({"values": [np.zeros((2, 0))]}, "'0' has no channels"),
        ({"values": [np.zeros((2, 3)), np.zeros((2, 2))]}, "mixed channel counts: '0' has 3, '1' 2"),
        ({"values": [np.zeros((2, 3)), np.zeros((2, 2, 3))]}, "images .* are mixed"),
        ({"values": [np.zeros(3)]}, r"'0' must have shape \(T, C\) .*\(3,\)"),
        ({"values": [np.array([["a"]])]}, "must be numbers"),
        ({"values": [[[1.0, 2.0], [3.0]]]}, "must be numbers"),
        ({"values": [np.array([[0, 1], [2, np.inf]])], "channels": ["x", "y"]}, "'0', frame 1, channel 'y'; 1 such"),
        ({"values": [np.array([[1e300]])]}, "infinite one .or one beyond float32. in sequence '0', frame 0"),
        ({"values": [np.full((2, 2, 1), -np.inf)]}, r"frame \(0, 0\), channel '0'; 4 such"),
        ({"values": [np.zeros((1, 2))], "channels": ["x"]}, "channels must name the 2 channels .* got 1"),
        ({"values": [np.zeros((1, 2))], "channels": ["x", "x"]}, "different names, got 'x' twice"),
        ({"values": [np.zeros((1, 2))], "names": ["x", "y"]}, "names must be one a sequence, 1, got 2"),
        ({"values": [np.zeros((1, 2))], "labels": ["x", "y"]}, "labels must be one a sequence, 1, got 2"),
        ({"values": [np.zeros((1, 2))], "groups": []}, "groups must be one a sequence, 1, got 0"),
        ({"values": [np.zeros((1, 2))], "labels": [["x"]]}, r"shape \(n,\)"),
        ({"values": [np.zeros((1, 2))] * 3, "labels": ["a", None, float("nan")]}, "got 2 such, first sequence '1'"),
        ({"values": [np.zeros((1, 2))] * 2, "labels": np.array([1.0, np.nan])}, "labels must not be missing or NaN"),
        ({"values": [np.zeros((1, 2))] * 2, "labels": np.array(["a", "nan"])}, "labels must not be missing or NaN"),
        ({"values": [np.zeros((1, 2))] * 2, "groups": ["a", " "]}, "groups must not be missing or NaN"),
        ({"values": [np.zeros((1, 2))], "targets": [1, 2]}, "targets must be one a sequence, 1, got 2"),
        ({"values": [np.zeros((1, 2))], "targets": ["red"]}, "targets must be numbers"),
        ({"values": [np.zeros((1, 2))], "targets": np.zeros((1, 0))}, r"shape \(n, K\)"),
        ({"values": [np.zeros((1, 2))], "targets": [[1, 2]], "target_names": ["a"]}, "name the 2 targets, got 1"),
        ({"values": [np.zeros((1, 2))], "targets": [[1, 2]], "target_names": ["a", "a"]}, "got 'a' twice"),
        ({"values": [np.zeros((1, 2))], "target_names": ["a"]}, "without targets"),
        ({"values": [np.zeros((1, 2))], "targets": [[1, -np.inf]]}, "infinite one: 'target 1' of sequence '0'"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        Sequences(**arguments)
    assert "\n" not in str(refusal.value)


def test_labels_are_words_whatever_they_were():
    assert as_labels([1, 2.0, 2.5, b"x ", True, np.float32(4)]).tolist() == ["1", "2", "2.5", "x", "True", "4"]
    assert as_labels(np.array(["None", "NA", "007"])).tolist() == ["None", "NA", "007"]
    assert as_labels(np.array([3, -1])).tolist() == ["3", "-1"]


def test_concatenate_keeps_order_and_everything_known():
    one = make(2, labels=["a", "b"], targets=[1, 2], groups=["g", "h"], names=["x", "y"])
    other = make(1, labels=["long"], targets=[3], groups=["i"], names=["z"])
    both = concatenate([one, other])
    assert both.names == ("x", "y", "z")
    assert known(both.labels).tolist() == ["a", "b", "long"]
    assert known(both.targets).tolist() == [[1], [2], [3]]
    assert concatenate([one]) is one
    assert concatenate([make(), make()]).labels is None


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (make(), make(width=3, names=list("abc")), "mixed channel counts: 'a' has .*'0', '1', '2'"),
        (Sequences([np.zeros((1, 1))], ("x",)), Sequences([np.zeros((1, 1))], ("y",)), r"channels .* \['y'\]"),
        (make(labels=list("abc")), make(), "labels must be given for all or for none, but '0' has none"),
        (make(targets=[1, 2, 3]), make(targets=[1, 2, 3], target_names=["t"]), "target_names must be the same"),
    ],
)
def test_concatenate_refuses_what_does_not_fit(one, other, message):
    with pytest.raises(ValueError, match=message):
        concatenate([one, other])
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])
