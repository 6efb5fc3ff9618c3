"""Numbers of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import Tags, check_array, check_consistent_length

from longstream.sequences import Sequences
from longstream.sklearn.estimator import SequenceEstimator, check_weights, require_y
from longstream.sklearn.inputs import read_sequences


@dataclass(eq=False, repr=False)
class SequenceRegressor(RegressorMixin, SequenceEstimator):
    """One number or several for each sequence: ``head(pool(network(frames)))``, trained by squared error.

    X is (n, time), (n, time, channels) or a list of arrays (T_i, channels) of any lengths; NaN is a missing value.

    Args:
        model ... verbose, pooling: as of `SequenceClassifier`.
    Attributes:
        model_:         `longstream.sequences.SequenceModel`.
        history_:       what training logged.
        n_features_in_: channels; where X was a table (n, time), its columns, and other tables must have as many.
    """

    task: ClassVar[str] = "regress"
    stored: ClassVar[tuple[str, ...]] = (*SequenceEstimator.stored, "_y_ndim")

    pooling: str = "mean"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SequenceRegressor:
        """Train a new model.

        Args:
            X:             see above.
            y:             (n,) or (n, K) numbers.
            sample_weight: (n,) >= 0, of the sequences in the loss; with 0 a sequence is as if not there.
        Raises:
            ValueError: a set of one sequence, NaN in y, infinite or ragged X, and settings out of range.
        """
        self._check_settings()
        require_y(self, y)
        values, width = read_sequences(self._who, X, self.layout)
        y = check_array(y, dtype="float64", ensure_2d=False, input_name="y")
        check_consistent_length(values, y)
        weights = check_weights(self, sample_weight, len(values))
        kept = np.flatnonzero(weights)
        if len(kept) < 2:
            raise ValueError(f"{self._who}: X must have two sequences or more, got one sample")
        data = Sequences([values[i] for i in kept], targets=y[kept])
        self._train_and_choose(
            data, width, weights[kept] if sample_weight is not None else None, {"pooling": self.pooling}, {}
        )
        self._y_ndim = y.ndim
        return self

    def predict(self, X: Any) -> np.ndarray:
        """(n,) or (n, K) float32, as y was."""
        found = self._predict_all(X)
        return found[:, 0] if self._y_ndim == 1 else found

    def partial_predict(self, frame: Any) -> Any:
        """What the frames so far say: one frame (C,) of one stream, or (B, C), one for each of B streams.

        The first call after `fit`, `load` or `reset_stream` begins the streams. Returns a number or (K,); for several
        streams (B,) or (B, K).
        """
        output, single = self._step(frame)
        found = output.prediction.cpu().numpy()
        found = found[:, 0] if self._y_ndim == 1 else found
        return found[0] if single else found
