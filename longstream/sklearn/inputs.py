"""What scikit-learn's users have as X and frames, read as lists of (T, C) arrays.

A table (n, time) is n sequences of one channel; (n, time, channels) has several; a list may hold arrays of any lengths.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_array

_check_array: Any = check_array  # its annotations know fewer values than its documentation
LAYOUTS = ("time-channels", "channels-time")


class Table(NamedTuple):
    """What a classifier or regressor was given."""

    values: list[np.ndarray]  # each (T_i, C)
    width: int | None  # time points of a table (n, time); None where sequences may have any lengths


def read_sequences(who: str, X: Any, layout: str) -> Table:
    """n sequences, each (T_i, C) float32, or (height, width, C) of images.

    Args:
        who:    named in errors.
        X:      (n, time); (n, time, C); (n, height, width, C); or a list of n arrays (T_i,), (T_i, C) or
                (height, width, C). NaN: missing. Data frames, tensors and whatever else numpy makes an array of.
        layout: "channels-time": C comes before time, or before height and width.
    Raises:
        ValueError: another shape, a ragged array of objects, infinite values.    TypeError: sparse, or not numbers.
    """
    _check_layout(who, layout)
    _refuse_object_array(who, X)
    if isinstance(X, list | tuple) and not X:
        raise ValueError(f"{who}: X must have one sequence at least, got an empty {type(X).__name__}")
    items = _items(X)
    if items is None:
        array = _numbers(X)
        if not 2 <= array.ndim <= 4:
            raise ValueError(f"{who}: X must be (n, time), (n, time, channels) or a list of arrays, got {array.shape}")
        return Table(_frames(array, layout), array.shape[1] if array.ndim == 2 else None)
    for i, item in enumerate(items):
        if not 1 <= item.ndim <= 3:
            raise ValueError(f"{who}: X[{i}] must be (time,) or (time, channels), got shape {item.shape}")
    return Table(_frames([_numbers(item, f"X[{i}]") for i, item in enumerate(items)], layout), None)


class Series(NamedTuple):
    """What a forecaster was given."""

    values: list[np.ndarray]  # each (T_i, C)
    ndim: int  # of what was given: 1 for (time,), 2 for one series, 3 for several
    names: tuple[str, ...]  # of the channels, where X is a data frame


def read_series(who: str, X: Any, layout: str) -> Series:
    """One series, (time,) or (time, C), or several: (n, time, C), or a list of arrays (T_i,) or (T_i, C).

    Raises:
        ValueError: another shape, a ragged array of objects, infinite values.    TypeError: sparse, or not numbers.
    """
    _check_layout(who, layout)
    _refuse_object_array(who, X)
    if isinstance(X, list | tuple) and len(X) and not any(_is_plain(item) for item in X):
        return Series(read_sequences(who, X, layout).values, 3, _names(X[0]))
    try:
        array = _numbers(np.asarray(X) if isinstance(X, list | tuple) else X, least_dimensions=1)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(f"{who}: series of different lengths must be a list of arrays, got a list of lists") from None
    if array.ndim == 3:
        return Series(_frames(array, layout), 3, ())
    if array.ndim > 3:
        raise ValueError(f"{who}: X must be (time,), (time, channels) or several of these, got shape {array.shape}")
    return Series(_frames([array], layout), array.ndim, _names(X))


def read_frame(who: str, frame: Any, channels: int) -> tuple[np.ndarray, bool]:
    """One frame of one stream, (C,) or a number where C = 1, or of B streams, (B, C): as (B, C), and whether it is one.

    Raises:
        ValueError: another shape, or infinite values.
    """
    array = np.asarray(frame)
    if array.dtype.kind not in "biuf":
        array = array.astype(np.float32)  # of objects that are numbers; says what is not
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    single = array.ndim < 2
    rows = array.reshape(1, -1) if single else array
    if array.ndim > 2 or rows.shape[1] != channels or len(rows) == 0:
        raise ValueError(
            f"{who}: frame must have shape ({channels},), or (streams, {channels}) for several, got {array.shape}"
        )
    if np.isinf(rows).any():
        raise ValueError(f"{who}: frame must be finite or NaN (missing), got an infinite value")
    return rows, single


def _items(X: Any) -> list[np.ndarray] | None:
    """The arrays of a list of arrays (or of lists); None for anything else, which is made one array."""
    if not isinstance(X, list | tuple) or not len(X):
        return None
    items = [np.asarray(item) for item in X]
    table = all(_is_plain(item) for item in X) and len({item.shape for item in items}) == 1
    return None if table or any(item.ndim == 0 for item in items) else items


def _numbers(X: Any, name: str = "X", least_dimensions: int = 2) -> np.ndarray:
    """A float32 array; scikit-learn's own words for what is not one."""
    with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
        return _check_array(
            X,
            dtype="float32",
            allow_nd=True,
            ensure_2d=least_dimensions == 2 and name == "X",
            ensure_all_finite="allow-nan",
            input_name=name,
        )


def _frames(items: Iterable[np.ndarray], layout: str) -> list[np.ndarray]:
    """Each as (T, C), or (height, width, C)."""
    found = []
    for item in items:
        value = item[:, None] if item.ndim == 1 else np.moveaxis(item, 0, -1) if layout == "channels-time" else item
        if not value.size:
            raise ValueError(f"a sequence must have one frame and channel at least, got shape {item.shape} in X")
        found.append(value)
    return found


def _check_layout(who: str, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"{who}: layout must be one of {list(LAYOUTS)}, got {layout!r}")


def _refuse_object_array(who: str, X: Any) -> None:
    if isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1 and np.ndim(X[0] if len(X) else 0):
        raise ValueError(
            f"{who}: X must be a list of arrays where lengths differ, got an array of objects: use list(X)"
        )


def _is_plain(item: Any) -> bool:
    """Whether an item of a list is a number or a list of numbers, and not an array."""
    return isinstance(item, list | tuple) or np.ndim(item) == 0


def _names(X: Any) -> tuple[str, ...]:
    """The columns of a data frame, which are the channels of one series."""
    columns = getattr(X, "columns", None)
    return () if columns is None else tuple(map(str, columns))
