"""FASTA and WAV, and their labels from other files or from the names of files and folders."""

import gzip
import struct
import wave

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_sequences, spec
from longstream.sequences.wav import load_wav
from tests.sequences.known import known

pytest.importorskip("pandas")
wavfile = pytest.importorskip("scipy.io.wavfile")

GENOME = ">one first record\nACgt\r\nNU\n\n>two\nRYac-\n>three:1-2\nT"


def fasta(path, text=GENOME):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def sound(path, samples=(0.0, 0.5), rate=8000):
    path.parent.mkdir(exist_ok=True)
    wavfile.write(path, rate, np.array(samples, np.float32))
    return path


@pytest.mark.parametrize("name", ["a.fa", "a.fasta", "a.fna.gz", "A.FA"])
def test_fasta_is_one_channel_a_base(tmp_path, name):
    data = read_sequences([fasta(tmp_path / name)])
    assert data.channels == ("A", "C", "G", "T")
    assert [name.partition(":")[2] for name in data.names] == ["one", "two", "three:1-2"]
    assert data.lengths.tolist() == [6, 5, 1]
    none = [np.nan] * 4
    first = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], none, [0, 0, 0, 1]]
    assert np.array_equal(data.values[0], first, equal_nan=True)
    assert np.array_equal(data.values[1], [none, none, *first[:2], none], equal_nan=True)
    assert data.values[2].tolist() == [[0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACGT\n", "must begin with '>', got b'ACGT"),
        (">a\nAC\n>b\n>c\nGT\n", "record 'b' has no symbols"),
        (">a\nAC1\n", "must hold letters, .* got b'1'"),
        (">p\nMKLV\n", "record 'p' is no DNA or RNA: 'L' stands for no base"),
    ],
)
def test_bad_fasta_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_sequences([fasta(tmp_path / "a.fa", text)])


def test_fasta_packed_in_pieces_and_cut_short(tmp_path):
    whole, half = tmp_path / "a.fa.gz", GENOME.encode()
    whole.write_bytes(gzip.compress(half[:20]) + gzip.compress(half[20:]))
    assert len(read_sequences([whole])) == 3
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_sequences([whole])
    whole.write_bytes(half)
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_sequences([whole])


@pytest.mark.parametrize(("width", "scale"), [(1, 2**7), (2, 2**15), (3, 2**23), (4, 2**31)])
def test_pcm_of_every_width_is_scaled_to_one(tmp_path, width, scale):
    levels = [-scale, -1, 0, 1, scale // 2, scale - 1]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(8000)
        frames = [level + (128 if width == 1 else 0) for level in levels]
        file.writeframes(b"".join(frame.to_bytes(width, "little", signed=width > 1) for frame in frames))
    data = read_sequences([tmp_path / "a.wav"])
    assert data.values[0].shape == (3, 2)
    assert np.allclose(data.values[0].ravel(), np.array(levels) / scale, rtol=0, atol=1e-7)
    assert data.values[0].min() == -1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sound_of_floats_is_taken_as_it_is(tmp_path, dtype):
    wavfile.write(tmp_path / "a.wav", 8000, np.array([0.25, -1.5], dtype))
    assert load_wav(tmp_path / "a.wav")[0] == 8000
    assert read_sequences([tmp_path / "a.wav"]).values[0].tolist() == [[0.25], [-1.5]]


def test_chunks_that_are_no_sound_are_passed_over(tmp_path):
    file = sound(tmp_path / "a.wav")
    data = file.read_bytes()
    chunk = b"abcd" + struct.pack("<I", 3) + b"xyz\0"
    size = struct.pack("<I", len(data) - 8 + len(chunk))
    file.write_bytes(data[:4] + size + data[8:12] + chunk + data[12:])
    assert read_sequences([file, sound(tmp_path / "b.wav")]).values[0].tolist() == [[0], [0.5]]


def test_bad_sound_is_refused(tmp_path):
    file = sound(tmp_path / "a.wav", np.zeros(999))
    whole = file.read_bytes()
    for data in (whole[:-500], whole[:30], whole[:44], b"RIFF" + b"junk" * 9, b"ID3 mp3" * 9):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.wav.*(no WAV|no frames)") as refusal:
            read_sequences([file])
        assert "\n" not in str(refusal.value)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_sequences([file])


def test_sounds_of_two_rates_or_channel_counts_are_refused(tmp_path):
    one, other = sound(tmp_path / "a.wav"), sound(tmp_path / "b.wav", rate=16000)
    with pytest.raises(ValueError, match=r"one sampling rate: .*a\.wav has 8000 Hz, .*b\.wav 16000 Hz"):
        read_sequences([one, other])
    stereo = sound(tmp_path / "c.wav", [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"mixed channel counts: .*c\.wav' has .*a\.wav"):
        read_sequences([one, stereo])


def test_labels_from_folders_and_names(tmp_path, monkeypatch):
    for name in ("de/1.wav", "de/2.wav", "fr/1.wav"):
        sound(tmp_path / name)
    data = read_sequences([tmp_path], ReadSpec(label_from="folder"))
    assert known(data.labels).tolist() == ["de", "de", "fr"]
    monkeypatch.chdir(tmp_path / "fr")
    assert read_sequences(["1.wav"], ReadSpec(label_from="folder")).classes == ["fr"]
    data = read_sequences([tmp_path / "de" / "2.wav"], ReadSpec(label_from="file"))
    assert data.classes == ["2"]
    genomes = [fasta(tmp_path / "Ecoli.fa.gz"), fasta(tmp_path / "Hpylori.fna")]
    assert read_sequences(genomes, ReadSpec(label_from="file")).classes == ["Ecoli", "Hpylori"]


def test_labels_from_a_file_by_name(tmp_path):
    files = [sound(tmp_path / name) for name in ("de/1.wav", "de/2.wav", "fr/3.wav")]
    labels = tmp_path / "labels.csv"
    for rows in (
        "name,label\n3,c\n1.wav,a\nde/2.wav,b\nspare,d\n",  # in another order, by all the names there are
        f"file,who,label\n{files[2]},p,c\n1,q,a\n2,q,b\n",
        "1,a\n2,b\n3,c\n",
        "1.wav;a\n2.wav;b\n3.wav;c\n",
    ):
        labels.write_text(rows)
        data = read_sequences(files, ReadSpec(labels_file=str(labels)))
        assert known(data.labels).tolist() == ["a", "b", "c"]
    labels.write_text("name,who,size,kind\n1,p,0.5,a\n2,p,,b\n3,q,2,c\n")
    data = read_sequences(
        files,
        ReadSpec(labels_file=str(labels), label_column="kind", group_column="who", target_columns=("size",)),
    )
    assert (known(data.labels).tolist(), known(data.groups).tolist()) == (["a", "b", "c"], ["p", "p", "q"])
    assert np.array_equal(known(data.targets), [[0.5], [np.nan], [2]], equal_nan=True)
    data = read_sequences(files, ReadSpec(labels_file=str(labels), label_column="size"), "regress")
    assert np.array_equal(known(data.targets), [[0.5], [np.nan], [2]], equal_nan=True)


def test_labels_of_the_records_of_a_genome(tmp_path):
    (tmp_path / "y.csv").write_text("record,label\nthree:1-2,c\none,a\ntwo,b\n")
    data = read_sequences([fasta(tmp_path / "a.fa")], ReadSpec(labels_file=str(tmp_path / "y.csv")))
    assert known(data.labels).tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("name,label\n1,a\n", {}, r"no label for .*fr/1\.wav|may be"),
        ("name,label\nde/1.wav,a\n", {}, r"has no label for .*1\.wav' .1 of 2 have none."),
        ("name,label\n1,a\n1,b\n", {}, "names '1' twice"),
        ("name,label\n1.wav,a\n", {}, r"'1\.wav' may be .*de/1\.wav' or .*fr/1\.wav'; name them by their paths"),
        ("label\na\nb\n", {}, "got one column"),
        ("name,label\nde/1.wav,a\nfr/1.wav,\n", {}, "column 'label' must not be missing or NaN"),
        ("name,label\nde/1.wav,a\nfr/1.wav,b\n", {"label_column": "kind"}, "no column 'kind'; its columns are"),
        ("name,size\nde/1.wav,1\nfr/1.wav,b\n", {"target_columns": ("size",)}, "column 'size' is not numeric: 'b'"),
    ],
)
def test_labels_that_do_not_match_are_refused(tmp_path, rows, options, message):
    files = [sound(tmp_path / "de" / "1.wav"), sound(tmp_path / "fr" / "1.wav")]
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        read_sequences(files, ReadSpec(labels_file=str(tmp_path / "labels.csv"), **options))


def test_a_package_that_is_not_installed_is_named_with_its_extra():
    message = r"reading a.wav needs .*No module named 'nowhere'.*pip install 'longstream\[data\]'"
    with pytest.raises(ModuleNotFoundError, match=message) as refusal, spec.extra("reading a.wav"):
        __import__("nowhere")
    assert refusal.value.name == "nowhere"
