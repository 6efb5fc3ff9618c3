"""Estimators in files: what comes back, what is refused, and that nothing is lost."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from longstream.sklearn import SequenceClassifier, SequenceRegressor
from tests.sklearn.waves import CUBE, SERIES, TINY, X, Y


@pytest.mark.parametrize("name", ["classifier", "regressor", "forecaster"])
def test_saved_and_loaded_is_the_same(name, request, tmp_path):
    estimator = request.getfixturevalue(name)
    data = SERIES if name == "forecaster" else CUBE
    estimator.save(tmp_path / "model")
    files = sorted(file.name for file in (tmp_path / "model").iterdir())
    assert files == ["config.json", "estimator.json", "model.safetensors"]
    loaded = type(estimator).load(tmp_path / "model")
    assert loaded.get_params() == estimator.get_params()
    for other in (loaded, pickle.loads(pickle.dumps(estimator)), copy.deepcopy(estimator)):
        np.testing.assert_array_equal(other.predict(data), estimator.predict(data), strict=True)
        assert other.n_features_in_ == estimator.n_features_in_
    frame = data[0] if name == "forecaster" else data[0, 0]
    assert np.array_equal(loaded.partial_predict(frame), estimator.reset_stream().partial_predict(frame))


@pytest.mark.parametrize(
    "labels", [[0, 1], [0.0, 2.0], [False, True], ["é", "b c"], np.array(["x", "y"], dtype=object)]
)
def test_labels_of_every_kind_survive(labels, tmp_path):
    y = np.asarray(labels)[(Y == "slow").astype(int)]
    found = SequenceClassifier("hgrn2", steps=2, class_weight={labels[0]: 2.0}, **TINY).fit(X, y)
    found.save(tmp_path / "model")
    loaded = SequenceClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.classes_, found.classes_)
    assert loaded.classes_.dtype == found.classes_.dtype
    assert loaded.class_weight == found.class_weight
    assert loaded.predict(X).dtype == found.predict(X).dtype


def test_nothing_is_overwritten_unasked(classifier, tmp_path):
    classifier.save(tmp_path / "model")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        classifier.save(tmp_path / "model")
    classifier.save(tmp_path / "model", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="stays as it is"):
        classifier.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"
    with pytest.raises(FileNotFoundError, match="no directory"):
        classifier.save(tmp_path / "absent" / "model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "model"]


def test_what_is_no_estimator_is_not_loaded(classifier, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        SequenceClassifier.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"estimator\.json is missing"):
        SequenceClassifier.load(tmp_path / "empty")
    classifier.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"of a SequenceClassifier: use SequenceClassifier\.load"):
        SequenceRegressor.load(tmp_path / "model")
    about = (tmp_path / "model" / "estimator.json").read_text()
    (tmp_path / "model" / "estimator.json").write_text(about[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        SequenceClassifier.load(tmp_path / "model")
    (tmp_path / "model" / "estimator.json").write_text(about)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="safetensors"):
        SequenceClassifier.load(tmp_path / "model")
    with pytest.raises(NotFittedError):
        SequenceClassifier().save(tmp_path / "unfitted")
