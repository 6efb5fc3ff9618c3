"""Tasks of real data: pixels of images and passages of text; what is asked, what is held out, bad input."""

from collections import Counter

import numpy as np
import pytest

from longstream.sequences import ReadSpec, read_sequences
from longstream.tasks import IGNORED, make_task
from longstream.tasks import images as images_module
from longstream.tasks import passages as passages_module
from longstream.tasks._base import SPLITS
from longstream.tasks.images import grey, load_images, resize, write_arrays
from longstream.tasks.passages import PACKAGES, PAD, Passages, library_texts
from longstream.tasks.pixels import Pixels
from longstream.tasks.sources import library_files


def asked(labels):
    """The label of each row; it must be the last one, and the only one."""
    assert (labels[:, :-1] == IGNORED).all()
    return labels[:, -1]


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    values, target = load_digits(return_X_y=True)
    wanted = Counter(
        (tuple(round(pixel * 255 / 16) for pixel in image), int(label))
        for image, label in zip(np.asarray(values), np.asarray(target), strict=True)
    )
    task, found = Pixels(), Counter()
    for split in SPLITS:
        size = task.size(split)
        assert size is not None
        inputs, labels = task.make(size, 3, split)
        found.update(zip(map(tuple, inputs.tolist()), (asked(labels) - 256).tolist(), strict=True))
    assert found == wanted  # every image is in one split, with its label
    assert (task.vocab_size, task.length, task.chance) == (266, 64, 0.1)


def test_other_images_in_a_package_are_refused(monkeypatch):
    known = images_module.PACKAGED["digits"]()
    changed = known._replace(labels=known.labels[::-1])
    monkeypatch.setitem(images_module.PACKAGED, "digits", lambda: changed)
    load_images.cache_clear()
    with pytest.raises(ValueError, match="wrong checksum: digits must have sha256 a19cb3d"):
        load_images("digits", "train")


def test_levels_seeds_and_sizes():
    task = Pixels(levels=4)
    inputs, labels = task.make(100, 0, "validation")
    assert set(np.unique(inputs)) == {0, 1, 2, 3}
    assert asked(labels).min() >= 4
    assert (task.make(100, 0, "validation").inputs == inputs).all()
    assert not (task.make(100, 1, "validation").inputs == inputs).all()
    large = make_task("pixels:side=32")
    assert large.make(3, 0).inputs.shape == (3, 1024)
    assert large.describe() == "pixels:side=32"
    with pytest.raises(ValueError, match="pixels: count must be <= 1257, the train images of digits, got 1258"):
        task.make(1258, 0)
    for fields, said in (
        ("side=1", "side must be 0 or in 2 ... 1024, got 1"),
        ("levels=1", "levels must be in 2 ... 256, got 1"),
        ("source=", "source must be a name or a path"),
    ):
        with pytest.raises(ValueError, match=said):
            make_task(f"pixels:{fields}")
    with pytest.raises(FileNotFoundError, match=r"source must be one of .* or a path, got 'didgits'"):
        _ = make_task("pixels:source=didgits").vocab_size


def test_made_images_are_pathfinders():
    from longstream.tasks.pathfinder import Pathfinder

    task = Pixels(source="pathfinder-6")
    images, classes = Pathfinder(contour_length=6).make(20, 4, "test")
    inputs, labels = task.make(20, 4, "test")
    assert (inputs == images.reshape(20, -1)).all()
    assert (asked(labels) - 256 == classes).all()
    assert (task.size(), task.vocab_size, task.length, task.chance) == (None, 258, 1024, 0.5)


def test_enlarging():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 6, 9), np.uint8)
    assert (resize(images[:, :, :6], 6) == images[:, :, :6]).all()
    assert (resize(np.full((1, 5, 7), 93, np.uint8), 16) == 93).all()
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8) * 16, (1, 8, 8))
    np.testing.assert_array_equal(resize(ramp, 16)[0, 5, 1:15], np.floor(4 + 8 * np.arange(14) + 0.5))
    half = resize(images[:, :, :6], 3).astype(int)  # linear between middles: of 2 x 2 pixels their mean
    assert abs(half - images[:, :, :6].reshape(3, 3, 2, 3, 2).mean((2, 4))).max() <= 0.5
    color = np.zeros((1, 2, 2, 3), np.uint8)
    color[..., 1] = 200
    assert (grey(color) == 117).all()  # 0.587 of it


def test_arrays_for_the_classifier(tmp_path):
    paths = write_arrays("digits", tmp_path, side=16)
    data = read_sequences([paths["test"]], ReadSpec(as_grid=True), "classify")
    assert data.values[0].shape == (16, 16, 1)
    known = load_images("digits", "test")
    assert data.labels is not None
    assert data.labels.tolist() == known.labels.astype(str).tolist()
    np.testing.assert_allclose(data.values[7][..., 0] * 255, resize(known.images, 16)[7], atol=1e-4)
    with pytest.raises(FileExistsError, match="is there already"):
        write_arrays("digits", tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_passages_are_of_their_package_and_split(split):
    task = Passages(seq_len=200)
    inputs, labels = task.make(300, 1, split)
    texts = {package: text.tobytes() for package, text in zip(PACKAGES, library_texts()[split], strict=True)}
    others = [text.tobytes() for other in SPLITS if other != split for text in library_texts()[other]]
    counts, shared = Counter(), 0
    for row, label in zip(inputs, asked(labels), strict=True):
        passage = bytes(row.tolist())
        counts[label] += 1
        assert passage in texts[task.classes[label - PAD - 1]]
        shared += any(passage in text for text in others)
    assert shared < 9  # files have a few lines in common, as a licence
    assert set(counts) == set(range(257, 267))
    assert max(counts.values()) < 30 + 4 * (300 * 0.09) ** 0.5  # 300 / 10, and four deviations


def test_every_file_is_in_one_split():
    for at, package in enumerate(PACKAGES):
        files = [file.read_bytes() for name, file in library_files() if name.partition(".")[0] == package]
        texts = [library_texts()[split][at].tobytes() for split in SPLITS]
        assert sum(map(len, texts)) == sum(map(len, files)) + len(files) - len(SPLITS)  # a line between
        assert len(texts[0]) > max(map(len, texts[1:]))
        for data in files:
            assert sum(data in text for text in texts) == (len(SPLITS) if not data.strip() else 1)


def test_seeds_and_refusals_of_passages(monkeypatch):
    task = Passages(seq_len=64)
    assert (task.make(20, 0).inputs == task.make(20, 0).inputs).all()
    assert not (task.make(20, 0).inputs == task.make(20, 1).inputs).all()
    assert (task.vocab_size, task.length, task.chance, task.size()) == (267, 64, 0.1, None)
    for seq_len, said in ((0, "seq_len must be in 1"), (4097, "seq_len must be <= 4096 for the standard library")):
        with pytest.raises(ValueError, match=said):
            Passages(seq_len=seq_len)
    monkeypatch.setattr(passages_module, "library_files", lambda: iter(()))
    library_texts.cache_clear()
    with pytest.raises(FileNotFoundError, match="this Python comes without the package asyncio"):
        task.make(1, 0)


def test_a_users_texts(tmp_path):
    for split, rows in (("train", 30), ("test", 8)):
        lines = [f"{('bad', 'good')[at % 2]}\t{split} text {at} {'ä' * (at % 5)}" for at in range(rows)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = Passages(source=str(tmp_path), seq_len=20)
    assert task.classes == ("bad", "good")
    assert [task.size(split) for split in SPLITS] == [27, 3, 8]  # a tenth of train is for validation
    inputs, labels = task.make(8, 0, "test")
    for row, wanted in zip(inputs, labels, strict=True):
        data = bytes(row[row != PAD].tolist())
        at = int(data.split()[2])
        assert data == f"test text {at} {'ä' * (at % 5)}".encode()[:20]
        assert np.flatnonzero(wanted != IGNORED).tolist() == [len(data) - 1]
        assert wanted[len(data) - 1] == PAD + 1 + at % 2
    with pytest.raises(ValueError, match="count must be <= 8, the test texts of"):
        task.make(9, 0, "test")
    (tmp_path / "test.tsv").write_text("ugly\tnever seen\n")
    passages_module._rows.cache_clear()
    with pytest.raises(ValueError, match=r"the test texts of .* have the label 'ugly', train has not"):
        task.make(1, 0, "test")
