"""Estimators trained once for all tests."""

import gc

import numpy as np
import pytest

from longstream.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor
from tests.sklearn.waves import LEVELS, TINY, X, Y, circle

gc.freeze()  # accelerate collects garbage in every fit; what is imported by now is none, and takes longest to look at


@pytest.fixture(scope="session")
def classifier():
    return SequenceClassifier("hgrn2", steps=60, **TINY).fit(X, Y)


@pytest.fixture(scope="session")
def regressor():
    return SequenceRegressor("hgrn", steps=3, **TINY).fit(X, np.stack([LEVELS, 3 * LEVELS], 1))


@pytest.fixture(scope="session")
def forecaster():
    settings = {"horizon": 3, "seq_len": 48, "season": 12, **TINY}
    return SequenceForecaster("hgrn2", steps=120, **settings).fit(circle(0, 200, noise=0.2))
