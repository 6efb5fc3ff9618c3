"""Pathfinder: drawing against Pillow, the law of a turn, labels read off the pictures, seeds, the file it writes."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import stats

from longstream.sequences import read_sequences
from longstream.tasks import _dashes as drawing
from longstream.tasks import pathfinder
from longstream.tasks.pathfinder import EDGE, SIDE, Growth, Pathfinder


def test_dashes_are_those_of_pillow():
    size = drawing.HALF * drawing.SCALE
    side = 2 * drawing.HALF + 1
    known = drawing.dashes()
    for at, angle in enumerate(known.angles):
        angle += np.pi if at >= 360 else 0  # those behind a pivot are drawn backward
        y, x = (int(np.ceil(size + 4 * part)) for part in (np.sin(angle), np.cos(angle)))
        image = Image.new("L", (2 * size + 1, 2 * size + 1), 0)
        ImageDraw.Draw(image).line([(size, size), (x, y)], fill=255, width=1)
        wanted = np.array(image.resize((side, side), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(np.rint(known.lines[at] * 255), wanted)
        assert known.masks[at][known.lines[at] > 0.2].min() > 0.6  # the room is the dash and what is around it
        assert known.masks[at].sum() > 3 * known.lines[at].sum()


def test_a_turn_is_drawn_with_the_square_of_its_cosine():
    count, angle = 40_000, 0.4
    taken = np.zeros((1, pathfinder.WIDE, pathfinder.WIDE), np.float32)
    middle = np.full((count, 2), SIDE // 2)
    contour = Growth(middle, np.full(count, angle), middle, np.zeros(count, np.int64))
    kept, grown = pathfinder._extend(taken, np.zeros(count, np.int64), contour, np.random.default_rng(1))
    assert len(kept) == count
    wanted = []
    for y, x in drawing.dashes().heads:
        turn = abs(np.arctan2(y, x) - angle)
        wanted.append(max(np.cos(min(turn, 2 * np.pi - turn, np.pi / 2)), 0) ** 2)
    possible = np.array(wanted) > 1e-9
    counts = np.bincount(grown.kind - 360, minlength=len(wanted))
    assert counts[~possible].sum() == 0
    expected = np.array(wanted)[possible] / sum(wanted) * count
    assert stats.chisquare(counts[possible], expected).pvalue > 1e-4
    # pivot: 4 on from the last one, rounded up; the far end is one of those around it
    pivot = np.ceil(SIDE // 2 + 4 * np.array([np.sin(angle), np.cos(angle)]))
    assert (grown.pivot == pivot).all()
    assert (grown.head - grown.pivot == drawing.dashes().heads[grown.kind - 360]).all()


def test_no_dash_where_there_is_no_room():
    taken = np.ones((1, pathfinder.WIDE, pathfinder.WIDE), np.float32)
    middle = np.full((50, 2), SIDE // 2)
    contour = Growth(middle, np.zeros(50), middle, np.zeros(50, np.int64))
    kept, _ = pathfinder._extend(taken, np.zeros(50, np.int64), contour, np.random.default_rng(0))
    assert len(kept) == 0
    blocked = np.ones((300, SIDE, SIDE), bool)
    blocked[:, 10:15, 20:25] = False
    contour, found = pathfinder._seed(blocked, np.random.default_rng(0))
    assert found.sum() > 100
    for place, kind in zip(contour.head[found], contour.kind[found], strict=True):
        core = np.argwhere(drawing.dashes().cores[kind]) - drawing.REACH + place  # (m, 2)
        inside = core[((core >= 0) & (core < SIDE)).all(axis=1)]  # outside of the window nothing is in the way
        assert ((inside >= [10, 20]) & (inside < [15, 25])).all()


@pytest.mark.parametrize("length", [3, 9])
def test_labels_are_what_the_discs_say(length):
    rng = np.random.default_rng(1)
    task = Pathfinder(contour_length=length)
    images, taken, ends = task._contours(rng)
    assert np.allclose(np.linalg.norm(ends[:, 0, 0] - ends[:, 1, 0], axis=1), 7, atol=0.8)  # the starts
    before = images[:, EDGE:-EDGE, EDGE:-EDGE].copy()
    pictures, labels = task._finish(images, taken, ends, rng)
    after = images[:, EDGE:-EDGE, EDGE:-EDGE]
    assert (after >= before).all()  # nothing is drawn away
    disc = drawing.disc()[3:6, 3:6] > 0.8  # the pixels of a disc's middle, no dash is so broad
    clear = 0
    for picture, label, end in zip(after, labels, ends, strict=True):
        padded = np.pad(picture, 1)
        marked = [[bool((padded[y : y + 3, x : x + 3][disc] > 0.8).all()) for y, x in contour] for contour in end]
        starts, stops = zip(*marked, strict=True)
        if sum(starts) == sum(stops) == 1:  # else two ends are too near to each other to tell
            clear += 1
            assert label == (starts == stops)
    assert clear > 0.8 * len(labels)
    assert pictures.dtype == np.uint8
    assert (pictures.reshape(len(pictures), -1).max(axis=1) == 255).all()


def test_seeds_splits_and_balance():
    task = Pathfinder(contour_length=5)
    images, labels = task.make(400, 0)
    again, _ = task.make(400, 0)
    assert (images == again).all()
    assert images.shape == (400, 32, 32)
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / 400**0.5
    different = [task.make(50, 0)[0], task.make(50, 1)[0], task.make(50, 0, "test")[0]]
    assert len({image.tobytes() for part in different for image in part}) == 150
    apart, connected = (images[labels == label].mean(axis=(1, 2)) for label in (0, 1))
    error = (apart.var() / len(apart) + connected.var() / len(connected)) ** 0.5
    assert abs(apart.mean() - connected.mean()) < 4 * error  # how much ink there is says nothing
    with pytest.raises(ValueError, match="contour_length must be in 3"):
        Pathfinder(contour_length=2)
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        task.make(0, 0)


def test_the_hard_set_has_long_contours_and_five_short_ones():
    images, labels = Pathfinder().make(40, 0)
    easy, _ = Pathfinder(contour_length=6).make(40, 0)
    assert (images > 60).mean() > (easy > 60).mean()
    assert set(labels.tolist()) == {0, 1}


def test_the_file_it_writes_is_read(tmp_path):
    task = Pathfinder(contour_length=4)
    task.write(tmp_path / "a.npz", 12, 3, "test")
    images, labels = task.make(12, 3, "test")
    data = read_sequences([tmp_path / "a.npz"], task="classify")
    assert data.labels is not None
    assert data.labels.tolist() == [("apart", "connected")[label] for label in labels]
    np.testing.assert_array_equal(np.rint(data.values[5][:, 0] * 255), images[5].reshape(-1))
    with pytest.raises(FileExistsError, match="is there already"):
        task.write(tmp_path / "a.npz", 1, 0)
