"""Files with bytes changed, cut or lost: read, or refused in one line; never another error."""

import gzip
import random

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_sequences, read_token_documents

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
wavfile = pytest.importorskip("scipy.io.wavfile")
pytest.importorskip("pandas")

X = np.random.default_rng(0).integers(0, 9, (4, 5, 3)).astype(np.uint8)
TRIES = 60
MAKE = {
    "a.npy": lambda path: np.save(path, X),
    "a.npz": lambda path: np.savez_compressed(path, X=X, y=np.arange(4)),
    "a.idx": lambda path: path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + b"abcdef"),
    "a.csv": lambda path: path.write_text("id,x,y\na,1,2\na,3,\nb,5,6\n"),
    "a.txt": lambda path: path.write_text("1 2 3 4\n2 3 4 5\n"),
    "a.ts": lambda path: path.write_text("@classLabel true a b\n@data\n1,2:3,4:a\n1,2:3,?:b\n"),
    "a.parquet": lambda path: pq.write_table(pa.table({"x": [[1.0, 2.0], [3.0]], "label": ["a", "b"]}), path),
    "a.fa.gz": lambda path: path.write_bytes(gzip.compress(b">a\nACGT\n>b\nGGNN\n")),
    "a.wav": lambda path: wavfile.write(path, 8000, np.zeros((30, 2), np.int16)),
}


def damage(data, chance):
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(data))
        kind = chance.random()
        if kind < 0.5:
            data[at] = chance.randrange(256)
        elif kind < 0.7:
            del data[at + 1 :]
        elif kind < 0.85:
            data[at:at] = chance.randbytes(3)
        elif len(data) > 3:
            del data[at : at + 3]
        data = data or bytearray(b"x")
    return data


@pytest.mark.parametrize("name", MAKE)
def test_damage_is_refused_in_one_line_or_leaves_something_to_read(tmp_path, name):
    path, chance, refused = tmp_path / name, random.Random(0), []
    MAKE[name](path)
    whole = path.read_bytes()
    spec = ReadSpec(sequence_column="id") if name == "a.csv" else ReadSpec()
    read_sequences([path], spec, "classify")
    for _ in range(TRIES):
        path.write_bytes(damage(bytearray(whole), chance))
        for read in (lambda: read_sequences([path], spec, "classify"), lambda: read_token_documents(path)):
            try:
                read()
            except ValueError as error:
                refused.append(str(error))
    assert len(refused) > TRIES / 4
    assert not any("\n" in message for message in refused)


def test_what_libraries_trip_over_is_refused(tmp_path):
    MAKE["a.npy"](tmp_path / "a.npy")
    header = (tmp_path / "a.npy").read_bytes().replace(b"(4, 5, 3), }", b"(4, 5, 3   ")
    (tmp_path / "a.npy").write_bytes(header)  # numpy's own parser fails with tokenize.TokenError
    with pytest.raises(ValueError, match=r"a\.npy is no \.npy"):
        read_sequences([tmp_path / "a.npy"])
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(9, np.int16))
    sound = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(sound.replace(b"data", b"dada"))  # scipy's with UnboundLocalError
    with pytest.raises(ValueError, match=r"a\.wav is no WAV"):
        read_sequences([tmp_path / "a.wav"])
