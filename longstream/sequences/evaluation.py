"""How good a model is on sequences it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from longstream.sequences.collate import check_fits, label_numbers
from longstream.sequences.data import Sequences
from longstream.sequences.metrics import classification, confusion, naive_scale, regression, seasonal_naive
from longstream.sequences.model import SequenceModel
from longstream.sequences.pictures import draw_confusion, draw_forecasts, draw_horizons, draw_regression, spread
from longstream.sequences.prediction import forecast_at, predict
from longstream.sequences.report import Report, forecast_name, horizon_errors

_PANELS = 4  # of the picture of forecasts


def evaluate(
    model: SequenceModel,
    data: Sequences,
    *,
    batch_size: int = 64,
    chunk: int = 0,
    stride: int = 1,
    season: int = 1,
    start: int | Sequence[int] | np.ndarray | None = None,
) -> Report:
    """The report of a model on sequences.

    Args:
        data:       with labels or targets, where the task has such. For a forecast, whole series: what comes before the
                    held-out end is the model's past.
        batch_size: sequences at once.
        chunk:      frames at once of a long sequence; 0 is all (of a series to forecast, 4096).
        stride:     frames from one forecast to the next.
        season:     frames of a season, for the seasonal forecast to compare with; 1 is none.
        start:      frame of each series where the held-out end begins, and what MASE is scaled by ends; None, or 0, is
                    after its first season, and MASE is scaled by the whole series.
    Raises:
        ValueError: channels, labels or targets are not those of the model; an argument is out of range.
    """
    check_fits("evaluate", data, model.config)
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("chunk", chunk, 0),
        ("stride", stride, 1),
        ("season", season, 1),
    ):
        if value < least:
            raise ValueError(f"evaluate: {name} must be >= {least}, got {value}")
    if model.config.task == "forecast":
        return _evaluate_forecasts(model, data, batch_size, chunk, stride, season, start)
    labels = label_numbers(data, model.config.classes) if model.config.task == "classify" else None
    answers = predict(model, data.values, batch_size=batch_size, chunk=chunk)
    if labels is not None:
        return _classified(model.config.classes, labels, answers)
    assert data.targets is not None
    return _regressed(model, data.targets, answers)


def _classified(classes: list[str], labels: np.ndarray, logits: np.ndarray) -> Report:
    counts = confusion(labels, logits.argmax(1), len(classes))
    figures = classification(counts, classes)
    wide = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_shares = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    loss = float(-log_shares[np.arange(len(labels)), labels].mean())
    metrics = {"sequences": len(labels), **figures, "confusion": counts.tolist()}
    picture = partial(draw_confusion, counts=counts, classes=classes)
    return Report("classify", figures["accuracy"], "accuracy", loss, metrics, {"confusion.png": picture})


def _regressed(model: SequenceModel, targets: np.ndarray, answers: np.ndarray) -> Report:
    names = model.config.target_names
    figures = regression(targets, answers, names)
    known = ~np.isnan(targets)
    scaled = (answers - targets) / model.target_std.float().cpu().numpy()
    loss = float((scaled[known].astype(np.float64) ** 2).mean()) if known.any() else np.nan
    picture = partial(draw_regression, true=targets, predicted=answers, names=names)
    metrics = {"sequences": len(targets), **figures}
    return Report("regress", figures["r2"], "R2", loss, metrics, {"regression.png": picture})


def _evaluate_forecasts(
    model: SequenceModel, data: Sequences, batch_size: int, chunk: int, stride: int, season: int, start: Any
) -> Report:
    config = model.config
    horizon, columns = config.horizon, config.target_channels
    frames = data.lengths
    starts = _starts(data, season, start)
    origins = [np.arange(first - 1, T - 1, stride) for first, T in zip(starts, frames, strict=True)]
    found = forecast_at(model, data.values, origins, batch_size=batch_size, **({"piece": chunk} if chunk else {}))

    parts: dict[str, list[np.ndarray]] = {"true": [], "scale": [], "model": found, "naive": [], "seasonal_naive": []}
    past = np.where(np.broadcast_to(0 if start is None else start, (len(data),)) > 0, starts, frames)
    for series, places, first in zip(data.values, origins, past, strict=True):
        wanted = series[:, columns]
        ahead = places[:, None] + 1 + np.arange(horizon)
        inside = (ahead < len(series))[..., None]
        parts["true"].append(np.where(inside, wanted[np.minimum(ahead, len(series) - 1)], np.nan))
        parts["scale"].append(
            np.broadcast_to(naive_scale(wanted[:first], season), (len(places), horizon, len(columns)))
        )
        parts["naive"].append(seasonal_naive(wanted, places, horizon))
        parts["seasonal_naive"].append(seasonal_naive(wanted, places, horizon, season))
    if season == 1:
        del parts["seasonal_naive"]
    whole = {key: np.concatenate(arrays).astype(np.float64) for key, arrays in parts.items()}
    std = model.target_std.double().cpu().numpy()
    metrics = _forecast_errors(whole, config.target_names, std)
    metrics |= {
        "series": len(data),
        "origins": sum(map(len, origins)),
        "horizon": horizon,
        "stride": stride,
        "season": season,
    }
    scaled = np.abs(whole["model"] - whole["true"]) / std
    loss = float(np.nanmean(scaled)) if not np.isnan(scaled).all() else np.nan
    kind, label = horizon_errors(metrics)
    lines = {forecast_name(key, season): row[kind] for key, row in metrics["by_horizon"].items()}
    pictures = {
        "horizons.png": partial(draw_horizons, errors=lines, label=label),
        "forecasts.png": partial(draw_forecasts, panels=_panels(model, data, starts, origins, found)),
    }
    metrics = {**metrics["errors"]["model"], "scaled_mae": loss, **metrics}
    return Report("forecast", -loss, "minus the scaled MAE", loss, metrics, pictures)


def _starts(data: Sequences, season: int, start: Any) -> np.ndarray:
    """(n,) the first frame of each series that is forecast."""
    frames = data.lengths
    if (frames < 2).any():
        raise ValueError(
            f"evaluate: a series to forecast must have 2 frames or more, {data.names[frames.argmin()]!r} has 1"
        )
    given = np.zeros(len(data), dtype=np.int64) if start is None else np.asarray(start)
    if given.ndim and len(given) != len(data):
        raise ValueError(f"evaluate: start must be one frame a series, {len(data)}, got {len(given)}")
    given = np.broadcast_to(given, (len(data),))
    if (wrong := (given < 0) | (given >= frames)).any():
        row = int(wrong.argmax())
        raise ValueError(
            f"evaluate: start must lie in [0, {frames[row]}) in {data.names[row]!r}, its frames, got {given[row]}"
        )
    return np.where(given > 0, given, np.minimum(season, frames - 1))


def _forecast_errors(whole: dict[str, np.ndarray], names: list[str], std: np.ndarray) -> dict[str, Any]:
    """MAE, RMSE and MASE of each forecast over what all of them forecast, and by frames ahead and channel.

    The scaled MAE is that of values divided by ``std`` of their channel, as in training.
    """
    forecasts = [key for key in whole if key not in ("true", "scale")]
    errors = {key: np.abs(whole[key] - whole["true"]) for key in forecasts}
    common = np.logical_and.reduce([~np.isnan(error) for error in errors.values()])
    if not common.any():
        raise ValueError("evaluate: no held-out frame has both a known value and a past, so no forecast can be judged")
    errors = {key: np.where(common, error, np.nan) for key, error in errors.items()}

    def mean(values: np.ndarray, axis: Any = None) -> Any:
        count = (~np.isnan(values)).sum(axis)
        total = np.nansum(values, axis=axis)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).tolist()

    return {
        "errors": {
            key: {"mae": mean(e), "rmse": mean(e**2) ** 0.5, "mase": mean(e / whole["scale"])}
            for key, e in errors.items()
        },
        "by_horizon": {
            key: {
                "mae": mean(e, (0, 2)),
                "rmse": np.sqrt(mean(e**2, (0, 2))).tolist(),
                "scaled_mae": mean(e / std, (0, 2)),
            }
            for key, e in errors.items()
        },
        "channels": {name: {key: mean(e[..., k]) for key, e in errors.items()} for k, name in enumerate(names)},
    }


def _panels(
    model: SequenceModel, data: Sequences, starts: np.ndarray, origins: list[np.ndarray], found: list[np.ndarray]
) -> list[dict[str, Any]]:
    """What the picture of forecasts shows: the first channels of the first series, around where they are held out."""
    config, panels = model.config, []
    each = max(1, _PANELS // len(data))
    for row in range(min(len(data), _PANELS)):
        drawn = spread(origins[row], config.horizon)
        last = int(origins[row][drawn[-1]]) + config.horizon + 1
        first = max(0, int(starts[row]) - max(last - int(starts[row]), 2 * config.horizon) // 2)
        for k, name in list(enumerate(config.target_names))[:each]:
            panels.append(
                {
                    "title": f"{name} of {data.names[row]}" if len(data) > 1 else name,
                    "first": first,
                    "values": data.values[row][first:last, config.target_channels[k]],
                    "start": int(starts[row]),
                    "forecasts": [(int(origins[row][place]), found[row][place][:, k]) for place in drawn],
                }
            )
    return panels
