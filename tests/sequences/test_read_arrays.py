"""Arrays from .npz, .npy and idx files, made here and read back; and everything that such a file can do wrong."""

import gzip
import pickle
import struct

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_sequences
from tests.sequences.known import known

X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)


def save(path, **arrays):
    np.savez(path, **arrays)
    return [path]


def idx(path, array, kind=0x08):
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as stream:
        stream.write(head + array.astype(array.dtype.newbyteorder(">")).tobytes())
    return path


def test_npz_of_time_and_channels(tmp_path):
    data = read_sequences(save(tmp_path / "a.npz", X=X, channels=["x", "y", "z"], groups=[1, 1, 2, 2]))
    assert np.array_equal(np.stack(data.values), X)
    assert data.channels == ("x", "y", "z")
    assert known(data.groups).tolist() == ["1", "1", "2", "2"]
    assert (data.labels, data.targets) == (None, None)
    assert data.names[3] == f"{tmp_path / 'a.npz'}:3"


def test_npz_of_one_channel_in_float64_integers_or_booleans(tmp_path):
    for array in (X[..., 0].astype(np.float64), (X[..., 0] > 0), (9 * X[..., 0]).astype(int)):
        data = read_sequences(save(tmp_path / "a.npz", x=array))
        assert data.values[1].shape == (5, 1)
        assert np.array_equal(np.stack(data.values)[..., 0], array.astype(np.float32))


def test_npz_keeps_missing_values(tmp_path):
    array = X.copy()
    array[1, 2, 0] = np.nan
    data = read_sequences(save(tmp_path / "a.npz", X=array))
    assert np.argwhere(np.isnan(np.stack(data.values))).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("width", [None, 3])
def test_npz_of_different_lengths(tmp_path, width):
    parts = [X[i, : i + 1] if width else X[i, : i + 1, 0] for i in range(4)]
    files = save(tmp_path / "a.npz", X=np.concatenate(parts), lengths=[1, 2, 3, 4])
    data = read_sequences(files)
    assert data.lengths.tolist() == [1, 2, 3, 4]
    assert all(np.array_equal(v.squeeze(), p.squeeze()) for v, p in zip(data.values, parts, strict=True))


def test_npz_padded_behind_its_lengths(tmp_path):
    data = read_sequences(save(tmp_path / "a.npz", X=X, lengths=[5, 1, 2, 3]))
    assert [value.tolist() for value in data.values] == [x[:n].tolist() for x, n in zip(X, [5, 1, 2, 3], strict=True)]


def test_channels_first_only_when_asked(tmp_path):
    files = save(tmp_path / "a.npz", X=X.transpose(0, 2, 1))
    assert read_sequences(files).values[0].shape == (3, 5)
    turned = read_sequences(files, ReadSpec(layout="channels-time"))
    assert np.array_equal(np.stack(turned.values), X)
    parts = np.concatenate([X[0, :2], X[1]]).T
    ragged = read_sequences(save(tmp_path / "b.npz", X=parts, lengths=[2, 5]), ReadSpec(layout="channels-time"))
    assert np.array_equal(ragged.values[1], X[1])


def test_images_as_pixels_and_as_grids(tmp_path):
    gray, color = np.arange(24.0).reshape(2, 3, 4), np.arange(72.0).reshape(2, 3, 4, 3)
    assert read_sequences(save(tmp_path / "c.npz", X=color)).values[0].shape == (12, 3)
    assert read_sequences(save(tmp_path / "c.npz", X=color)).values[1][5].tolist() == color[1, 1, 1].tolist()
    grids = read_sequences(save(tmp_path / "c.npz", X=color), ReadSpec(as_grid=True))
    assert np.array_equal(np.stack(grids.values), color)
    first = read_sequences(
        save(tmp_path / "f.npz", X=color.transpose(0, 3, 1, 2)), ReadSpec(as_grid=True, layout="channels-time")
    )
    assert np.array_equal(np.stack(first.values), color)
    assert read_sequences(save(tmp_path / "g.npz", X=gray), ReadSpec(as_grid=True)).values[0].shape == (3, 4, 1)


def test_channels_are_chosen_by_name_in_the_order_given(tmp_path):
    files = save(tmp_path / "a.npz", X=X)
    data = read_sequences(files, ReadSpec(channels=("2", "0")))
    assert data.channels == ("2", "0")
    assert np.array_equal(np.stack(data.values), X[..., [2, 0]])
    with pytest.raises(ValueError, match=r"must be of \['0', '1', '2'\], got 'x'"):
        read_sequences(files, ReadSpec(channels=("x",)))


@pytest.mark.parametrize(
    ("y", "task", "labels", "targets"),
    [
        ([3, 1, 1, 3], "", ["3", "1", "1", "3"], [[3], [1], [1], [3]]),
        ([3, 1, 1, 3], "classify", ["3", "1", "1", "3"], None),
        ([3.0, 1.0, 1.0, 3.0], "classify", ["3", "1", "1", "3"], None),
        ([3, 1, 1, 3], "regress", None, [[3], [1], [1], [3]]),
        ([3, 1, 1, 3], "forecast", None, None),
        (["a", "b", "a", "b"], "", ["a", "b", "a", "b"], None),
        ([0.5, 1, 2, 3], "", None, [[0.5], [1], [2], [3]]),
        ([0.5, np.nan, 2, 3], "regress", None, [[0.5], [None], [2], [3]]),
        ([[1], [2], [3], [4]], "classify", ["1", "2", "3", "4"], None),
        ([[1, 5], [2, 6], [3, 7], [4, 8]], "regress", None, [[1, 5], [2, 6], [3, 7], [4, 8]]),
    ],
)
def test_outcomes_are_what_the_task_makes_of_them(tmp_path, y, task, labels, targets):
    data = read_sequences(save(tmp_path / "a.npz", X=X, y=y), task=task)
    assert (None if data.labels is None else known(data.labels).tolist()) == labels
    got = (
        None if data.targets is None else [[None if v != v else v for v in row] for row in known(data.targets).tolist()]
    )
    assert got == targets


def test_npy_with_labels_in_other_files(tmp_path):
    pytest.importorskip("pandas")
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", ["a", "b", "a", "c"])
    idx(tmp_path / "y-idx1-ubyte", np.arange(4, dtype=np.uint8))
    (tmp_path / "y.csv").write_text("a\nb\na\nc\n")
    (tmp_path / "named.csv").write_text("label\na\nb\na\nc\n")
    (tmp_path / "more.csv").write_text("who,kind,size\np,a,1.5\np,b,\nq,a,3\nq,c,4\n")
    files = [tmp_path / "X.npy"]
    assert read_sequences(files).labels is None
    for name in ("y.npy", "y.csv", "named.csv"):
        data = read_sequences(files, ReadSpec(labels_file=str(tmp_path / name)))
        assert known(data.labels).tolist() == ["a", "b", "a", "c"]
    numbered = read_sequences(files, ReadSpec(labels_file=str(tmp_path / "y-idx1-ubyte")), "classify")
    assert numbered.classes == ["0", "1", "2", "3"]
    spec = ReadSpec(
        labels_file=str(tmp_path / "more.csv"), label_column="kind", group_column="who", target_columns=("size",)
    )
    data = read_sequences(files, spec)
    assert known(data.labels).tolist() == ["a", "b", "a", "c"]
    assert known(data.groups).tolist() == ["p", "p", "q", "q"]
    assert np.array_equal(known(data.targets)[:, 0], [1.5, np.nan, 3, 4], equal_nan=True)
    assert data.target_names == ("size",)


def test_several_files_are_one_set(tmp_path):
    save(tmp_path / "a.npz", X=X, y=[0, 1, 2, 3])
    save(tmp_path / "b.npz", X=X[:2, :4], y=[7, 8])
    data = read_sequences([tmp_path / "a.npz", tmp_path / "b.npz"], task="classify")
    assert data.classes == ["0", "1", "2", "3", "7", "8"]
    assert data.lengths.tolist() == [5, 5, 5, 5, 4, 4]
    np.save(tmp_path / "y.npy", np.arange(6))
    data = read_sequences(
        [tmp_path / "a.npz", tmp_path / "b.npz"], ReadSpec(labels_file=str(tmp_path / "y.npy")), "classify"
    )
    assert data.classes == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files_find_their_labels(tmp_path, suffix):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 2)).astype(np.uint8)
    file = idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    assert read_sequences([file]).labels is None
    idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.array([5, 0, 4, 1, 9, 2], np.uint8))
    data = read_sequences([file])
    assert known(data.labels).tolist() == ["5", "0", "4", "1", "9", "2"]
    assert np.allclose(np.stack(data.values)[..., 0], images.reshape(6, 6) / 255)
    assert np.stack(read_sequences([file], ReadSpec(as_grid=True)).values).shape == (6, 3, 2, 1)


@pytest.mark.parametrize(("kind", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")])
def test_idx_of_other_types_is_big_endian_and_not_scaled(tmp_path, kind, dtype):
    array = np.array([[1, -2, 100], [4, 5, -6]], dtype)
    data = read_sequences([idx(tmp_path / "sensors.idx", array, kind)])
    assert np.array_equal(np.stack(data.values)[..., 0], array)


def test_idx_is_known_by_its_first_bytes(tmp_path):
    data = read_sequences([idx(tmp_path / "no-suffix", np.ones((2, 3), np.uint8))])
    assert data.values[0].tolist() == [[np.float32(1 / 255)]] * 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": X}, r"has no array X but \['data'\]"),
        ({"X": np.array([X[0], X[1, :2]], object)}, "X is not plain numbers .* np.savez"),
        ({"X": X, "y": np.array(["a", 1, 2, 3], object)}, "y is not plain numbers"),
        ({"X": np.array(["a", "b"])}, "X must be numbers, got <U1"),
        ({"X": X[0, :, 0]}, r"must have shape \(n, T\)"),
        ({"X": X[:0]}, "no sequences"),
        ({"X": X, "y": [1, 2]}, r"y: there must be one outcome a sequence, 4, got an array of shape \(2,\)"),
        ({"X": X, "y": np.float64(3)}, "one outcome a sequence"),
        ({"X": X[0], "y": [1, 2]}, "5 rows and y 2 outcomes; .* an array lengths"),
        ({"X": X, "groups": [1, 2]}, "groups must be one a sequence, 4, got 2"),
        ({"X": X, "channels": ["a"]}, "must name the 3 channels .* got 1"),
        ({"X": X[0], "lengths": [1, 2]}, "make 3 frames, X has 5"),
        ({"X": X[0], "lengths": [5, 0]}, "sequence .*:1' has no frames"),
        ({"X": X[0], "lengths": [7, -2]}, "lengths must be whole numbers"),
        ({"X": X[0], "lengths": [2.5, 2.5]}, "lengths must be whole numbers .* float64"),
        ({"X": X, "lengths": [5, 5, 5, 6]}, "does not fit 4 lengths up to 6"),
        ({"X": np.where(X > 1, np.inf, X)}, "infinite one .* sequence .*a.npz:"),
    ],
)
def test_npz_that_are_not_sequences_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read_sequences(save(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        ([0, np.nan, 1, 1], "classify", "labels in .*y must not be missing or NaN, got 1"),
        (["a", "", "b", "c"], "classify", "must not be missing"),
        (["a", "b", "c", "d"], "regress", "must be numbers for the task regress"),
        ([0, np.inf, 1, 1], "regress", "targets must be finite or NaN"),
        ([[0, 1]] * 4, "classify", "one label a sequence for the task classify"),
    ],
)
def test_outcomes_that_do_not_suit_the_task_are_refused(tmp_path, y, task, message):
    with pytest.raises(ValueError, match=message):
        read_sequences(save(tmp_path / "a.npz", X=X, y=y), task=task)


class Trap:
    """What a pickle could run."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickles_are_refused_and_not_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"a\.np. is no \.np. that longstream reads: .*unpickled"):
        read_sequences([tmp_path / name])
    np.save(tmp_path / "b.npy", np.array([Trap()], object))
    with pytest.raises(ValueError, match="unpickled"):
        read_sequences([tmp_path / "b.npy"])
    with pytest.raises(ValueError, match="unpickled"):
        read_sequences(save(tmp_path / "c.npz", X=np.array([Trap()], object)))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.idx", "a-idx3-ubyte.gz"])
def test_files_of_another_kind_or_cut_short_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_sequences([path])
    path.write_bytes(b"not an array at all, " * 9)
    with pytest.raises(ValueError, match=name) as refusal:
        read_sequences([path])
    assert "np.savez" not in str(refusal.value)  # advice on ragged arrays would lead astray
    if name == "a.npy":
        np.save(path, X)
    elif name == "a.npz":
        save(path, X=X)
    else:
        idx(path, np.random.default_rng(0).integers(0, 256, (3, 9, 9)).astype(np.uint8))
    read_sequences([path])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=name) as refusal:
        read_sequences([path])
    assert "\n" not in str(refusal.value)


def test_labels_that_do_not_match_in_number_are_refused(tmp_path):
    pytest.importorskip("pandas")
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "y.npy", np.arange(3))
    (tmp_path / "y.csv").write_text("a\nb\n")
    idx(tmp_path / "images-idx2-ubyte", np.ones((3, 4), np.uint8))
    idx(tmp_path / "labels-idx2-ubyte", np.ones(2, np.uint8))
    for name in ("y.npy", "y.csv"):
        with pytest.raises(ValueError, match=f"{name}.* (4|3)"):
            read_sequences([tmp_path / "X.npy"], ReadSpec(labels_file=str(tmp_path / name)))
    (tmp_path / "header.csv").write_text("label\na\nb\na\n")  # the header is not the first label
    with pytest.raises(ValueError, match=r"3 labels below a header of \['label'\], there are 4"):
        read_sequences([tmp_path / "X.npy"], ReadSpec(labels_file=str(tmp_path / "header.csv")))
    (tmp_path / "numbers.csv").write_text("3\n1\n2\n0\n")  # all different, but no header
    data = read_sequences([tmp_path / "X.npy"], ReadSpec(labels_file=str(tmp_path / "numbers.csv")))
    assert known(data.labels).tolist() == ["3", "1", "2", "0"]
    with pytest.raises(ValueError, match="labels-idx2-ubyte: there must be one outcome a sequence, 3"):
        read_sequences([tmp_path / "images-idx2-ubyte"])
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv"):
        read_sequences([tmp_path / "X.npy"], ReadSpec(labels_file=str(tmp_path / "none.csv")))
    with pytest.raises(ValueError, match="these are labels"):
        read_sequences([tmp_path / "labels-idx2-ubyte"])


def test_an_archive_and_an_array_are_not_mistaken_for_each_other(tmp_path):
    with open(tmp_path / "a.npz", "wb") as stream:
        np.save(stream, X)
    with pytest.raises(ValueError, match="it is a single array"):
        read_sequences([tmp_path / "a.npz"])
    with open(tmp_path / "a.npy", "wb") as stream:
        np.savez(stream, X=X)
    with pytest.raises(ValueError, match="it is an archive"):
        read_sequences([tmp_path / "a.npy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_column": "id"}, r"ReadSpec\.sequence_column says nothing of \.npz files, got 'id'"),
        ({"rows": "frames"}, "rows says nothing of"),
        ({"label_from": "folder"}, "label_from says nothing of"),
        ({"label_column": "y"}, "needs labels_file"),
        ({"rows": "rows"}, "must be one of 'auto', 'frames', 'sequences', got 'rows'"),
        ({"layout": "time"}, "layout must be one of"),
        ({"label_from": "name"}, "label_from must be one of"),
        ({"channels": "x"}, "channels must be a list of names, got the string 'x'"),
        ({"label_from": "file", "labels_file": "y.csv"}, "got both"),
        ({"as_grid": True}, "as_grid needs images"),
    ],
)
def test_options_without_a_use_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read_sequences(save(tmp_path / "a.npz", X=X[..., 0]), ReadSpec(**options))


def test_which_files_are_read(tmp_path):
    np.save(tmp_path / "a.npy", X)
    save(tmp_path / "b.npz", X=X)
    (tmp_path / "c.docx").write_bytes(b"words")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"one kind, got \.npy: .*a\.npy and \.npz: .*b\.npz"):
        read_sequences([tmp_path / "a.npy", tmp_path / "b.npz"])
    with pytest.raises(ValueError, match=r"c\.docx is of no kind that longstream reads .*\.npz"):
        read_sequences([tmp_path / "c.docx"])
    with pytest.raises(FileNotFoundError, match=r"no file .*d\.npy"):
        read_sequences([tmp_path / "d.npy"])
    with pytest.raises(ValueError, match="folder without WAV files"):
        read_sequences([tmp_path / "folder"])
    with pytest.raises(ValueError, match="at least one file"):
        read_sequences([])
