"""What X may be, and what is refused in words."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from longstream.sklearn.inputs import read_frame, read_sequences, read_series

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(4, 5))  # (n, time)
CUBE = RANDOM.normal(size=(4, 5, 3))  # (n, time, channels)


def read(X, layout="time-channels"):
    return read_sequences("Who", X, layout).values


def assert_same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, np.asarray(other, np.float32))


@pytest.mark.parametrize(
    "make",
    [np.asarray, np.ndarray.tolist, list, pd.DataFrame, torch.tensor, np.asfortranarray, lambda X: X.astype(object)],
    ids=["array", "nested lists", "list of arrays", "data frame", "tensor", "fortran", "objects"],
)
@pytest.mark.parametrize("layout", ["time-channels", "channels-time"])
def test_a_table_is_one_sequence_of_one_channel_a_row(make, layout):
    assert_same(read(make(TABLE), layout), TABLE[:, :, None])


@pytest.mark.parametrize(
    ("X", "width"), [(TABLE, 5), (TABLE.tolist(), 5), (pd.DataFrame(TABLE), 5), (list(TABLE), None)]
)
def test_a_table_has_a_width_and_a_list_of_arrays_has_none(X, width):
    assert read_sequences("Who", X, "time-channels").width == width
    assert read_sequences("Who", CUBE, "time-channels").width is None
    assert read_sequences("Who", [[1, 2, 3], [4]], "time-channels").width is None


@pytest.mark.parametrize("make", [np.asarray, np.ndarray.tolist, list, torch.tensor])
def test_three_dimensions_are_sequences_time_channels(make):
    assert_same(read(make(CUBE)), CUBE)


def test_channels_time_is_said_and_not_guessed():
    assert_same(read(CUBE.transpose(0, 2, 1), "channels-time"), CUBE)
    assert_same(read([x.T for x in CUBE], "channels-time"), CUBE)


def test_images_keep_their_grid():
    images = RANDOM.normal(size=(2, 6, 7, 3))
    assert_same(read(images), images)
    assert_same(read(images.transpose(0, 3, 1, 2), "channels-time"), images)


def test_a_list_may_hold_sequences_of_any_lengths():
    ragged = [RANDOM.normal(size=(T, 2)) for T in (1, 7, 3)]
    assert_same(read(ragged), ragged)
    assert_same(read([x[:, 0] for x in ragged]), [x[:, :1] for x in ragged])
    assert_same(read([[1, 2, 3], [4]]), [[[1], [2], [3]], [[4]]])


def test_missing_values_stay_missing():
    X = TABLE.copy()
    X[1, 2] = np.nan
    assert np.isnan(read(X)[1][2, 0])
    assert np.isnan(read(pd.DataFrame(X))[1][2, 0])
    assert np.isnan(read([X[0], X[1, :4]])[1][2, 0])


def test_the_caller_s_array_is_not_changed():
    X = CUBE.astype(np.float32)
    X.flags.writeable = False
    read(X)


REFUSED = [
    (np.array([np.zeros(3), np.zeros(4)], dtype=object), ValueError, r"use list\(X\)"),
    (np.zeros(5), ValueError, "Reshape your data"),
    (np.zeros((2, 3, 4, 5, 6)), ValueError, r"\(2, 3, 4, 5, 6\)"),
    (np.zeros((0, 5)), ValueError, "0 sample"),
    (np.zeros((3, 0)), ValueError, r"0 feature\(s\)"),
    (np.zeros((3, 0, 2)), ValueError, "one frame and channel at least"),
    (np.zeros((3, 2, 0)), ValueError, "one frame and channel at least"),
    ([], ValueError, "X must have one sequence at least, got an empty list"),
    ([np.zeros(3), np.zeros((2, 2, 2, 2))], ValueError, r"X\[1\] must be"),
    ([np.zeros(3), np.array([1.0, np.inf])], ValueError, r"Input X\[1\] contains infinity"),
    (np.full((2, 2), 1e300), ValueError, "infinity or a value too large"),
    (np.full((2, 2), np.inf), ValueError, "infinity"),
    (np.full((2, 2), 1j), ValueError, "Complex data not supported"),
    (np.full((2, 2), "word"), ValueError, "could not convert string"),
    ([["a", "b"], ["c"]], ValueError, "could not convert string"),
    (sparse.csr_array(np.eye(3)), TypeError, "Sparse data was passed"),
    (None, ValueError, "Expected 2D array"),
]


@pytest.mark.parametrize(("X", "error", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_is_not_sequences_is_refused(X, error, words):
    with pytest.raises(error, match=words):
        read(X)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"Who: layout must be one of \['time-channels', 'channels-time'\], got 'ntc'"):
        read(CUBE, "ntc")


def test_one_series_or_several():
    one = read_series("Who", TABLE[0], "time-channels")
    assert one.ndim == 1
    assert_same(one.values, [TABLE[0][:, None]])
    two = read_series("Who", TABLE, "time-channels")  # (time, channels)
    assert two.ndim == 2
    assert_same(two.values, [TABLE])
    assert_same(read_series("Who", TABLE.tolist(), "time-channels").values, [TABLE])
    assert_same(read_series("Who", TABLE.T, "channels-time").values, [TABLE])
    for many in (CUBE, list(CUBE)):
        series = read_series("Who", many, "time-channels")
        assert series.ndim == 3
        assert_same(series.values, CUBE)
    ragged = [TABLE[0], TABLE[1, :2]]
    assert_same(read_series("Who", ragged, "time-channels").values, [x[:, None] for x in ragged])


def test_columns_of_a_data_frame_name_the_channels():
    frame = pd.DataFrame({"load": [1.0, 2.0, 3.0], "heat": [4.0, None, 6.0]})
    series = read_series("Who", frame, "time-channels")
    assert series.names == ("load", "heat")
    assert read_series("Who", [frame, frame], "time-channels").names == ("load", "heat")
    assert np.isnan(series.values[0][1, 1])
    assert read_series("Who", frame["load"], "time-channels").ndim == 1


def test_series_that_are_refused():
    with pytest.raises(ValueError, match="list of arrays"):
        read_series("Who", [[1.0, 2.0], [3.0]], "time-channels")
    with pytest.raises(ValueError, match="or several of these"):
        read_series("Who", np.zeros((2, 2, 2, 2)), "time-channels")
    with pytest.raises(ValueError, match="0 sample"):
        read_series("Who", np.zeros(0), "time-channels")


@pytest.mark.parametrize(("frame", "shape", "single"), [([1, 2], (1, 2), True), (np.zeros((5, 2)), (5, 2), False)])
def test_frames(frame, shape, single):
    rows, one = read_frame("Who", frame, 2)
    assert (rows.shape, rows.dtype, one) == (shape, np.float32, single)


def test_a_number_is_a_frame_of_one_channel():
    rows, single = read_frame("Who", 3.5, 1)
    assert rows.tolist() == [[3.5]]
    assert single


@pytest.mark.parametrize("frame", [3.0, [1, 2, 3], np.zeros((2, 3)), np.zeros((1, 1, 2)), np.zeros((0, 2))])
def test_frames_of_another_shape_are_refused(frame):
    with pytest.raises(ValueError, match=r"Who: frame must have shape \(2,\)"):
        read_frame("Who", frame, 2)


def test_an_infinite_frame_is_refused_and_a_missing_value_is_not():
    with pytest.raises(ValueError, match="infinite"):
        read_frame("Who", [np.inf, 0], 2)
    assert np.isnan(read_frame("Who", [np.nan, 0], 2)[0][0, 0])
