"""A user's own files: what is read of them, and what is said of damaged and wrong ones."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from longstream.sequences import ReadSpec, read_sequences
from longstream.tasks import make_task
from longstream.tasks._base import SPLITS
from longstream.tasks.files import hold_out, read_listops, read_texts, split_enwik8, wikitext103
from longstream.tasks.images import load_images
from longstream.tasks.png import read_png

GOOD = {
    "two.tsv": ('pos\tfine\nneg\tbad "film"\n', [("fine", "pos"), ('bad "film"', "neg")]),
    "named.tsv": ("id\tsentiment\treview\r\n7\t1\tfine\r\n\r\n8\t0\tno\r\n", [("fine", "1"), ("no", "0")]),
    "quoted.csv": (
        'review,sentiment\n"a, ""b""\nc",positive\nd,negative\n',
        [('a, "b"\nc', "positive"), ("d", "negative")],
    ),
    "bom.tsv": ("\ufeffText\tLabel\nä\tx\n", [("ä", "x")]),
}
BAD = {
    "empty.tsv": ("", "is empty"),
    "blank.tsv": ("\n\n", "has no lines"),
    "header.tsv": ("text\tlabel\n", "has a header and no texts"),
    "columns.tsv": ("a\tb\tc\n1\t2\t3\n", "the first line must name a column of texts"),
    "ragged.tsv": ("text\tlabel\na\tb\nc\n", "line 3 must have 2 columns as the first, got 1"),
    "nolabel.tsv": ("text\tlabel\na\t\n", "line 2 has no label"),
    "notext.tsv": ("x\t\n", "line 1 has no text"),
    "quote.csv": ('text,label\n"a,b\n', "line 2 is damaged"),
}


@pytest.mark.parametrize("name", GOOD)
def test_labeled_texts(tmp_path, name):
    content, wanted = GOOD[name]
    (tmp_path / name).write_bytes(content.encode())
    assert read_texts(tmp_path / name) == wanted


@pytest.mark.parametrize("name", BAD)
def test_damaged_texts(tmp_path, name):
    content, said = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_texts(tmp_path / name)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"a\tb\xff\n")
    with pytest.raises(ValueError, match=r"a.tsv is not text in UTF-8: .* at byte 3"):
        read_texts(tmp_path / "a.tsv")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        make_task(f"passages:source={tmp_path / 'none.tsv'}").make(1, 0)


def test_the_folder_of_the_imdb_reviews(tmp_path):
    for split, count in (("train", 12), ("test", 3)):
        for label in ("neg", "pos", "unsup"):
            (tmp_path / split / label).mkdir(parents=True)
            for at in range(count):
                (tmp_path / split / label / f"{at}_1.txt").write_text(f"{split} {label} {at}")
    task = make_task(f"passages:seq_len=30,source={tmp_path}")
    assert task.classes == ("neg", "pos")  # pyright: ignore[reportAttributeAccessIssue]
    assert [task.size(split) for split in SPLITS] == [22, 2, 6]
    inputs, labels = task.make(6, 0, "test")
    for row, wanted in zip(inputs, labels, strict=True):
        assert bytes(row[row < 256].tolist()).split()[1] == (b"neg", b"pos")[wanted.max() - 257]
    (tmp_path / "train" / "pos" / "x.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.txt is empty"):
        read_texts(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match="has no file or folder for the split 'train'"):
        make_task(f"passages:source={tmp_path / 'train' / 'neg'}").make(1, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\tb\n", "the first line must be Source and Target"),
        ("Source\tTarget\n", "has a header and no trees"),
        ("Source\tTarget\n[MAX 1 2 ]\t2\n[MAX 1 2 ]\n", "line 3 must be a tree, a tab and a digit"),
        ("Source\tTarget\n[MAX 1 2 ]\t12\n", "line 2 must be a tree, a tab and a digit"),
        ("Source\tTarget\n[AVG 1 2 ]\t2\n", r"line 2 has '\[AVG', which is no word of ListOps"),
        ("Source\tTarget\n[MAX 1 [MIN 2 3 ]\t2\n", "line 2 is cut short"),
    ],
)
def test_damaged_listops(tmp_path, content, said):
    (tmp_path / "basic_train.tsv").write_text(content)
    with pytest.raises(ValueError, match=said):
        read_listops(tmp_path / "basic_train.tsv")


def test_hold_out_shares_out_everything():
    parts = hold_out(103, 0.1, 0.05)
    assert [len(parts[split]) for split in SPLITS] == [88, 10, 5]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(103))
    with pytest.raises(ValueError, match="more than 2 examples to split, got 2"):
        hold_out(2, 0.1, 0.1)


def test_enwik8(tmp_path):
    data = bytes(range(200)) * 5
    (tmp_path / "enwik8").write_bytes(data)
    paths = split_enwik8(tmp_path / "enwik8", tmp_path / "parts", None)
    assert [len(path.read_bytes()) for path in paths.values()] == [900, 50, 50]
    assert b"".join(path.read_bytes() for path in paths.values()) == data
    with pytest.raises(FileExistsError, match=r"enwik8.train is there already"):
        split_enwik8(tmp_path / "enwik8", tmp_path / "parts", None)
    with pytest.raises(ValueError, match="it must have 100000000 bytes, got 1000"):
        split_enwik8(tmp_path / "enwik8", tmp_path / "other")
    with pytest.raises(ValueError, match="damaged: its sha256 must be 00"):
        split_enwik8(tmp_path / "enwik8", tmp_path / "other", (1000, "00"))
    with pytest.raises(FileNotFoundError):
        split_enwik8(tmp_path / "nothing", tmp_path / "other")


def test_wikitext103(tmp_path):
    for word, text in (("train", " \n = A = \n b <unk> @-@ c \n"), ("valid", " d \n"), ("test", "e f \n g \n")):
        (tmp_path / f"wiki.{word}.tokens").write_text(text)
    paths = wikitext103(tmp_path, {"train": 10, "valid": 2, "test": 5})
    assert [path.name for path in paths.values()] == ["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"]
    with pytest.raises(ValueError, match=r"wiki.train.tokens is damaged .* must have 103227021 words .* got 10"):
        wikitext103(tmp_path)
    (tmp_path / "wiki.test.tokens").unlink()
    with pytest.raises(FileNotFoundError, match=r"wiki.test.tokens"):
        wikitext103(tmp_path, {"train": 10, "valid": 2, "test": 5})


def cifar10(path, count, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, 3073), np.uint8)
    rows[:, 0] %= 10
    path.write_bytes(rows.tobytes())
    return rows


def test_cifar10(tmp_path):
    rows = np.concatenate([cifar10(tmp_path / f"data_batch_{at}.bin", 20, at) for at in (1, 2)])
    test = cifar10(tmp_path / "test_batch.bin", 7, 9)
    known = [load_images(str(tmp_path), split) for split in SPLITS]
    assert [len(part.labels) for part in known] == [36, 4, 7]
    assert known[2].images.shape == (7, 32, 32, 3)
    assert known[2].images[3, 5, 6].tolist() == test[3, 1:].reshape(3, 32, 32)[:, 5, 6].tolist()
    assert {tuple(image[0, 0]) for image in known[0].images} < {tuple(row[1::1024]) for row in rows}
    inputs, labels = make_task(f"pixels:source={tmp_path}").make(7, 0, "test")
    red, green, blue = (test[:, 1 + 1024 * at].astype(float) for at in range(3))
    assert sorted(inputs[:, 0].tolist()) == sorted(
        np.floor(0.2989 * red + 0.587 * green + 0.114 * blue + 0.5).astype(int).tolist()
    )
    assert sorted((labels[:, -1] - 256).tolist()) == sorted(test[:, 0].tolist())
    # the same files for the classifier on sequences
    data = read_sequences([tmp_path / "test_batch.bin"], ReadSpec(as_grid=True), "classify")
    assert data.labels is not None
    assert data.labels.tolist() == [str(label) for label in test[:, 0]]
    np.testing.assert_allclose(data.values[3][5, 6] * 255, test[3, 1:].reshape(3, 32, 32)[:, 5, 6], atol=1e-4)


def test_damaged_cifar10(tmp_path):
    rows = cifar10(tmp_path / "a.bin", 4)
    (tmp_path / "short.bin").write_bytes(rows.tobytes()[:-1])
    rows[2, 0] = 77
    (tmp_path / "label.bin").write_bytes(rows.tobytes())
    for name, said in (("short", "must be a multiple of 3073 bytes, got 12291"), ("label", "got 77 in row 2")):
        for read in (lambda path: load_images(str(path), "train"), lambda path: read_sequences([path])):
            with pytest.raises(ValueError, match=said):
                read(tmp_path / f"{name}.bin")
    (tmp_path / "data_batch_1.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"data_batch files and no test_batch.bin"):
        load_images(str(tmp_path), "train")


def test_idx(tmp_path):
    for name, count in (("train", 30), ("t10k", 5)):
        images = np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3)
        head = struct.pack(">HBBIII", 0, 8, 3, *images.shape)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = bytes(at % 3 + 4 for at in range(count))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + labels)
    known = load_images(str(tmp_path), "test")
    assert known.images[4].reshape(-1).tolist() == list(range(24, 30))
    assert [known.classes[label] for label in known.labels] == ["4", "5", "6", "4", "5"]
    assert len(load_images(str(tmp_path), "train").labels) == 27
    alone = load_images(str(tmp_path / "train-images-idx3-ubyte"), "validation")
    assert len(alone.labels) == 3
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="its labels must lie beside it"):
        load_images(str(tmp_path / "t10k-images-idx3-ubyte"), "train")
    with pytest.raises(ValueError, match="is no file of images that longstream knows"):
        load_images(__file__, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no folder of images that longstream knows"):
        load_images(str(tmp_path / "empty"), "train")


def with_filters(image, kinds):
    """A PNG of a grey or color image whose rows have these filters."""
    channels = image.shape[2]
    rows, before = b"", np.zeros(image[0].size, int)
    for row, kind in zip(image.reshape(len(image), -1).astype(int), kinds, strict=True):
        left = np.concatenate([np.zeros(channels, int), row[:-channels]])
        corner = np.concatenate([np.zeros(channels, int), before[:-channels]])
        paeth = [
            min(((abs(guess - option), at, option) for at, option in enumerate((a, b, c))))[2]
            for a, b, c in zip(left, before, corner, strict=True)
            for guess in [a + b - c]
        ]
        guess = [0 * row, left, before, (left + before) // 2, np.array(paeth)][kind]
        rows += bytes([kind, *((row - guess) % 256).tolist()])
        before = row
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_files_of_every_filter(tmp_path, channels):
    rng = np.random.default_rng(0)
    files = []
    for at in range(5):
        image = rng.integers(0, 256, (5, 7, channels), np.uint8)
        files.append(tmp_path / f"{at}.png")
        files[-1].write_bytes(with_filters(image, rng.permutation(5)))
        stored = np.array(Image.open(files[-1])).reshape(5, 7, channels)  # Pillow says that it is the file it should be
        np.testing.assert_array_equal(stored, image)
        np.testing.assert_array_equal(read_png(files)[at], image)


def test_a_folder_of_pathfinder(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 8, 8), np.uint8), rng.integers(0, 2, 24)
    (tmp_path / "metadata").mkdir()
    for batch in range(2):
        (tmp_path / "imgs" / str(batch)).mkdir(parents=True)
        lines = []
        for at in range(12):
            Image.fromarray(images[batch * 12 + at]).save(tmp_path / "imgs" / str(batch) / f"sample_{at}.png")
            lines.append(["imgs/" + str(batch), f"sample_{at}.png", str(at), str(labels[batch * 12 + at]), "1.0", "14"])
        if batch:  # as numpy writes it, and as the benchmark's files have it
            np.save(tmp_path / "metadata" / "1.npy", np.array(lines))
        else:
            (tmp_path / "metadata" / "0.npy").write_text("\n".join(map(" ".join, lines)) + "\n")
    parts = [load_images(str(tmp_path), split) for split in SPLITS]
    assert [len(part.labels) for part in parts] == [20, 2, 2]
    found = {
        (image.tobytes(), int(label)) for part in parts for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    task = make_task(f"pixels:source={tmp_path}")
    assert (task.vocab_size, task.length, task.size("train")) == (258, 64, 20)
    sample = tmp_path / "imgs" / "1" / "sample_3.png"
    for spoil, said in (
        (lambda: sample.write_bytes(sample.read_bytes()[:-20]), r"sample_3.png is damaged or cut short"),
        (lambda: sample.write_bytes(b"GIF89a"), r"sample_3.png is no PNG file"),
        (lambda: Image.fromarray(images[0][:4]).save(sample), r"must be of the size and kind of"),
        (lambda: Image.fromarray(images[0]).convert("P").save(sample), "without a palette"),
        (lambda: (tmp_path / "metadata" / "0.npy").write_text("imgs/0 sample_0.png 0 7\n"), "a line must be folder"),
        (lambda: (tmp_path / "metadata" / "0.npy").write_bytes(b"\x80\x04pickle"), "must be lines of text"),
    ):
        spoil()
        load_images.cache_clear()
        with pytest.raises(ValueError, match=said):
            load_images(str(tmp_path), "train")
