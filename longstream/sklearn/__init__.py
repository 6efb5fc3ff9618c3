"""Models of sequences as scikit-learn's estimators: in pipelines, in searches, and frame by frame."""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("longstream.sklearn needs scikit-learn: pip install 'longstream[sklearn]'") from error

from longstream.sklearn.classifier import SequenceClassifier
from longstream.sklearn.forecaster import SequenceForecaster
from longstream.sklearn.regressor import SequenceRegressor

__all__ = ["SequenceClassifier", "SequenceForecaster", "SequenceRegressor"]
