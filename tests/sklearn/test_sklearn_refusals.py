"""Settings, labels and series that are refused, in words."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from longstream.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor
from tests.sklearn.waves import SERIES, TINY, X

TABLE = np.random.default_rng(0).normal(size=(6, 5))
SIX = [0, 1, 0, 1, 0, 1]
SETTINGS = [
    ({"model": "hgrn3"}, "name must be one of .*'hgrn2'.*'gru'.*got 'hgrn3'"),
    ({"hidden_size": 7.5}, "hidden_size must be an integer >= 1, got 7.5"),
    ({"num_layers": 0}, "num_layers must be an integer >= 1, got 0"),
    ({"batch_size": True}, "batch_size must be an integer >= 1, got True"),
    ({"steps": 0}, "steps must be >= 1 where minutes are 0"),
    ({"minutes": -1}, "minutes must be finite and >= 0, got -1"),
    ({"learning_rate": "fast"}, "learning_rate must be finite and > 0, got 'fast'"),
    ({"weight_decay": float("nan")}, "weight_decay must be finite and >= 0, got nan"),
    ({"warmup_ratio": 2}, r"warmup_ratio must be in \[0, 1\], got 2"),
    ({"schedule": "line"}, "schedule must be one of"),
    ({"validation_fraction": 1}, r"validation_fraction must be in \[0, 1\), got 1"),
    ({"patience": 3}, "patience needs sequences to watch"),
    ({"options": "big"}, "options must be a dict"),
    ({"options": {"expand_ratio": 7}}, "expand_ratio must divide"),
    ({"layout": "ntc"}, "layout must be one of"),
    ({"device": "tpu"}, "device must be 'cpu' or 'auto'"),
    ({"pooling": "max"}, "pooling must be one of"),
    ({"class_weight": "even"}, "class_weight must be 'balanced', a dict or None"),
    ({"class_weight": {2: 1.0}}, r"class_weight must be of the classes \[0, 1\], got \[2\]"),
    ({"random_state": "dice"}, "cannot be used to seed"),
    ({"chunk": 2, "options": {"direction": "bidirectional"}}, "needs a network that carries a state"),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS, ids=[words for _, words in SETTINGS])
def test_settings_out_of_range_are_refused_when_fitting(settings, words):
    estimator = SequenceClassifier(**{"hidden_size": 16, "num_layers": 1, "steps": 1, **settings})
    with pytest.raises(ValueError, match=words):
        estimator.fit(TABLE, SIX)
    with pytest.raises(NotFittedError):
        estimator.predict(TABLE)


LABELS = [
    (SIX[:5], "inconsistent numbers of samples"),
    ([1] * 6, "two classes or more, got one class"),
    ([np.nan, 1.0, 0.0, 1.0, 0.0, 1.0], "Input y contains NaN"),
    (
        np.array(["a", None, "b", "a", "b", "a"], dtype=object),
        "y must not be missing or NaN, got 1 such, first number 1",
    ),
    (["a", "", "b", "a", "b", "a"], "y must not be missing"),
    (["a", "a ", "b", "a", "b", "a"], "labels that differ as text"),
    (np.zeros((6, 2), dtype=int), "should be a 1d array"),
    (np.linspace(0, 1, 6), "Unknown label type"),
    (None, "requires y to be passed"),
]


@pytest.mark.parametrize(("y", "words"), LABELS, ids=[words for _, words in LABELS])
def test_labels_that_are_refused(y, words):
    with pytest.raises(ValueError, match=words):
        SequenceClassifier("hgrn2", steps=1, **TINY).fit(TABLE, y)


NUMBERS = [
    ([np.nan] * 6, "Input y contains NaN"),
    ([np.inf] * 6, "Input y contains infinity"),
    (np.full(6, 1e300), "targets must be finite"),
    (np.zeros((6, 1, 1)), "dim <= 2"),
    (["a"] * 6, "could not convert string"),
    (None, "requires y to be passed"),
]


@pytest.mark.parametrize(("y", "words"), NUMBERS, ids=[words for _, words in NUMBERS])
def test_numbers_that_are_refused(y, words):
    with pytest.raises(ValueError, match=words):
        SequenceRegressor("hgrn2", steps=1, **TINY).fit(TABLE, y)


def test_a_set_of_one_sequence_is_refused():
    for estimator in (SequenceClassifier("hgrn2", steps=1), SequenceRegressor("hgrn2", steps=1)):
        with pytest.raises(ValueError, match=r"n_samples=1|one sample"):
            estimator.fit(TABLE[:1], [1])


def test_mixed_channels_are_refused(classifier):
    with pytest.raises(ValueError, match="mixed channel counts: '0' has 2, '1' 3"):
        SequenceClassifier("hgrn2", steps=1, **TINY).fit([np.zeros((5, 2)), np.zeros((6, 3))], [0, 1])
    with pytest.raises(ValueError, match="X has 3 features, but SequenceClassifier is expecting 2 features"):
        classifier.predict([np.zeros((5, 2)), np.zeros((6, 3))])


def test_a_table_of_another_width_is_refused_and_a_list_is_not():
    found = SequenceClassifier("hgrn2", steps=1, **TINY).fit(TABLE, SIX)
    assert found.n_features_in_ == 5
    with pytest.raises(ValueError, match=r"X has 4 features, but .* X\[:, :, None\]"):
        found.predict(TABLE[:, :4])
    assert found.predict(TABLE[:, :4, None]).tolist() == found.predict(list(TABLE[:, :4])).tolist()


def test_a_class_never_seen_is_refused_when_scoring(classifier):
    with pytest.raises(ValueError, match=r"y must be of the classes \['fast', 'slow'\], got \['still'\]"):
        classifier.score(X[:2], ["slow", "still"])


FORECASTS = [
    ({}, np.zeros((1, 2)), "two frames or more"),
    ({"horizon": 0}, SERIES, "horizon must be an integer >= 1, got 0"),
    ({"season": 0}, SERIES, "season must be an integer >= 1, got 0"),
    ({"targets": [5]}, SERIES, "targets must be different channels.*got 5"),
    ({"targets": [1, 1]}, SERIES, "targets must be different channels.*got 1"),
    ({"targets": "heat"}, SERIES, "targets must be a list of channels or None, got 'heat'"),
    ({"targets": []}, SERIES, "targets must name one channel or more"),
    ({"options": {"direction": "bidirectional"}}, SERIES, "a forecast needs a causal network"),
]


@pytest.mark.parametrize(("settings", "series", "words"), FORECASTS, ids=[words for *_, words in FORECASTS])
def test_forecasts_that_are_refused(settings, series, words):
    with pytest.raises(ValueError, match=words):
        SequenceForecaster("hgrn2", **{"steps": 1, **TINY, **settings}).fit(series)


def test_a_series_that_says_nothing_cannot_be_scored(forecaster):
    with pytest.raises(ValueError, match="does not merely repeat itself"):
        forecaster.score(np.ones((30, 2)))
