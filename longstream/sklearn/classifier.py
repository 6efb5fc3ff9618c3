"""Classes of sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from longstream.sequences import Sequences, as_labels
from longstream.sklearn.estimator import SequenceEstimator, check_weights, require_y
from longstream.sklearn.inputs import read_sequences


@dataclass(eq=False, repr=False)
class SequenceClassifier(ClassifierMixin, SequenceEstimator):
    """A class for each sequence: ``softmax(head(pool(network(frames))))``, trained by cross entropy.

    X is (n, time), (n, time, channels) or a list of arrays (T_i, channels) of any lengths; NaN is a missing value.

    Args:
        model:               of `longstream.list_models`, or a baseline: "llama", "mamba", "mamba2", "gru", "lstm".
        hidden_size:         channels within the network.
        num_layers:          its blocks.
        options:             more of what `longstream.build` takes, such as {"expand_ratio": 16}.
        steps:               optimizer steps; 0: as many as ``minutes`` allow.
        minutes:             training ends after so many; 0: no limit.
        batch_size:          sequences in a step, and at once in predictions.
        learning_rate:       the highest, of AdamW.
        schedule:            "cosine", or "wsd": warm up, stay, decay.
        warmup_ratio:        part of the steps spent warming up.
        weight_decay:        none on norms, biases and gates' bounds.
        validation_fraction: of the sequences, held out to choose the best model; 0: none.
        patience:            evaluations without a better held-out score before training ends; 0: it goes to the end.
        eval_every:          steps between evaluations of what is held out.
        chunk:               frames that training takes at once; longer sequences by truncated backpropagation. 0: all.
        layout:              "channels-time": X is (n, channels, time).
        random_state:        seed of weights and order.
        device:              "cpu", or "auto": a GPU where there is one.
        verbose:             whether to show the loss.
        pooling:             "mean" of the frames' vectors, or the "last" of them.
        class_weight:        "balanced", or {label: weight}; None: 1 for each.
    Attributes:
        classes_:       (classes,) labels, sorted; of the columns of `predict_proba`.
        model_:         `longstream.sequences.SequenceModel`.
        history_:       what training logged.
        n_features_in_: channels; where X was a table (n, time), its columns, and other tables must have as many.
    """

    task: ClassVar[str] = "classify"
    stored: ClassVar[tuple[str, ...]] = (*SequenceEstimator.stored, "classes_")

    pooling: str = "mean"
    class_weight: dict[Any, float] | str | None = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SequenceClassifier:
        """Train a new model.

        Args:
            X:             see above.
            y:             (n,) labels.
            sample_weight: (n,) >= 0, of the sequences in the loss; with 0 a sequence is as if not there.
        Raises:
            ValueError: a set of one sequence or one class, NaN in y, infinite or ragged X, and settings out of range.
        """
        self._check_settings()
        require_y(self, y)
        values, width = read_sequences(self._who, X, self.layout)
        y = column_or_1d(y, warn=True)
        if y.dtype.kind == "f":
            assert_all_finite(y, input_name="y")
        elif y.dtype.kind == "O":
            as_labels(y, "y")  # refuses what is missing
        check_classification_targets(y)
        check_consistent_length(values, y)
        weights = check_weights(self, sample_weight, len(values))
        kept = np.flatnonzero(weights)
        classes, numbers = np.unique(y[kept], return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"{self._who}: y must have two classes or more, got one class, n_samples={len(kept)}")
        texts = as_labels(classes, "y")
        if len(set(texts)) < len(texts):
            raise ValueError(f"{self._who}: y must have labels that differ as text too, got {classes.tolist()}")
        data = Sequences([values[i] for i in kept], labels=texts[numbers])
        fit = {"class_weight": self._class_weights(classes, texts, data.classes)}
        self._train_and_choose(
            data, width, weights[kept] if sample_weight is not None else None, {"pooling": self.pooling}, fit
        )
        self.classes_ = classes
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities in float32, in the order of ``classes_``."""
        return self._probabilities(self._predict_all(X))

    def predict(self, X: Any) -> np.ndarray:
        """(n,) the likeliest labels."""
        return self._likeliest(self.predict_proba(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy.

        Raises:
            ValueError: a label that training has not seen.
        """
        check_is_fitted(self)
        known = self.classes_.tolist()
        if unknown := [label for label in np.unique(column_or_1d(y)).tolist() if label not in known]:
            raise ValueError(f"{self._who}.score: y must be of the classes {known}, got {unknown}")
        return float(super().score(X, y, sample_weight))

    def partial_predict(self, frame: Any) -> Any:
        """The likeliest label of the frames so far: one frame (C,) of one stream, or (B, C), one for each of B streams.

        The first call after `fit`, `load` or `reset_stream` begins the streams. Returns a label, or (B,) labels.
        """
        return self._likeliest(self.partial_predict_proba(frame))

    def partial_predict_proba(self, frame: Any) -> np.ndarray:
        """As `partial_predict`, but (classes,) or (B, classes) probabilities. It takes the frame in as well."""
        output, single = self._step(frame)
        probabilities = self._probabilities(output.logits.float().cpu().numpy())
        return probabilities[0] if single else probabilities

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        columns = [self.model_.config.classes.index(text) for text in as_labels(self.classes_)]
        return torch.from_numpy(logits[:, columns]).double().softmax(-1).float().numpy()

    def _likeliest(self, probabilities: np.ndarray) -> Any:
        return self.classes_[probabilities.argmax(-1)]

    def _class_weights(self, classes: np.ndarray, texts: np.ndarray, order: list[str]) -> Any:
        """What `fit_sequences` takes: "balanced", numbers in the order of the model's classes, or None."""
        given = self.class_weight
        if given is None:
            return None
        if isinstance(given, str):
            if given != "balanced":
                raise ValueError(f"{self._who}: class_weight must be 'balanced', a dict or None, got {given!r}")
            return given
        known = classes.tolist()
        if unknown := [label for label in given if label not in known]:
            raise ValueError(f"{self._who}: class_weight must be of the classes {known}, got {unknown}")
        of = {text: float(given.get(label, 1.0)) for label, text in zip(known, texts.tolist(), strict=True)}
        return torch.tensor([of[text] for text in order])
