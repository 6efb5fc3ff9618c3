"""The scale of data: mean and standard deviation by channel, over the values that are there."""

from collections.abc import Sequence

import numpy as np


def measure(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) float32 of arrays (..., C) taken together; NaN is left out.

    The deviation is that of the values, not an estimate (divided by n); it is 1 where there are no two different ones,
    and the mean is 0 where there are none. Sums are float64, taken about the mean.
    """
    width = values[0].shape[-1]
    total, count = np.zeros(width), np.zeros(width)
    for value in values:
        flat = value.reshape(-1, width)
        total += np.nansum(flat, axis=0, dtype=np.float64)
        count += (~np.isnan(flat)).sum(axis=0)
    mean = total / np.maximum(count, 1)
    squares = np.zeros(width)
    for value in values:
        squares += np.nansum((value.reshape(-1, width).astype(np.float64) - mean) ** 2, axis=0)
    std = np.sqrt(squares / np.maximum(count, 1))
    varies = std > 1e-9 * np.abs(mean)  # less is what the sums round off
    return mean.astype(np.float32), np.where(varies, std, 1).astype(np.float32)


def missing_channels(values: Sequence[np.ndarray]) -> list[int]:
    """The channels that have a missing value anywhere."""
    width = values[0].shape[-1]
    found = np.zeros(width, dtype=bool)
    for value in values:
        found |= np.isnan(value.reshape(-1, width)).any(axis=0)
    return np.flatnonzero(found).tolist()
