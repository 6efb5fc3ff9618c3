"""scikit-learn's own checks of estimators, which give tables (n, time); what does not apply says why."""

from typing import Any

import pytest
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import estimator_checks_generator

from longstream.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

TINY = {"hidden_size": 16, "num_layers": 1, "batch_size": 16, "learning_rate": 1e-2}
BY_CHANCE = "training takes sequences in random batches: twice a sequence is not one of twice the weight"
NOT_ROWS = "X is one series (time, channels), and what comes out is what follows it, not a row for each of its rows"
EXPECTED = {
    SequenceClassifier: {"check_sample_weight_equivalence_on_dense_data": BY_CHANCE},
    SequenceRegressor: {
        "check_sample_weight_equivalence_on_dense_data": BY_CHANCE,
        "check_regressor_multioutput": "wants float64; the model computes in float32, and says so",
    },
    SequenceForecaster: {
        "check_methods_sample_order_invariance": NOT_ROWS,
        "check_methods_subset_invariance": NOT_ROWS,
        "check_fit1d": "a vector is a series of one channel",
        "check_fit2d_predict1d": "a vector is a series of one channel",
    },
}
# Three steps of training will do, but where a check looks at how good the model has become.
QUICK = [
    SequenceClassifier("hgrn2", steps=3, **TINY),
    SequenceRegressor("hgrn2", steps=3, **TINY),
    SequenceForecaster("hgrn2", steps=3, horizon=3, seq_len=16, **TINY),
]
THOROUGH = [
    SequenceClassifier("hgrn2", steps=60, **TINY),
    SequenceRegressor("hyena", steps=150, pooling="last", **TINY),
]
JUDGES = {"check_classifiers_train", "check_class_weight_classifiers", "check_regressors_train"}
# The same again with another container of the data.
AGAIN = {"readonly_memmap": True, "X_dtype": "float32"}


def checks_of(estimator: Any) -> Any:
    return estimator_checks_generator(estimator)


def parameters():
    for estimators, judge in ((QUICK, False), (THOROUGH, True)):
        for estimator in estimators:
            expected = EXPECTED[type(estimator)]
            for given, check in checks_of(estimator):
                name = check.func.__name__
                if (name in JUDGES) is not judge:
                    continue
                marks = [pytest.mark.xfail(reason=expected[name], strict=True)] if name in expected else []
                again = any(check.keywords.get(key) == value for key, value in AGAIN.items())
                if judge and (again or isinstance(estimator, SequenceRegressor)):
                    marks.append(pytest.mark.slow)
                words = [f"{key}={value}" for key, value in check.keywords.items()]
                yield pytest.param(given, check, marks=marks, id="-".join([type(given).__name__, name, *words]))


@pytest.mark.parametrize(("estimator", "check"), list(parameters()))
def test_scikit_learn_s_checks(estimator: BaseEstimator, check):
    check(estimator)


def test_what_is_expected_to_fail_is_there():
    """A check that scikit-learn drops or renames is noticed."""
    for estimator in QUICK:
        names = {check.func.__name__ for _, check in checks_of(estimator)}
        assert set(EXPECTED[type(estimator)]) <= names
