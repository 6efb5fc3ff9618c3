"""Parquet and datasets saved to disk: rows that are frames, and cells that are lists."""

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_sequences
from tests.sequences.known import known

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

LISTS = {"x": [[1, 2, None], [4.5]], "y": [[5, 6, 7], [8]], "label": ["a", "b"], "who": [1, 2], "note": ["?", None]}
NESTED = {"X": [[[1, 2], [3, 4], [5, None]], [[7, 8]]], "label": [1, 0]}


def parquet(path, columns):
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return [path]


def saved(path, columns, **more):
    datasets.Dataset.from_dict(columns, **more).save_to_disk(path)
    return [path]


@pytest.fixture(params=[parquet, saved])
def write(request):
    return request.param


def check(data, *expected):
    for value, wanted in zip(data.values, expected, strict=True):
        assert np.array_equal(value, np.array(wanted, np.float32), equal_nan=True)


def test_columns_of_lists_are_channels(tmp_path, write):
    data = read_sequences(write(tmp_path / "a.parquet", LISTS), ReadSpec(group_column="who"))
    check(data, [[1, 5], [2, 6], [np.nan, 7]], [[4.5, 8]])
    assert data.channels == ("x", "y")
    assert known(data.labels).tolist() == ["a", "b"]
    assert known(data.groups).tolist() == ["1", "2"]
    check(read_sequences(write(tmp_path / "b.parquet", LISTS), ReadSpec(channels=("y",))), [[5], [6], [7]], [[8]])


def test_lists_of_lists_are_frames_of_channels(tmp_path, write):
    files = write(tmp_path / "a.parquet", NESTED)
    data = read_sequences(files)
    check(data, [[1, 2], [3, 4], [5, np.nan]], [[7, 8]])
    assert known(data.labels).tolist() == ["1", "0"]
    first = {"X": [[[1, 3, 5], [2, 4, None]], [[7], [8]]]}
    check(
        read_sequences(write(tmp_path / "b.parquet", first), ReadSpec(layout="channels-time")),
        *([[1, 2], [3, 4], [5, np.nan]], [[7, 8]]),
    )


def test_numbers_to_predict(tmp_path, write):
    columns = {"x": [[1.0], [2.0]], "p": [1.5, None], "label": [2, 3]}
    data = read_sequences(write(tmp_path / "a.parquet", columns), ReadSpec(target_columns=("p", "label")))
    assert np.array_equal(known(data.targets), [[1.5, 2], [np.nan, 3]], equal_nan=True)
    assert data.target_names == ("p", "label")
    data = read_sequences(write(tmp_path / "b.parquet", columns), ReadSpec(label_column="p"), "regress")
    assert (data.labels, data.target_names) == (None, ("target",))


def test_rows_are_frames_where_no_cell_is_a_list(tmp_path, write):
    columns = {"id": ["b", "b", "a"], "x": [1, 2, 3], "on": [True, False, True], "kind": ["u", "u", "v"]}
    spec = ReadSpec(sequence_column="id", label_column="kind")
    data = read_sequences(write(tmp_path / "a.parquet", columns), spec)
    check(data, [[1, 1], [2, 0]], [[3, 1]])
    assert data.channels == ("x", "on")
    assert known(data.labels).tolist() == ["u", "v"]
    wide = {"y": ["p", "q"], "t0": [1.0, 2.0], "t1": [3.0, None]}
    check(read_sequences(write(tmp_path / "b.parquet", wide), ReadSpec(rows="sequences")), [[1], [3]], [[2]])


def test_types_of_parquet(tmp_path):
    table = pa.table(
        {
            "i": pa.array([1, None], pa.int64()),
            "f": pa.array([1.5, None], pa.float16()),
            "b": pa.array([True, None]),
            "u": pa.array([255, 0], pa.uint8()),
            "d": pa.array([1, 2], pa.int32()).cast(pa.decimal128(12, 2)),
        }
    )
    check(read_sequences(parquet(tmp_path / "a.parquet", table)), [[1, 1.5, 1, 255, 1], [np.nan] * 3 + [0, 2]])
    columns = {
        "large": pa.array([[1, 2]], pa.large_list(pa.int16())),
        "fixed": pa.array([[3, 4]], pa.list_(pa.float64(), 2)),
        "flag": pa.array([[True, None]]),
    }
    check(read_sequences(parquet(tmp_path / "b.parquet", columns)), [[1, 3, 1], [2, 4, np.nan]])
    dates = pa.table({"x": [1], "when": pa.array([0], pa.timestamp("s"))})
    with pytest.raises(ValueError, match="column 'when' is not numeric: '1970-01-01"):
        read_sequences(parquet(tmp_path / "c.parquet", dates))


def test_a_folder_name_with_an_equals_sign_adds_no_column(tmp_path):
    (tmp_path / "k=7").mkdir()
    assert read_sequences(parquet(tmp_path / "k=7" / "a.parquet", {"x": [1, 2]})).channels == ("x",)


def test_class_labels_by_their_names(tmp_path):
    features = datasets.Features(
        {
            "X": datasets.Array2D((3, 2), "float32"),
            "kind": datasets.ClassLabel(names=["rest", "walk"]),
        }
    )
    X = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    files = saved(tmp_path / "a", {"X": X, "kind": [1, 0]}, features=features)
    data = read_sequences(files, ReadSpec(label_column="kind"))
    assert known(data.labels).tolist() == ["walk", "rest"]
    check(data, *X)
    check(read_sequences(files, ReadSpec(as_grid=True)), *X[..., None])
    files = saved(tmp_path / "b", {"X": X, "kind": [1, -1]}, features=features)
    with pytest.raises(ValueError, match="column 'kind' must not be missing or NaN, got 1"):
        read_sequences(files, ReadSpec(label_column="kind"))


def test_images_of_lists(tmp_path):
    image = np.arange(12.0).reshape(1, 2, 3, 2)
    files = parquet(tmp_path / "a.parquet", {"image": image.tolist()})
    check(read_sequences(files), image[0].reshape(6, 2))
    check(read_sequences(files, ReadSpec(as_grid=True)), image[0])


def test_images_are_decoded(tmp_path):
    pytest.importorskip("PIL")
    gray = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    files = saved(tmp_path / "a", {"image": list(gray), "label": [1, 0]}, features=features)
    data = read_sequences(files, task="classify")
    check(data, *gray.reshape(2, 12, 1) / 255)
    assert known(data.labels).tolist() == ["dog", "cat"]
    check(read_sequences(files, ReadSpec(as_grid=True)), *gray[..., None] / 255)
    with pytest.raises(ValueError, match="column 'image' holds images; with rows='frames'"):
        read_sequences(files, ReadSpec(rows="frames"))
    color = np.arange(36, dtype=np.uint8).reshape(1, 3, 4, 3)
    features = datasets.Features({"image": datasets.Image(), "x": datasets.List(datasets.Value("float32"))})
    files = saved(tmp_path / "b", {"image": list(color), "x": [[1.0]]}, features=features)
    check(read_sequences(files, ReadSpec(channels=("image",))), *color.reshape(1, 12, 3) / 255)
    with pytest.raises(ValueError, match=r"columns \['x', 'image'\] hold images or sequences; choose one"):
        read_sequences(files)


def test_a_dataset_that_was_shuffled_is_read_in_its_new_order(tmp_path):
    rows = datasets.Dataset.from_dict({"x": [[1.0], [2.0], [3.0]]}).select([2, 0])
    rows.save_to_disk(tmp_path / "a")
    check(read_sequences([tmp_path / "a"]), [[3]], [[1]])


def test_a_dictionary_of_datasets_names_its_parts(tmp_path):
    one = datasets.Dataset.from_dict({"x": [[1.0]]})
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match=r"several datasets: give one of .*a/train, .*a/test"):
        read_sequences([tmp_path / "a"])
    check(read_sequences([tmp_path / "a" / "test"]), [[1]])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"x": [[1, 2], None]}, {}, r"row 1 is empty \(null\)"),
        ({"x": [[1, 2], []]}, {}, "no frames"),
        ({"x": [[1, 2]], "y": [[1]]}, {}, "row 0 has 2 frames in column 'x', 1 in 'y'"),
        ({"X": [[[1, 2], [3]]]}, {}, "lists of row 0 differ in length"),
        ({"X": [[[1, 2]], [[3]]]}, {}, "mixed channel counts"),
        ({"X": [[[1, 2]], []]}, {}, "row 1 has no frames"),
        ({"X": [[[1, 2]]], "y": [[3]]}, {}, "lists of lists; choose one with channels"),
        ({"x": [["a", "b"]]}, {}, "column 'x' must hold numbers, got string"),
        (LISTS, {"label_column": "kind"}, "no column 'kind'; its columns are 'x', 'y', 'label'"),
        (LISTS, {"label_column": "note"}, "column 'note' must not be missing or NaN, got 1 such, first in row 1"),
        (LISTS, {"sequence_column": "who"}, "is for rows='frames'"),
        (LISTS, {"rows": "frames"}, "column 'x' holds lists"),
        (LISTS, {"target_columns": ("label",)}, "column 'label' is not numeric: 'a'"),
        (LISTS, {"label_from": "folder"}, "label_from says nothing of Parquet files"),
        ({"x": []}, {}, "has no rows"),
        ({"x": [[np.inf]]}, {}, "infinite"),
    ],
)
def test_bad_columns_are_refused(tmp_path, columns, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read_sequences(parquet(tmp_path / "a.parquet", columns), ReadSpec(**options))
    assert "\n" not in str(refusal.value)


def test_damaged_files_and_folders_are_refused(tmp_path):
    (file,) = parquet(tmp_path / "a.parquet", LISTS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file, or damaged"):
        read_sequences([file])
    (folder,) = saved(tmp_path / "b", LISTS)
    next(folder.glob("*.arrow")).write_bytes(b"no arrows")
    with pytest.raises(ValueError, match="is no dataset that was saved to disk, or damaged") as refusal:
        read_sequences([folder])
    assert "\n" not in str(refusal.value)
