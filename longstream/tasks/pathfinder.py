"""Pathfinder: two winding contours of dashes among shorter ones; whether two discs lie on the same contour is asked.

All images of a batch grow at once, a dash at a time; those whose contours run into a dead end are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longstream.tasks._base import Split, generator
from longstream.tasks._dashes import HALF, LENGTH, MARGIN, REACH, SIDE, dashes, direction, disc
from longstream.tasks.images import CONNECTED, write_npz

PADDING, SEED_DISTANCE = 1, 7
CONTRAST, DISTRACTOR_CONTRAST = 2 * 0.75, 2.0
DISTRACTOR_DASHES = 20  # of all short contours together
RETRIES, CONTOUR_RETRIES = 2, 4  # of a dash, of a short contour
OVERLAP = 1.8  # from which on a dash and the others are too close
TAKEN = 0.3  # from which on a pixel is no place for a first dash

PATCH = np.arange(-HALF, HALF + 1)
EDGE = 2 * HALF  # around the window, so that no patch reaches out of the arrays
WIDE = SIDE + 2 * EDGE
TRIES = 2048  # contours that grow at once
BATCH = 1024  # images that are finished at once


class Growth(NamedTuple):
    """Contours that grow, one in each of n images."""

    pivot: np.ndarray  # (n, 2) int
    angle: np.ndarray  # (n,) radians
    head: np.ndarray  # (n, 2) int: where the last dash is drawn from
    kind: np.ndarray  # (n,) int: which of the dashes it is

    def select(self, rows: np.ndarray) -> Growth:
        """Those of some of the images."""
        return Growth(*(part[rows] for part in self))


@dataclass(frozen=True, kw_only=True)
class Pathfinder:
    """Pathfinder-32 of Long Range Arena (Tay et al. 2020, arXiv:2011.04006), by the rules of its generator.

    Linsley et al. 2018 (arXiv:1805.08315); the parameters are those of the benchmark's "hard" set. Two contours of
    ``contour_length`` dashes start 7 pixels from each other near the middle and take turns to grow. A dash of 2 pixels
    follows the last one at a gap of 2; its direction is drawn with cos^2 of its turn, less where others are near.
    Shorter contours, a third as long, are put where there is room. One disc lies at the start of one contour, another
    at the end of the same one or, as often, of the other one.

    Drawing is that of the generator to the pixel: dashes at twice the resolution, Lanczos filter, positions rounded as
    there, brightness 1.5 of the two and 2 of the others, scaled to 0 ... 255 by the brightest pixel. Unlike there all
    is seeded, and the last dash of both contours is kept clear of the shorter ones, not only that of the second.

    Two images are alike as good as never, within a split or between splits.

    Args:
        contour_length: dashes of a contour, 3 ... 18. The benchmark's sets have 6 ("easy"), 9 and 14 ("hard").
    """

    contour_length: int = 14

    def __post_init__(self) -> None:
        if not 3 <= self.contour_length <= 18:  # longer ones find no room
            raise ValueError(f"Pathfinder: contour_length must be in 3 ... 18, got {self.contour_length}")

    def make(self, count: int, seed: int, split: Split = "train") -> tuple[np.ndarray, np.ndarray]:
        """Images (count, 32, 32) uint8 and labels (count,) int64, 1 where the discs are on one contour.

        Raises:
            ValueError: count < 1, an unknown split, or a negative seed.
        """
        random = generator("pathfinder", seed, split)
        if count < 1:
            raise ValueError(f"Pathfinder: count must be >= 1, got {count}")
        images, labels = np.empty((count, SIDE, SIDE), np.uint8), np.empty(count, np.int64)
        done = 0
        while done < count:
            wanted = min(count - done, BATCH)
            parts, ready = [], 0
            while ready < wanted:
                parts.append(self._contours(random))
                ready += len(parts[-1][0])
            drawn, taken, ends = (np.concatenate(part)[:wanted] for part in zip(*parts, strict=True))
            now = slice(done, done + wanted)
            images[now], labels[now] = self._finish(drawn, taken, ends, random)
            done += wanted
        return images, labels

    def write(self, path: str | Path, count: int, seed: int, split: Split = "train") -> None:
        """Images and labels as an .npz that ``longstream train --task classify --data`` reads.

        Raises:
            FileExistsError: there is such a file.    As `make`, too.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} is there already; remove it or give another name")
        images, labels = self.make(count, seed, split)
        write_npz(path, images, np.array(CONNECTED)[labels])

    def _finish(
        self, images: np.ndarray, taken: np.ndarray, ends: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, SIDE, SIDE) uint8 and labels, of images with two contours: the shorter ones and the discs."""
        length = self.contour_length // 3
        for _ in range(DISTRACTOR_DASHES // length):
            left = np.arange(len(images))
            for _ in range(CONTOUR_RETRIES + 1):
                left = left[~_add_short(images, taken, left, length, random)]
                if len(left) == 0:
                    break
        label = random.integers(0, 2, len(images))
        first = random.integers(0, 2, len(images))
        last = np.where(label == 1, first, 1 - first)
        rows = np.arange(len(images))
        for which, end in ((first, 0), (last, 1)):
            _draw(images, rows, ends[rows, which, end], disc())
        window = images[:, EDGE:-EDGE, EDGE:-EDGE]
        brightest = window.max(axis=(1, 2), keepdims=True)  # the darkest is 0
        return (window * (255 / brightest) + 0.5).astype(np.uint8), label

    def _contours(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of ``TRIES`` in which both contours found their way.

        Returns:
            (n, WIDE, WIDE) images, (n, WIDE, WIDE) the room taken, (n, 2, 2, 2) each contour's start and end.
        """
        taken = np.zeros((TRIES, WIDE, WIDE), np.float32)
        taken[:, EDGE:-EDGE, EDGE:-EDGE] = 1
        inner = slice(EDGE + PADDING, -EDGE - PADDING)
        taken[:, inner, inner] = 0
        blocked = np.ones((TRIES, SIDE, SIDE), bool)  # for the first dash
        middle = slice(2 * SEED_DISTANCE, SIDE - 2 * SEED_DISTANCE)
        blocked[:, middle, middle] = False
        one, found = _seed(blocked, random)
        bearing = random.integers(0, 360, TRIES) * (np.pi / 180)
        tail = np.rint(one.head + SEED_DISTANCE * direction(bearing)).astype(np.int64)
        two, inside = _first(tail, random.integers(0, 360, TRIES))
        alive = np.flatnonzero(found & inside)  # which tries still are
        last = [one.select(alive), two.select(alive)]
        grown = [(alive, dash) for dash in last]
        starts = np.stack([one.head, two.head], axis=1)
        for _ in range(self.contour_length - 1):
            for turn in range(2):
                kept, dash = _extend(taken, alive, last[turn], random)
                alive, last = alive[kept], [contour.select(kept) for contour in last]
                _draw(taken, alive, last[turn].head, dashes().masks[last[turn].kind])
                last[turn] = dash
                grown.append((alive, dash))
        images = np.zeros((len(alive), WIDE, WIDE), np.float32)
        for tries, dash in grown:
            _draw_dashes(images, np.arange(len(alive)), dash.select(np.searchsorted(tries, alive)), CONTRAST)
        taken = taken[alive]
        for contour in last:
            _draw(taken, np.arange(len(alive)), contour.head, dashes().masks[contour.kind])
        return images, taken, np.stack([starts[alive], np.stack([dash.head for dash in last], axis=1)], axis=2)


def _add_short(
    images: np.ndarray, taken: np.ndarray, rows: np.ndarray, length: int, random: np.random.Generator
) -> np.ndarray:
    """Put a short contour into each of these images where it finds room; (n,) bool, where it did."""
    contour, found = _seed(taken[rows, EDGE:-EDGE, EDGE:-EDGE] > TAKEN, random)
    alive = np.flatnonzero(found)
    contour = contour.select(alive)
    trial = taken[rows]
    grown = [(alive, contour)]
    for _ in range(length - 1):
        kept, dash = _extend(trial, alive, contour, random)
        alive, contour = alive[kept], contour.select(kept)
        _draw(trial, alive, contour.head, dashes().masks[contour.kind])
        contour = dash
        grown.append((alive, dash))
    _draw(trial, alive, contour.head, dashes().masks[contour.kind])
    taken[rows[alive]] = trial[alive]
    for tries, dash in grown:
        _draw_dashes(images, rows[alive], dash.select(np.searchsorted(tries, alive)), DISTRACTOR_CONTRAST)
    done = np.zeros(len(rows), bool)
    done[alive] = True
    return done


def _seed(blocked: np.ndarray, random: np.random.Generator) -> tuple[Growth, np.ndarray]:
    """A first dash in each of (n, SIDE, SIDE) images where its core meets no blocked pixel; where there was one."""
    count = len(blocked)
    pending = np.arange(count)
    tail, degrees = np.full((count, 2), SIDE // 2), np.zeros(count, np.int64)
    found = np.zeros(count, bool)
    bits = np.zeros((count, SIDE + 2 * REACH), np.uint64)  # rows of pixels, as bits; nothing is blocked outside
    bits[:, REACH:-REACH] = (blocked * (np.uint64(1) << np.arange(SIDE, dtype=np.uint64))).sum(axis=2, dtype=np.uint64)
    bits <<= np.uint64(REACH)  # so that shifts to both sides lose nothing
    for _ in range(RETRIES + 1):
        turn = random.integers(0, 360, len(pending))
        free = _free(bits[pending], dashes().cores[turn])
        picked = np.where(free, random.random(free.shape, np.float32), -1).argmax(axis=1)
        place = np.stack([picked // SIDE, picked % SIDE], axis=1)
        any_free = free.any(axis=1)
        inside = any_free & _first(place, turn)[1]
        tail[pending[inside]], degrees[pending[inside]], found[pending[inside]] = place[inside], turn[inside], True
        pending = pending[any_free & ~inside]  # without any room it is given up, as the generator does
        if len(pending) == 0:
            break
    return _first(tail, degrees)[0], found


def _free(bits: np.ndarray, cores: np.ndarray) -> np.ndarray:
    """(n, SIDE * SIDE) bool: pixels from which a core (n, 7, 7) meets no blocked bit."""
    hit = np.zeros((len(bits), SIDE), np.uint64)
    for y, x in np.argwhere(dashes().cores.any(axis=0)):
        row = bits[:, y : y + SIDE] >> np.uint64(x)
        hit |= np.where(cores[:, y, x, None], row, np.uint64(0))
    return ((hit[..., None] >> np.arange(SIDE, dtype=np.uint64)) & np.uint64(1) == 0).reshape(len(bits), -1)


def _first(tail: np.ndarray, degrees: np.ndarray) -> tuple[Growth, np.ndarray]:
    """First dashes from ``tail`` (n, 2) in a direction; whether far end and pivot are inside the window."""
    angle = dashes().angles[degrees]
    far = np.ceil(tail + LENGTH * direction(angle)).astype(np.int64)
    pivot = np.ceil(far - REACH * direction(angle)).astype(np.int64)
    inside = _inside(far) & _inside(pivot)
    return Growth(pivot, angle, tail, degrees), inside


def _extend(
    taken: np.ndarray, rows: np.ndarray, contour: Growth, random: np.random.Generator
) -> tuple[np.ndarray, Growth]:
    """One more dash in images ``rows``: which of them, as places in ``rows``, had room, and their new dashes."""
    known = dashes()
    pivot = np.ceil(contour.pivot + (LENGTH + 2 * MARGIN) * direction(contour.angle)).astype(np.int64)
    heads = pivot[:, None] + known.heads  # (n, K, 2)
    angles = known.angles[360:]
    inside = _inside(heads)
    turn = abs(angles - contour.angle[:, None])
    turn = np.minimum(turn, 2 * np.pi - turn)
    weight = np.maximum(np.cos(np.minimum(turn, np.pi / 2)), 0) ** 2  # continuity is 1
    flat = taken.reshape(-1)
    y, x = np.moveaxis(np.where(inside[..., None], heads, 0), -1, 0)
    at = (rows * WIDE**2)[:, None] + (y + EDGE) * WIDE + x + EDGE
    near = flat[at]
    for offset in (-WIDE, WIDE, -1, 1):  # a disc of MARGIN
        np.maximum(near, flat[at + offset], out=near)
    weight *= np.where(inside, 1 - near, 0)
    total = np.cumsum(weight, axis=1)
    pending = np.flatnonzero(total[:, -1] >= 1e-4)
    chosen = np.full(len(rows), -1)
    for _ in range(RETRIES + 1):
        draw = random.random(len(pending))[:, None] * total[pending, -1:]
        kind = np.argmax(total[pending] > draw, axis=1)
        at, inner = _places(rows[pending], heads[pending, kind])
        clear = (flat[at] + known.masks[360 + kind] * inner).max(axis=(1, 2)) < OVERLAP
        chosen[pending[clear]] = kind[clear]
        pending = pending[~clear]
        if len(pending) == 0:
            break
    kept = np.flatnonzero(chosen >= 0)
    kind = chosen[kept]
    return kept, Growth(pivot[kept], angles[kind], heads[kept, kind], 360 + kind)


def _draw_dashes(images: np.ndarray, rows: np.ndarray, contour: Growth, contrast: float) -> None:
    _draw(images, rows, contour.head, dashes().lines[contour.kind] * np.float32(contrast))


def _draw(images: np.ndarray, rows: np.ndarray, center: np.ndarray, patches: np.ndarray) -> None:
    """Patches (n, 9, 9), or one for all, around centers onto their images, where they are brighter."""
    flat = images.reshape(-1)
    at, inner = _places(rows, center)
    flat[at] = np.maximum(flat[at], patches * inner)


def _places(rows: np.ndarray, center: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 9, 9): where the patches around centers (n, 2) lie in all images one behind the other; 1 in the window."""
    inside = (center[:, 0] + EDGE) * WIDE + center[:, 1] + EDGE
    patch = PATCH[:, None] * WIDE + PATCH
    at = inside[:, None, None] + patch
    return (rows * WIDE**2)[:, None, None] + at, _window().reshape(-1)[at]


def _inside(place: np.ndarray) -> np.ndarray:
    """Which of (..., 2) places are in the window."""
    return np.logical_and.reduce((place >= 0) & (place < SIDE), axis=-1)


@lru_cache(1)
def _window() -> np.ndarray:
    """(WIDE, WIDE) float32: 1 inside the window."""
    inside = np.zeros((WIDE, WIDE), np.float32)
    inside[EDGE:-EDGE, EDGE:-EDGE] = 1
    return inside
