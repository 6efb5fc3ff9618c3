"""Figures of merit on numpy arrays: of classes, of numbers, and the forecasts that any other must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int: how many sequences of each true class (row) were called each class (column)."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (true, predicted), 1)
    return table


def classification(table: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro F1, and precision, recall and F1 of each class, from a confusion matrix.

    As scikit-learn has them: balanced accuracy is the mean recall of the classes that occur, macro F1 the mean over the
    classes that occur or are predicted; precision without a prediction and recall without a sequence count as 0.
    """
    right, of_class, called = np.diag(table), table.sum(1), table.sum(0)
    precision, recall = right / np.maximum(called, 1), right / np.maximum(of_class, 1)
    f1 = 2 * right / np.maximum(of_class + called, 1)
    return {
        "accuracy": float(right.sum() / table.sum()),
        "balanced_accuracy": float(recall[of_class > 0].mean()),
        "macro_f1": float(f1[(of_class + called) > 0].mean()),
        "classes": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "count": int(of_class[i]),
            }
            for i, name in enumerate(classes)
        },
    }


def regression(true: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """MAE, RMSE and R2 of each target (columns), and their means over the targets; unknown true values are left out.

    R2 of a target that does not vary is 1 where it is met exactly, else 0, as scikit-learn has it.
    """
    each: dict[str, dict[str, float]] = {}
    for k, name in enumerate(names):
        known = ~np.isnan(true[:, k])
        error = (predicted[known, k] - true[known, k]).astype(np.float64)
        if not len(error):
            each[name] = {"mae": np.nan, "rmse": np.nan, "r2": np.nan, "count": 0}
            continue
        spread = float(((true[known, k] - true[known, k].astype(np.float64).mean()) ** 2).sum())
        left = float((error**2).sum())
        r2 = 1 - left / spread if spread > 0 else float(left == 0)
        each[name] = {
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "r2": r2,
            "count": len(error),
        }
    known = [row for row in each.values() if row["count"]]
    means = {key: float(np.mean([row[key] for row in known])) if known else np.nan for key in ("mae", "rmse", "r2")}
    return {**means, "targets": each}


def seasonal_naive(values: np.ndarray, origins: np.ndarray, horizon: int, season: int = 1) -> np.ndarray:
    """Forecasts (origins, horizon, K) that repeat the last season; season 1 repeats the last value.

    After frame t, frame t + k is taken to be as the last observed one a whole number of seasons before it and not after
    t.

    Args:
        values:  (T, K), NaN: missing.
        origins: numbers t of the last frames that are known.
    Returns:
        The forecasts; NaN where there is no such value.
    """
    T, K = values.shape
    rounds = -(-T // season)
    filled = np.full((rounds * season, K), np.nan, dtype=values.dtype)
    filled[:T] = values
    filled = filled.reshape(rounds, season, K)
    for i in range(1, rounds):
        filled[i] = np.where(np.isnan(filled[i]), filled[i - 1], filled[i])
    filled = filled.reshape(-1, K)
    ahead = np.arange(1, horizon + 1)
    places = np.asarray(origins)[:, None] + ahead - season * -(-ahead // season)  # (origins, horizon), at most t
    return np.where((places >= 0)[..., None], filled[np.maximum(places, 0)], np.nan)


def naive_scale(values: np.ndarray, season: int = 1) -> np.ndarray:
    """(K,) mean absolute difference of values (T, K) a season apart: what MASE divides by. NaN where it is 0 or there
    is none (Hyndman & Koehler 2006).
    """
    if len(values) <= season:
        return np.full(values.shape[1], np.nan)
    step = np.abs(values[season:].astype(np.float64) - values[:-season])
    count = (~np.isnan(step)).sum(0)
    mean = np.nansum(step, axis=0) / np.maximum(count, 1)
    return np.where((count > 0) & (mean > 0), mean, np.nan)
