"""Estimators learn, take and return what they should, and answer frame by frame."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from longstream import State
from longstream.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor
from tests.sklearn.waves import CUBE, LEVELS, SERIES, TINY, X, Y, circle, waves

RANDOM = np.random.default_rng(0)


def again(estimator: Any, **settings: Any) -> Any:
    copy: Any = clone(estimator)
    return copy.set_params(**settings)


def test_the_classifier_learns_from_sequences_of_any_lengths(classifier):
    held_out, labels = waves(seed=1)
    assert classifier.score(held_out, labels) > 0.95
    assert classifier.classes_.tolist() == ["fast", "slow"]
    probabilities = classifier.predict_proba(held_out)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(held_out)).all()


def test_columns_of_probabilities_are_in_the_order_of_classes():
    """The model sorts classes as text with numbers by value, scikit-learn by numpy: 10 < 9 in one of them."""
    labels = np.where(Y == "slow", "10", "9")
    found = SequenceClassifier("hgrn", steps=60, **TINY).fit(X, labels)
    assert found.classes_.tolist() == ["10", "9"]
    assert found.model_.config.classes == ["9", "10"]
    assert (found.predict(X) == labels).mean() > 0.95
    assert found.predict_proba(X).argmax(1).tolist() == [["10", "9"].index(label) for label in found.predict(X)]


def test_the_regressor_learns_numbers_in_the_user_s_units():
    y = 1000 + 500 * LEVELS
    found = SequenceRegressor("hgrn2", steps=80, **TINY).fit(X, y)
    assert found.score(X, y) > 0.9
    assert abs(found.predict(X).mean() - y.mean()) < 20


def test_the_forecaster_beats_the_season(forecaster):
    noisy = circle(0, 200, noise=0.2, seed=1)
    assert 0.1 < forecaster.score(noisy) < 0.3  # repeating noise doubles its variance: 1 - 0.5 ** 0.5 at best
    np.testing.assert_allclose(forecaster.predict(SERIES), circle(200, 203), atol=0.3)


def test_the_score_of_a_forecaster_by_hand(forecaster):
    series, season, horizon = circle(0, 32, noise=0.2, seed=2), 12, 3
    errors = {"model": [], "season": []}
    for t in range(season - 1, len(series) - 1):
        true = series[t + 1 : t + 1 + horizon]
        before = series[t + 1 - season : t + 1 - season + horizon]
        errors["model"].append(np.abs(forecaster.predict(series[: t + 1])[: len(true)] - true))
        errors["season"].append(np.abs(before[: len(true)] - true))
    model, repeated = (np.concatenate(errors[key]).mean(0) for key in ("model", "season"))
    assert forecaster.score(series) == pytest.approx(1 - (model / repeated).mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["edifice-hgrn", "edifice-hyena", "hybrid", "hyena", "gru", "lstm", "llama", "mamba"])
def test_any_network_by_name(name):
    options = {"num_layers": 2} if name == "hybrid" else {}
    found = SequenceClassifier(name, steps=2, **{**TINY, **options}).fit(CUBE, Y)
    assert found.predict(CUBE).shape == Y.shape


def test_a_grid_for_a_network_of_two_dimensions():
    images = RANDOM.normal(size=(20, 4, 5, 1))
    found = SequenceClassifier("hgrn", steps=2, options={"direction": "2d"}, **TINY).fit(images, np.arange(20) % 2)
    assert found.predict(images).shape == (20,)


def test_the_layout_is_an_argument(classifier):
    other = SequenceClassifier("hgrn2", steps=60, layout="channels-time", **TINY).fit([x.T for x in X], Y)
    np.testing.assert_array_equal(
        other.predict_proba(CUBE.transpose(0, 2, 1)), classifier.predict_proba(CUBE), strict=True
    )


def test_missing_values_are_taken_as_missing():
    holes = [np.where(RANDOM.random(x.shape) < 0.3, np.nan, x) for x in X]
    found = SequenceClassifier("hgrn2", steps=60, **TINY).fit(holes, Y)
    assert found.model_.config.indicators == [0, 1]
    assert found.score(holes, Y) > 0.9


def test_a_missing_value_where_training_had_none_is_refused(classifier):
    X_hole = CUBE.copy()
    X_hole[3, 4, 1] = np.nan
    with pytest.raises(ValueError, match=r"missing \(NaN\) in the channels \['1'\]"):
        classifier.predict(X_hole)


def test_series_come_back_as_they_went_in(forecaster):
    several = np.stack([SERIES[:50], SERIES[3:53]])
    found = forecaster.predict(several)
    assert found.shape == (2, 3, 2)
    np.testing.assert_allclose(forecaster.predict(SERIES[3:53]), found[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forecaster.predict(list(several)), found, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        forecaster.predict(pd.DataFrame(SERIES, columns=["0", "1"])), forecaster.predict(SERIES)
    )
    turned = again(forecaster, layout="channels-time", steps=2).fit(SERIES.T)
    assert turned.predict(SERIES.T).shape == (2, 3)
    one = again(forecaster, steps=2).fit(SERIES[:, 0])
    assert one.predict(SERIES[:, 0]).shape == (3,)


@pytest.mark.parametrize("name", ["hyena", "hybrid", "llama"])
def test_series_longer_than_a_network_takes(name):
    settings = {**TINY, "num_layers": 2}
    found = SequenceForecaster(name, steps=2, seq_len=32, horizon=2, **settings).fit(SERIES)
    assert found.predict(SERIES).shape == (2, 2)
    assert np.isfinite(found.score(SERIES))


def test_targets_of_a_forecast_by_number_and_by_name():
    frame = pd.DataFrame(SERIES, columns=["load", "heat"])
    settings = {"steps": 2, "horizon": 4, **TINY}
    named = SequenceForecaster("hgrn2", targets=["heat"], **settings).fit(frame)
    numbered = SequenceForecaster("hgrn2", targets=[1], **settings).fit(SERIES)
    assert named.predict(frame).shape == (4, 1)
    np.testing.assert_array_equal(named.predict(frame), numbered.predict(SERIES))
    assert named.channels_.tolist() == ["load", "heat"]
    with pytest.raises(ValueError, match=r"must have the columns \['load', 'heat'\], got \['heat', 'load'\]"):
        named.predict(frame[["heat", "load"]])


def test_a_stream_answers_as_the_whole_sequence_does(classifier):
    classifier.reset_stream()
    for t, frame in enumerate(X[0]):
        found = classifier.partial_predict_proba(frame)
        if t in (0, 5, len(X[0]) - 1):
            np.testing.assert_allclose(found, classifier.predict_proba([X[0][: t + 1]])[0], rtol=1e-4, atol=1e-6)
    classifier.reset_stream()
    labels = [classifier.partial_predict(frame) for frame in X[0]]
    assert labels[-1] == classifier.predict([X[0]])[0]


def test_a_batch_of_streams(classifier, regressor):
    for estimator in (classifier, regressor):
        estimator.reset_stream()
        found = [estimator.partial_predict(frames) for frames in CUBE.swapaxes(0, 1)][-1]
        whole = estimator.predict(CUBE)
        assert found.shape == whole.shape
        if estimator is regressor:
            np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-5)
        else:
            assert (found == whole).all()


def test_a_stream_forecasts_after_every_frame(forecaster):
    forecaster.reset_stream()
    found = [forecaster.partial_predict(frame) for frame in SERIES[:30]][-1]
    np.testing.assert_allclose(found, forecaster.predict(SERIES[:30]), rtol=1e-3, atol=1e-5)


def test_a_stream_returns_to_where_it_was(classifier, tmp_path):
    assert classifier.reset_stream().stream_state is None
    for frame in X[1][:5]:
        classifier.partial_predict(frame)
    kept = classifier.stream_state
    kept.save(tmp_path / "stream.safetensors")
    first = [classifier.partial_predict_proba(frame) for frame in X[1][5:9]]
    for state in (kept, State.load(tmp_path / "stream.safetensors")):
        classifier.stream_state = state
        np.testing.assert_array_equal([classifier.partial_predict_proba(frame) for frame in X[1][5:9]], first)


def test_streams_that_do_not_fit_are_refused(classifier):
    classifier.reset_stream().partial_predict(X[0][0])
    with pytest.raises(ValueError, match="of the 1 streams that began, got 3"):
        classifier.partial_predict(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"frame must have shape \(2,\)"):
        classifier.partial_predict(np.zeros(3))
    classifier.reset_stream()
    assert classifier.partial_predict(np.zeros((3, 2))).shape == (3,)
    with pytest.raises(NotFittedError):
        SequenceClassifier().partial_predict(np.zeros(2))


def test_a_network_without_a_state_says_so():
    found = SequenceClassifier("hgrn2", steps=2, options={"direction": "bidirectional"}, **TINY).fit(CUBE, Y)
    with pytest.raises(RuntimeError, match="takes whole sequences"):
        found.partial_predict(CUBE[0, 0])
