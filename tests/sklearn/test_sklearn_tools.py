"""Estimators in scikit-learn's pipelines and searches; seeds, weights and early stopping."""

import logging
import random
from typing import Any

import numpy as np
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from longstream.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor
from longstream.train.fit import fit_sequences
from tests.sklearn.waves import CUBE, LEVELS, SERIES, TINY, X, Y


def test_a_pipeline_with_sequences_of_any_lengths():
    def shorten(sequences):
        return [x[::2] for x in sequences]

    found = make_pipeline(FunctionTransformer(shorten), SequenceClassifier("hgrn2", steps=40, **TINY)).fit(X, Y)
    assert found.score(X, Y) > 0.8


def test_a_grid_search(tmp_path):
    search = GridSearchCV(
        SequenceClassifier("hgrn2", steps=4, **TINY), {"model": ["hgrn", "hgrn2"], "hidden_size": [8]}, cv=2
    )
    search.fit(CUBE, Y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best: Any = search.best_estimator_
    best.save(tmp_path / "best")  # parameters are numpy's by now
    np.testing.assert_array_equal(
        SequenceClassifier.load(tmp_path / "best").predict_proba(CUBE), best.predict_proba(CUBE)
    )


def test_cross_validation_of_lists_and_of_a_series():
    assert cross_val_score(SequenceClassifier("hgrn2", steps=40, **TINY), X, Y, cv=2).mean() > 0.8
    forecaster = SequenceForecaster("hgrn2", steps=3, seq_len=32, **TINY)
    scores = cross_val_score(forecaster, SERIES, cv=TimeSeriesSplit(2))
    assert np.isfinite(scores).all()
    assert len(scores) == 2


def test_two_jobs_at_once():
    """Fits in threads take turns."""
    with parallel_config(backend="threading"):
        found = cross_val_score(SequenceRegressor("hgrn2", steps=2, **TINY), CUBE, LEVELS, cv=2, n_jobs=2)
    assert np.isfinite(found).all()


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def test_a_seed_is_a_model_and_the_process_keeps_its_random_numbers():
    seed(5)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    seed(5)
    first = SequenceClassifier("hgrn2", steps=3, **TINY).fit(X, Y).predict_proba(X)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
    np.testing.assert_array_equal(SequenceClassifier("hgrn2", steps=3, **TINY).fit(X, Y).predict_proba(X), first)
    other = SequenceClassifier("hgrn2", steps=3, **{**TINY, "random_state": 1}).fit(X, Y).predict_proba(X)
    assert not np.allclose(first, other)


def test_weight_0_is_not_there():
    weights = np.arange(len(X)) % 3  # 0, 1, 2
    whole = SequenceRegressor("hgrn2", steps=3, **TINY).fit(X, LEVELS, sample_weight=weights)
    kept = np.flatnonzero(weights)
    part = SequenceRegressor("hgrn2", steps=3, **TINY).fit([X[i] for i in kept], LEVELS[kept], weights[kept])
    np.testing.assert_array_equal(whole.predict(X), part.predict(X))
    plain = SequenceRegressor("hgrn2", steps=3, **TINY).fit([X[i] for i in kept], LEVELS[kept])
    assert not np.array_equal(plain.predict(X), part.predict(X))


def test_class_weights_by_label_and_balanced():
    """Labels that say nothing: the share of the rare class is what its weight makes it."""
    rare = np.where(np.arange(len(X)) % 8 == 0, "rare", "usual")
    share = {}
    for weight in (None, "balanced", {"rare": 50.0}):
        found = SequenceClassifier("hgrn2", steps=20, class_weight=weight, **TINY).fit(X, rare)
        share[str(weight)] = found.predict_proba(X)[:, 0].mean()
    assert share["None"] < 0.3 < share["balanced"] < 0.7 < share["{'rare': 50.0}"]


def test_early_stopping_keeps_the_best_model():
    settings = {**TINY, "learning_rate": 0.05}
    noise = np.random.default_rng(9).integers(2, size=len(X))  # nothing to learn: held out it only gets worse
    found = SequenceClassifier("hgrn2", steps=200, validation_fraction=0.3, patience=2, eval_every=5, **settings).fit(
        X, noise
    )
    assert found.history_.steps < 200
    best = max(found.history_.validation, key=lambda row: (row["score"], -row["loss"]))
    assert found.history_.best_step == best["step"] < found.history_.steps


def test_weights_go_with_their_sequences_into_the_training_part(monkeypatch):
    seen = {}

    def spy(model, train, held_out, *, sample_weight, **rest):
        seen.update(labels=train.labels, weights=sample_weight)
        return fit_sequences(model, train, held_out, sample_weight=sample_weight, **rest)

    monkeypatch.setattr("longstream.train.fit.fit_sequences", spy)
    weights = np.where(Y == "slow", 1.0, 3.0)
    weights[:4] = 0
    found = SequenceClassifier("hgrn2", steps=3, validation_fraction=0.25, eval_every=2, **TINY)
    assert found.fit(X, Y, sample_weight=weights).history_.validation
    assert len(seen["labels"]) == 33  # of 44 with a weight
    np.testing.assert_array_equal(seen["weights"], np.where(seen["labels"] == "slow", 1.0, 3.0))


def test_verbose_shows_the_loss_and_only_then(capsys, monkeypatch):
    for name in (None, "longstream"):  # as in a program that has set up no logging
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    monkeypatch.setattr(logging.getLogger("longstream"), "level", logging.NOTSET)
    for verbose in (False, True):
        SequenceRegressor("hgrn2", steps=2, verbose=verbose, **TINY).fit(CUBE, LEVELS)
        assert ("loss" in capsys.readouterr().err) is verbose


def test_a_forecaster_holds_out_the_end():
    found = SequenceForecaster("hgrn2", steps=4, validation_fraction=0.2, eval_every=2, **TINY).fit(SERIES)
    assert len(found.history_.validation) == 2


def test_long_sequences_in_chunks():
    found = SequenceClassifier("hgrn2", steps=3, chunk=5, **TINY).fit(X, Y)
    whole: Any = clone(found)
    whole.set_params(chunk=0).fit(X, Y)
    assert not np.array_equal(found.predict_proba(X), whole.predict_proba(X))
    np.testing.assert_allclose(found.set_params(chunk=0).predict_proba(X), found.predict_proba(X), rtol=1e-4)
