"""Files that are not text as documents of bytes."""

import wave

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_token_documents

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
pytest.importorskip("scipy")

TEXT = ReadSpec(text_column="text")


def documents(path, spec=None):
    found = read_token_documents(path, spec)
    assert found is not None
    names, contents = zip(*found, strict=True)
    assert len(set(names)) == len(names)
    assert all(name.startswith(str(path)) for name in names)
    return list(contents)


def test_fasta_is_its_letters(tmp_path):
    (tmp_path / "a.fa").write_bytes(b">x one\nACgt\r\nnnNN\n>y\nMK*\n")
    assert documents(tmp_path / "a.fa") == [b"ACGTNNNN", b"MK*"]
    names = [name for name, _ in read_token_documents(tmp_path / "a.fa") or []]
    assert names == [f"{tmp_path / 'a.fa'}:x", f"{tmp_path / 'a.fa'}:y"]


def test_arrays_of_bytes(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array[0, 0])
    np.savez(tmp_path / "c.npz", X=array.ravel(), lengths=[20, 4])
    (tmp_path / "d.idx").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + b"abcdef")
    assert documents(tmp_path / "a.npy") == [bytes(range(12)), bytes(range(12, 24))]
    assert documents(tmp_path / "b.npy") == [bytes(range(4))]
    assert documents(tmp_path / "c.npz") == [bytes(range(20)), bytes(range(20, 24))]
    assert documents(tmp_path / "d.idx") == [b"abc", b"def"]


def test_sound_is_mu_law(tmp_path):
    levels = np.array([0, 32767, -32768, 8192, -8192, 100], "<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(levels.tobytes())
    (codes,) = documents(tmp_path / "a.wav")
    assert codes[:3] == bytes([128, 255, 0])
    expanded = 2 * np.frombuffer(codes, np.uint8).astype(float) / 255 - 1  # the law's inverse, G.711
    back = np.sign(expanded) * (256 ** np.abs(expanded) - 1) / 255
    assert np.allclose(back, levels / 32768, atol=0.01)
    assert abs(back[5] - 100 / 32768) < 0.0005  # fine where it is quiet


def test_texts_of_tables(tmp_path):
    frame = pd.DataFrame({"text": ["où, là\nbas", "NA"], "n": [1, 2]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_pandas(frame).save_to_disk(tmp_path / "saved")
    expected = ["où, là\nbas".encode(), b"NA"]
    assert documents(tmp_path / "a.csv", TEXT) == expected
    for name in ("a.parquet", "saved"):
        assert documents(tmp_path / name) == documents(tmp_path / name, TEXT) == expected
    frame.rename(columns={"text": "body"}).to_parquet(tmp_path / "b.parquet")
    assert documents(tmp_path / "b.parquet", ReadSpec(text_column="body")) == expected


def test_other_files_are_left_to_be_read_as_they_stand(tmp_path):
    for name, data in (("a.txt", b"text"), ("a.csv", b"a,b\n1,2\n"), ("a", b""), ("a.py", b"\0\0\x08\x01")):
        (tmp_path / name).write_bytes(data)
        assert read_token_documents(tmp_path / name) is None, name
    assert read_token_documents(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.npy", lambda path: np.save(path, np.zeros((2, 3))), "arrays of bytes, uint8, got float64 of shape"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 0), np.uint8)), "has no bytes"),
        ("a.npz", lambda path: np.savez(path, X=np.zeros(3, np.uint8), lengths=[1, 1]), "make the 3 entries"),
        ("a.npz", lambda path: np.savez(path, X=np.zeros(3, np.uint8), lengths=[0, 3]), "lengths must be >= 1"),
        ("a.npy", lambda path: path.write_bytes(b"text"), "is no .npy"),
        ("a.fa", lambda path: path.write_bytes(b"text"), "is no FASTA"),
        ("a.wav", lambda path: path.write_bytes(b"text"), "is no WAV"),
        ("a.parquet", lambda path: path.write_bytes(b"text"), "is no Parquet"),
        ("a.parquet", lambda path: pd.DataFrame({"x": [1]}).to_parquet(path), "no column 'text': .* there are 'x'"),
        ("a.parquet", lambda path: pd.DataFrame({"text": ["a", None]}).to_parquet(path), "must hold text, .* row 1"),
        ("a.parquet", lambda path: pd.DataFrame({"text": [1, 2]}).to_parquet(path), "must hold text, got 1 in row 0"),
        ("a.csv", lambda path: path.write_bytes(b"a,b\n1,2\n"), "no column 'text'"),
        ("a.csv", lambda path: path.write_bytes(b"text,b\n,2\n"), "must hold text"),
    ],
)
def test_damaged_or_unsuitable_files_are_refused(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_token_documents(tmp_path / name, TEXT)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_token_documents(tmp_path / "a.fa")
