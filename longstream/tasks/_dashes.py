"""What Pathfinder draws: dashes and discs on patches of pixels, through the filter that makes their edges soft."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

SIDE = 32
LENGTH, MARGIN, SCALE = 2, 1, 2  # of a dash, around it, and of the finer grid that it is drawn on
MARKER_RADIUS = 1.5

REACH = LENGTH + MARGIN  # from a pivot to the far end of its dash
HALF = LENGTH + 1 + MARGIN  # of the patch that a dash is drawn on, 1 for its thickness


class Dashes(NamedTuple):
    """A dash on a patch by orientation.

    0 ... 359 are those of first dashes, in degrees from -180 on; then come those that follow a pivot, as ``heads``.
    """

    lines: np.ndarray  # (360 + K, 9, 9) float32 in [0, 1]: brightness
    masks: np.ndarray  # (360 + K, 9, 9) float32 in [0, 1]: the room that it takes
    cores: np.ndarray  # (360, 7, 7) bool: pixels of the room that are full, from the dash's near end
    heads: np.ndarray  # (K, 2) int: far ends around a pivot, down and across
    angles: np.ndarray  # (360 + K,) radians, the orientation of the dash's growth


def direction(angle: np.ndarray) -> np.ndarray:
    """(n, 2): down and across."""
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1)


@lru_cache(1)
def dashes() -> Dashes:
    """All dashes that there are."""
    around = np.deg2rad(np.arange(0, 360, 360 / (2 * REACH * np.pi)))  # a pixel apart
    heads = np.unique(np.floor(REACH * direction(around)).astype(np.int64), axis=0)
    grown = np.arctan2(heads[:, 0], heads[:, 1])
    angles = np.concatenate([np.deg2rad(np.arange(-180, 180)), grown])
    drawn = np.concatenate([angles[:360], grown + np.pi])  # from the far end back to the pivot
    lines, masks = map(np.stack, zip(*map(_dash, drawn), strict=True))
    # the patch around the far side of the middle, as the generator lays it: one pixel down and across
    cores = masks[:360, HALF - REACH - 1 : HALF + REACH, HALF - REACH - 1 : HALF + REACH] == 1
    return Dashes(lines, masks, cores, heads, angles)


def _dash(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """(9, 9) brightness of a dash from the middle of a patch, and the room it takes."""
    size = HALF * SCALE
    fine = np.zeros((2 * size + 1, 2 * size + 1))
    far = np.ceil(size + LENGTH * SCALE * direction(np.array(angle))).astype(int)
    run = far - size
    steps = np.arange(1 + abs(run).max())[:, None]
    at = size + np.sign(run) * ((2 * steps * abs(run) + abs(run).max()) // (2 * abs(run).max()))  # halves go outward
    fine[at[:, 0], at[:, 1]] = 255
    room = np.zeros_like(fine)
    reach = np.arange(-MARGIN * SCALE, MARGIN * SCALE + 1)
    for y in reach:
        for x in reach[reach**2 + y**2 <= (MARGIN * SCALE) ** 2]:
            room = np.maximum(room, np.roll(fine, (y, x), (0, 1)))  # nothing is near the border
    return _shrink(fine, 2 * HALF + 1), _shrink(room, 2 * HALF + 1)


@lru_cache(1)
def disc() -> np.ndarray:
    """(9, 9): the marker around its place."""
    at = np.arange(SIDE * SCALE) - SIDE // 2 * SCALE
    disc = 255.0 * (at[:, None] ** 2 + at**2 <= (MARKER_RADIUS * SCALE) ** 2)
    patch = slice(SIDE // 2 - HALF, SIDE // 2 + HALF + 1)
    return _shrink(disc, SIDE)[patch, patch]


def _shrink(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size) float32 in [0, 1] from a square image of 0 ... 255, through a Lanczos filter of order 3."""
    scale = len(image) / size
    offset = (np.arange(len(image)) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / scale
    weight = np.where(abs(offset) < 3, np.sinc(offset) * np.sinc(offset / 3), 0)
    weight /= weight.sum(axis=1, keepdims=True)
    for _ in range(2):  # across and down, whole numbers after each as in an image of bytes
        image = np.clip(np.floor(image @ weight.T + 0.5), 0, 255).T
    return (image / 255).astype(np.float32)
