"""Disturbances for sensor.py, predictors to compare with, and what their errors find."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

KINDS: tuple[str, ...] = ("flat", "upside down", "noise", "spike", "samples lost", "drift")
TAPS = 64  # samples that a linear predictor sees

Floats = NDArray[np.float32]
Forecasts = tuple[NDArray, NDArray]  # medians and scales (T, ahead), made after each sample


class Event(NamedTuple):
    """A disturbance."""

    kind: str
    start: int
    stop: int


def disturb(series: Floats, rate: float, seed: int) -> tuple[Floats, list[Event]]:
    """The series with disturbances of all kinds in turn, some seconds apart, and where they are."""
    rng, series, events = np.random.default_rng(seed), series.copy(), []
    middle, size = np.median(series), series.std()
    start = int(3 * rate)
    while start < len(series) - 2 * rate:
        kind = KINDS[len(events) % len(KINDS)]
        seconds = {"flat": 0.4, "upside down": 0.4, "noise": 0.3, "spike": 0.005, "samples lost": 0.02, "drift": 0.5}[
            kind
        ]
        stop = start + max(1, int(seconds * rate))
        here, sign = slice(start, stop), rng.choice([-1, 1])
        if kind == "flat":
            series[here] = series[start - 1]
        elif kind == "upside down":
            series[here] = 2 * middle - series[here]
        elif kind == "noise":
            series[here] += rng.normal(0, 0.3 * size, stop - start)
        elif kind == "spike":
            series[here] += 2 * size * sign
        elif kind == "samples lost":
            series = np.delete(series, np.arange(start, start + int(0.15 * rate)))
        else:
            series[here] += np.linspace(0, 1.5 * size, stop - start) * sign
        events.append(Event(kind, start, stop))
        start += int(rate * rng.uniform(2.5, 4))
    return series.astype(np.float32), events


def last_value(series: Floats, ahead: int) -> Forecasts:
    """What is will be."""
    return np.repeat(series[:, None], ahead, axis=1), np.ones((len(series), ahead))


def windows(series: Floats) -> Floats:
    """(T, TAPS): each sample behind those before it; before the first one it is repeated."""
    padded = np.concatenate([np.full(TAPS - 1, series[0], dtype=np.float32), series])
    return np.lib.stride_tricks.sliding_window_view(padded, TAPS)


def fit_linear(series: Floats, ahead: int) -> Floats:
    """(TAPS + 1, ahead): least squares from the last samples and a 1 to each of the next ones."""
    following = np.lib.stride_tricks.sliding_window_view(series[1:], ahead)
    seen = windows(series)[: len(following)]
    seen = np.concatenate([seen, np.ones((len(seen), 1))], axis=1)
    return np.linalg.lstsq(seen[TAPS:], following[TAPS:], rcond=None)[0].astype(np.float32)


def linear(series: Floats, weights: Floats) -> Forecasts:
    """What `fit_linear` has found."""
    medians = windows(series) @ weights[:-1] + weights[-1]
    return medians, np.ones_like(medians)


def wrongness(forecasts: Forecasts, series: Floats) -> NDArray:
    """(T, ahead): the error, in scales, of the forecast of each sample that was made 1, 2, ... samples before."""
    medians, scales = forecasts
    errors = np.full(medians.shape, np.nan)
    for h in range(1, 1 + medians.shape[1]):
        errors[h:, h - 1] = np.abs(series[h:] - medians[:-h, h - 1]) / scales[:-h, h - 1]
    return errors


class Found(NamedTuple):
    """What a predictor's scores say."""

    scores: NDArray  # (T,) of the disturbed part, robust units
    height: float  # of an alarm
    found: dict[str, int]  # events by kind in which there was one
    false_alarms: int  # elsewhere
    ranking: float  # area under the ROC curve of half seconds: 1 perfect, 0.5 nothing
    error: float  # mean absolute error of all forecasts, before the disturbances


def judge(
    forecasts: Forecasts, series: Floats, calm: int, events: list[Event], rate: float, per_minute: float
) -> Found:
    """Scores of what follows the first ``calm`` samples, which set unit and height."""
    errors = wrongness(forecasts, series)
    middle = np.nanmedian(errors[:calm], axis=0)
    spread = 1.4826 * np.nanmedian(np.abs(errors[:calm] - middle), axis=0)
    ahead = errors.shape[1]
    scores = np.mean((errors[ahead:] - middle) / spread, axis=1)
    scores = np.concatenate([np.zeros(ahead), scores])
    peaks = np.sort([scores[i : i + int(rate)].max() for i in range(ahead, calm - int(rate), int(rate))])
    height = float(peaks[-1 - min(round(per_minute * calm / rate / 60), len(peaks) - 1)])
    scores = scores[calm:]
    after = ahead + int(0.25 * rate)  # a disturbance is seen by the forecasts made in it, too
    found, disturbed = dict.fromkeys(KINDS, 0), np.zeros(len(scores), dtype=bool)
    for event in events:
        found[event.kind] += bool((scores[event.start : event.stop + ahead] > height).any())
        disturbed[event.start : event.stop + after] = True
    alarms = np.flatnonzero((scores > height) & ~disturbed)
    false_alarms = int(len(alarms) > 0) + int((np.diff(alarms) > rate / 2).sum())
    half = int(rate / 2)
    starts = range(0, len(scores) - half, half)
    highest = np.array([scores[i : i + half].max() for i in starts])
    bad = np.array([any(e.start < i + half and e.stop + ahead // 2 > i for e in events) for i in starts])
    ranking = float((highest[bad][:, None] > highest[~bad]).mean()) if bad.any() and not bad.all() else float("nan")
    wrong = np.abs(errors * forecasts[1])[:calm]
    return Found(scores, height, found, false_alarms, ranking, float(np.nanmean(wrong)))
