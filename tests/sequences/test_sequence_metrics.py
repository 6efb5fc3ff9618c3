"""Figures against scikit-learn's, and the simple forecasts against plain loops."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as theirs

from longstream.sequences.metrics import classification, confusion, naive_scale, regression, seasonal_naive


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_as_scikit_learn_has_them(classes):
    random = np.random.default_rng(0)
    true = random.integers(0, classes, 60)
    predicted = np.where(random.random(60) < 0.6, true, random.integers(0, classes, 60))
    counts = confusion(true, predicted, classes)
    found = classification(counts, list("abcde"[:classes]))
    np.testing.assert_array_equal(counts, theirs.confusion_matrix(true, predicted))
    assert found["accuracy"] == pytest.approx(theirs.accuracy_score(true, predicted))
    assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(true, predicted))
    assert found["macro_f1"] == pytest.approx(theirs.f1_score(true, predicted, average="macro"))
    each: Any = theirs.precision_recall_fscore_support(true, predicted)
    for i, row in enumerate(found["classes"].values()):
        assert [row[k] for k in ("precision", "recall", "f1", "count")] == pytest.approx([part[i] for part in each])


def test_classes_that_do_not_occur_or_are_not_predicted():
    true, predicted = np.array([0, 0, 1, 1, 3]), np.array([0, 2, 1, 0, 0])  # 4 never; 3 never called; 2 never true
    found = classification(confusion(true, predicted, 5), list("abcde"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["balanced_accuracy"] == pytest.approx(theirs.balanced_accuracy_score(true, predicted))
        assert found["macro_f1"] == pytest.approx(theirs.f1_score(true, predicted, average="macro"))
    assert found["classes"]["d"] == {"precision": 0, "recall": 0, "f1": 0, "count": 1}
    assert found["classes"]["e"]["count"] == 0


def test_numbers_as_scikit_learn_has_them():
    random = np.random.default_rng(0)
    true = random.normal(size=(50, 3)) * [1, 10, 1000] + 5
    predicted = true + random.normal(size=(50, 3)) * [0.5, 20, 3]
    found = regression(true, predicted, ["a", "b", "c"])
    assert found["mae"] == pytest.approx(theirs.mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(theirs.root_mean_squared_error(true, predicted))
    assert found["r2"] == pytest.approx(theirs.r2_score(true, predicted))
    known = true.copy()
    known[:20, 1] = np.nan
    found = regression(known, predicted, ["a", "b", "c"])["targets"]["b"]
    assert found["count"] == 30
    assert found["r2"] == pytest.approx(theirs.r2_score(true[20:, 1], predicted[20:, 1]))
    constant = np.ones((4, 1))
    for guess in (constant, constant + 1):
        assert regression(constant, guess, ["a"])["r2"] == theirs.r2_score(constant, guess)
    assert np.isnan(regression(np.full((3, 1), np.nan), np.ones((3, 1)), ["a"])["mae"])


@pytest.mark.parametrize("season", [1, 4, 7])
@pytest.mark.parametrize("horizon", [1, 9])
def test_the_forecast_that_repeats_the_last_season(season, horizon):
    random = np.random.default_rng(0)
    values = random.normal(size=(30, 2))
    values[random.random((30, 2)) < 0.2] = np.nan
    origins = np.array([0, 2, 6, 15, 29])
    found = seasonal_naive(values, origins, horizon, season)
    for i, t in enumerate(origins):
        for ahead in range(1, horizon + 1):
            for k in range(2):
                place = t + ahead
                while place > t or (place >= 0 and np.isnan(values[place, k])):
                    place -= season
                expected = values[place, k] if place >= 0 else np.nan
                np.testing.assert_equal(found[i, ahead - 1, k], expected)


def test_the_scale_of_mase():
    values = np.array([[1.0, 5, 2], [2, 5, np.nan], [4, 5, 4], [8, 5, np.nan]])
    np.testing.assert_allclose(naive_scale(values), [7 / 3, np.nan, np.nan])
    np.testing.assert_allclose(naive_scale(values, 2), [4.5, np.nan, 2])
    assert np.isnan(naive_scale(values, 4)).all()
