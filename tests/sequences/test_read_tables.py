"""Tables: CSV, UCR's text, .ts, Parquet and saved datasets; a row a frame, a row a sequence, cells that are lists."""

import gzip

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_sequences
from tests.sequences.known import known

pd = pytest.importorskip("pandas")

FRAMES = """id,x,y,kind,size,who
b,1,10,walk,1.5,ann
b,2,,walk,1.5,ann
a,3,30,run,,bob
a,4,40,run,,bob
a,5,50,run,,bob
"""
SPEC = ReadSpec(sequence_column="id", label_column="kind", target_columns=("size",), group_column="who")


def write(path, text):
    path.write_bytes(gzip.compress(text.encode())) if path.suffix == ".gz" else path.write_text(text)
    return [path]


def lists(data):
    return [[None if v != v else v for v in value[..., 0].tolist()] for value in data.values]


def check_frames(data):
    assert data.channels == ("x", "y")
    assert [value[:, 0].tolist() for value in data.values] == [[1, 2], [3, 4, 5]]
    assert np.array_equal(data.values[0][:, 1], [10, np.nan], equal_nan=True)
    assert known(data.labels).tolist() == ["walk", "run"]
    assert np.array_equal(known(data.targets), [[1.5], [np.nan]], equal_nan=True)
    assert data.target_names == ("size",)
    assert known(data.groups).tolist() == ["ann", "bob"]
    assert [name.rpartition(":")[2] for name in data.names] == ["b", "a"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_rows_are_frames_of_the_sequence_they_name(tmp_path, name, separator):
    check_frames(read_sequences(write(tmp_path / name, FRAMES.replace(",", separator)), SPEC))


def test_windows_text_with_its_mark_and_line_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + FRAMES.replace("\n", "\r\n").encode())
    check_frames(read_sequences([tmp_path / "a.csv"], SPEC))


def test_lines_that_are_blank_are_passed_over(tmp_path):
    check_frames(read_sequences(write(tmp_path / "a.csv", "\n\n" + FRAMES.replace("\nb", "\n\nb")), SPEC))
    assert lists(read_sequences(write(tmp_path / "a.txt", "\n1 2\n\n2 3\n\n"))) == [[2], [3]]


def test_rows_of_sequences_may_be_interleaved(tmp_path):
    data = read_sequences(
        write(tmp_path / "a.csv", "t,id\n1,q\n10,p\n2,q\n20,p\n3,q\n"), ReadSpec(sequence_column="id")
    )
    assert lists(data) == [[1, 2, 3], [10, 20]]
    assert data.channels == ("t",)


def test_a_table_without_sequence_column_is_one_sequence_a_file(tmp_path):
    one, other = write(tmp_path / "a.csv", "x,y\n1,2\n3,4\n"), write(tmp_path / "b.csv", "x,y\n5,6\n")
    data = read_sequences(one + other, ReadSpec(channels=("y", "x")))
    assert data.channels == ("y", "x")
    assert [value.tolist() for value in data.values] == [[[2, 1], [4, 3]], [[6, 5]]]
    assert data.names == (str(one[0]), str(other[0]))


def test_a_table_without_header_has_numbered_channels(tmp_path):
    assert read_sequences(write(tmp_path / "a.csv", "1.5,2\n3,4\n")).channels == ("0", "1")
    numbered = read_sequences(write(tmp_path / "b.csv", "0,1,2\n5,6,7\n"))  # as pandas writes a nameless array
    assert (numbered.channels, numbered.values[0].tolist()) == (("0", "1", "2"), [[5, 6, 7]])


def test_a_first_line_of_numbers_and_words_is_a_header_where_it_can_be(tmp_path):
    assert read_sequences(write(tmp_path / "a.csv", "t,0,1\n1,2,3\n")).channels == ("t", "0", "1")
    with pytest.raises(ValueError, match="column '1' is not numeric: 'walk' in row 0"):
        read_sequences(write(tmp_path / "b.csv", "1.5,walk\n2.5,walk\n"))
    ramp = read_sequences(write(tmp_path / "c.txt", "1 1 2 3\n2 4 5 6\n"), task="classify")
    assert lists(ramp) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("missing", ["", "nan", "NA", "null", "?"])
def test_an_empty_cell_is_missing(tmp_path, missing):
    data = read_sequences(write(tmp_path / "a.csv", f"x,y\n1,{missing}\n{missing},4\n"))
    assert np.array_equal(data.values[0], [[1, np.nan], [np.nan, 4]], equal_nan=True)


def test_labels_stay_as_they_are_written_but_for_the_point_of_whole_numbers(tmp_path):
    text = "id,x,kind\n1,5,{}\n2,6,{}\n"
    spec = ReadSpec(sequence_column="id", label_column="kind")
    for given, expected in (
        (("007", "8"), ["007", "8"]),
        (("3.0", "4.0"), ["3", "4"]),
        (("1.0000e+00", "2.0"), ["1", "2"]),
        (("1.5", "2.0"), ["1.5", "2.0"]),
        (("None", "NA"), ["None", "NA"]),
        (('"a, b"', " c"), ["a, b", "c"]),
    ):
        data = read_sequences(write(tmp_path / "a.csv", text.format(*given)), spec)
        assert known(data.labels).tolist() == expected


UCR = "1 0.5 1.5 2.5\n2 3 4 NaN\n1 5 NaN 7\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", UCR),
        ("a.txt", "  " + UCR.replace(" ", "   ")),
        ("a.txt.gz", UCR.replace("1 0.5", "1.0000e+00 5.0e-1")),
        ("a.tsv", UCR.replace(" ", "\t")),
        ("a.txt", UCR.replace(" ", ",")),
        ("a.tsv", "2\t3\t4\n".join(["1\t0.5\t1.5\t2.5\n", "1\t5\t\t7\n"])),
    ],
)
def test_ucr_text_is_a_label_and_a_sequence_a_row(tmp_path, name, text):
    data = read_sequences(write(tmp_path / name, text), task="classify")
    assert known(data.labels).tolist() == ["1", "2", "1"]
    assert data.targets is None
    assert lists(data) == [[0.5, 1.5, 2.5], [3, 4], [5, None, 7]]


def test_ucr_rows_longer_than_the_first(tmp_path):
    data = read_sequences(write(tmp_path / "a.txt", "a 1\nb 2 3 4\n"))
    assert lists(data) == [[1], [2, 3, 4]]
    assert data.classes == ["a", "b"]


def test_ucr_labels_are_targets_for_regression(tmp_path):
    data = read_sequences(write(tmp_path / "a.txt", "0.5 1 2\n1.5 3 4\n"), task="regress")
    assert data.labels is None
    assert known(data.targets).tolist() == [[0.5], [1.5]]
    data = read_sequences(write(tmp_path / "b.txt", "0.5 1 2\nNaN 3 4\n"), task="regress")
    assert np.array_equal(known(data.targets), [[0.5], [np.nan]], equal_nan=True)
    with pytest.raises(ValueError, match="column '0' is not numeric: 'walk' in row 0"):
        read_sequences(write(tmp_path / "c.txt", "walk 1 2\n"), task="regress")


def test_csv_with_a_sequence_a_row(tmp_path):
    text = "0,1,2,label,who,size\n1,2,3,a,p,1.5\n4,5,,b,q,\n"
    spec = ReadSpec(rows="sequences", label_column="label", group_column="who", target_columns=("size",))
    data = read_sequences(write(tmp_path / "a.csv", text), spec)
    assert lists(data) == [[1, 2, 3], [4, 5]]
    assert data.channels == ("0",)
    assert known(data.labels).tolist() == ["a", "b"]
    assert known(data.groups).tolist() == ["p", "q"]
    assert np.array_equal(known(data.targets), [[1.5], [np.nan]], equal_nan=True)
    header = read_sequences(write(tmp_path / "b.csv", "y,t0,t1\nred,1,2\n"), ReadSpec(rows="sequences"))
    assert (header.classes, lists(header)) == (["red"], [[1, 2]])
    numbered = read_sequences(write(tmp_path / "c.csv", "y,0,1\n3,5,7\n"), ReadSpec(rows="sequences"))
    assert (numbered.classes, lists(numbered)) == (["3"], [[5, 7]])
    plain = read_sequences(write(tmp_path / "d.csv", "red,5,7\nred,1,2\n"), ReadSpec(rows="sequences"))
    assert (len(plain), lists(plain)) == (2, [[5, 7], [1, 2]])


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.csv", FRAMES, {}, "column 'id' is not numeric: 'b' in row 0; name the columns"),
        ("a.csv", "x,when\n1,2020-01-01\n", {}, "column 'when' is not numeric: '2020-01-01'"),
        ("a.csv", "x\n1\n2\nx3\n", {}, "column 'x' is not numeric: 'x3' in row 2"),
        ("a.csv", FRAMES, {"sequence_column": "Id"}, "no column 'Id'; its columns are 'id', 'x'"),
        ("a.csv", FRAMES, {"channels": ("z",)}, "no column 'z'"),
        ("a.csv", "id,x,kind\na,1,u\na,2,v\n", {"sequence_column": "id", "label_column": "kind"}, "a.csv:a: column"),
        ("a.csv", "id,x,kind\na,1,u\nb,2,\n", {"sequence_column": "id", "label_column": "kind"}, "first in row 1"),
        ("a.csv", "id,x,k\na,1,3\na,2,4\n", {"sequence_column": "id", "target_columns": ("k",)}, "got 3.0 and 4.0"),
        ("a.csv", "id,x\na,1\n,2\n", {"sequence_column": "id"}, "column 'id' must not be missing"),
        ("a.csv", "id\na\n", {"sequence_column": "id"}, "no column left for the values"),
        ("a.csv", "x,y\n", {}, "has no rows below its header"),
        ("a.csv", "\n\n", {}, "it has no lines"),
        ("a.csv", "x,x\n1,2\n", {}, "two columns have the name 'x'"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", {}, "is no table"),
        ("a.csv", "x,y\n1,inf\n", {}, "infinite one .*channel 'y'"),
        ("a.csv", "x\n1e200\n", {}, "beyond float32"),
        ("a.csv", "0.5,1\n2,3\n", {"rows": "sequences", "sequence_column": "0"}, "here a row is a sequence"),
        ("a.txt", "nan 1 2\n1 3 4\n", {}, "column '0' must not be missing or NaN, got 1 such, first in row 0"),
        ("a.txt", "1 NaN NaN\n2 1 2\n", {}, "row 0 has no values"),
        ("a.txt", "1 2 three\n1 2 3\n", {}, "column '2' is not numeric: 'three' in row 0"),
        ("a.txt", "1\n2\n", {}, "no column left for the values"),
        ("a.csv", FRAMES, {"labels_file": "y.csv"}, "labels_file says nothing of CSV files"),
    ],
)
def test_bad_tables_are_refused(tmp_path, name, text, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read_sequences(write(tmp_path / name, text), ReadSpec(**options))
    assert "\n" not in str(refusal.value)


def test_what_is_no_text_is_refused(tmp_path):
    for data, message in ((b"\x89PNG\r\n\xff" * 9, "not text in UTF-8"), (b"a\0b\n" * 9, "it is not text")):
        (tmp_path / "a.csv").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_sequences([tmp_path / "a.csv"])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x\n1\n" * 99)[:-9])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_sequences([tmp_path / "a.csv.gz"])


def test_a_mistyped_set_of_many_columns_has_a_short_message(tmp_path):
    header = ",".join(f"column {i}" for i in range(500))
    with pytest.raises(ValueError, match=r"\.\.\. \(500 in all\)") as refusal:
        read_sequences(write(tmp_path / "a.csv", header + "\n" + "1," * 499 + "1\n"), ReadSpec(channels=("x",)))
    assert len(str(refusal.value)) < 1000


TS = """# a comment
@problemName walks
@timestamps false
@univariate false
@dimensions 2
@equalLength false
@classLabel true walk run
@data
1,2,?:4,5,6:walk
7,8:9,10:run
"""


def test_ts_of_the_archives(tmp_path):
    data = read_sequences(write(tmp_path / "a.ts", TS))
    assert np.array_equal(data.values[0], [[1, 4], [2, 5], [np.nan, 6]], equal_nan=True)
    assert data.values[1].tolist() == [[7, 9], [8, 10]]
    assert data.classes == ["run", "walk"]
    target = TS.replace("@classLabel true walk run", "@targetLabel true").replace("walk\n", "0.5\n").replace("run", "?")
    target = target.replace("0.5\n@", "walks\n@")
    data = read_sequences(write(tmp_path / "b.ts", target), task="regress")
    assert np.array_equal(known(data.targets), [[0.5], [np.nan]], equal_nan=True)
    bare = TS.replace("@classLabel true walk run", "@classLabel false").replace(":walk", "").replace(":run", "")
    assert read_sequences(write(tmp_path / "c.ts", bare)).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TS.replace("@data\n", ""), "@data must follow"),
        (TS.replace("timestamps false", "timestamps true"), "time stamps"),
        (TS.partition("1,2")[0], "no cases below @data"),
        (TS.replace("8:", "8,8:"), r"case 1 must have one length, got \[3, 2\]"),
        (TS.replace("4,5", "4,five"), "case 0 is not of numbers"),
        (TS.replace("7,8:9,10:run", "7,8:run"), "mixed channel counts"),
        (TS.replace(":run", ":"), "labels must not be missing"),
    ],
)
def test_bad_ts_files_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sequences(write(tmp_path / "a.ts", text))
