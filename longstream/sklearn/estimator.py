"""What the three estimators share: their settings, training, streams, and files."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from longstream.models import State
from longstream.sequences import SequenceModel, Sequences, make_model, predict
from longstream.sequences.split import split_sequences
from longstream.sklearn import storage
from longstream.sklearn.inputs import read_frame, read_sequences

_AT_LEAST = {"hidden_size": 1, "num_layers": 1, "steps": 0, "batch_size": 1, "patience": 0, "eval_every": 0, "chunk": 0}
_RANGES = {  # (holds, in words)
    "minutes": (lambda x: 0 <= x < math.inf, "finite and >= 0"),
    "learning_rate": (lambda x: 0 < x < math.inf, "finite and > 0"),
    "warmup_ratio": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "finite and >= 0"),
    "validation_fraction": (lambda x: 0 <= x < 1, "in [0, 1)"),
}


@dataclass(eq=False, repr=False)
class SequenceEstimator(BaseEstimator):
    """The settings of `SequenceClassifier`, `SequenceRegressor` and `SequenceForecaster`, which document them."""

    task: ClassVar[str]
    stored: ClassVar[tuple[str, ...]] = ("n_features_in_", "_width")  # what `save` writes beside the model

    model: str = "hgrn2"
    _: KW_ONLY
    hidden_size: int = 64
    num_layers: int = 2
    options: dict[str, Any] | None = None
    steps: int = 500
    minutes: float = 0.0
    batch_size: int = 32
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    validation_fraction: float = 0.0
    patience: int = 0
    eval_every: int = 50
    chunk: int = 0
    layout: str = "time-channels"
    random_state: int | np.random.RandomState | None = None
    device: str = "cpu"
    verbose: bool = False

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    @property
    def _who(self) -> str:
        return type(self).__name__

    def _check_settings(self, at_least: dict[str, int] | None = None) -> None:
        """Refuse settings that make no sense, before anything is read or trained."""
        for name, least in {**_AT_LEAST, **(at_least or {})}.items():
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ValueError(f"{self._who}: {name} must be an integer >= {least}, got {value!r}")
        for name, (holds, words) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or isinstance(value, bool) or not holds(value):
                raise ValueError(f"{self._who}: {name} must be {words}, got {value!r}")
        if not self.steps and not self.minutes:
            raise ValueError(f"{self._who}: steps must be >= 1 where minutes are 0, got 0")
        if self.patience and not self.validation_fraction:
            raise ValueError(f"{self._who}: patience needs sequences to watch: set validation_fraction, got 0")
        if self.options is not None and not isinstance(self.options, dict):
            raise ValueError(f"{self._who}: options must be a dict of the model's options, got {self.options!r}")
        if self.device not in ("cpu", "auto"):
            raise ValueError(
                f"{self._who}: device must be 'cpu' or 'auto' (a GPU where there is one), got {self.device!r}"
            )

    def _train(self, train: Sequences, held_out: Sequences | None, seed: int, model: Any, fit: dict[str, Any]) -> None:
        """Make a model for the data and train it; the process' random numbers stay as they were."""
        from longstream.train.fit import fit_sequences

        with _own_random_numbers(seed), _shown(self.verbose):
            options = {"hidden_size": int(self.hidden_size), "num_layers": int(self.num_layers), **(self.options or {})}
            made: Any = make_model(self.model, train, task=self.task, options=options, **model)
            if self.device == "auto" and torch.cuda.is_available():
                made.cuda()
            self.history_ = fit_sequences(
                made,
                train,
                held_out,
                steps=int(self.steps),
                minutes=float(self.minutes),
                batch_size=int(self.batch_size),
                learning_rate=float(self.learning_rate),
                weight_decay=float(self.weight_decay),
                schedule=self.schedule,
                warmup_ratio=float(self.warmup_ratio),
                seed=seed,
                patience=int(self.patience),
                eval_every=int(self.eval_every),
                chunk=int(self.chunk),
                verbose=self.verbose,
                **fit,
            )
        self.model_ = made.eval()
        self.n_features_in_, self._width = len(train.channels), None
        self._stream = None

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _check_channels(self, values: list[np.ndarray]) -> None:
        """Refuse X with other channels than in training."""
        known = len(self.model_.config.channels)
        for value in values:
            if value.shape[-1] != known:
                raise ValueError(_other_features(self._who, value.shape[-1], known, "the channels of a frame"))

    def _train_and_choose(
        self, data: Sequences, width: int | None, weights: np.ndarray | None, make: dict[str, Any], fit: dict[str, Any]
    ) -> None:
        """As `_train` for whole sequences, some of them held out where settings ask for it.

        ``width`` is that of a table; ``weights`` are of all sequences.
        """
        seed, train, held_out = self._seed(), data, None
        if self.validation_fraction:
            train, held_out = split_sequences(data, self.validation_fraction, seed)
            if weights is not None:  # names are places in data
                weights = weights[[int(name) for name in train.names]]
        make = {"seq_len": int(data.lengths.max()), **make}  # also of what is held out
        self._train(train, held_out, seed, make, {"sample_weight": weights, **fit})
        self._width = width
        self.n_features_in_ = width or self.n_features_in_

    def _predict_all(self, X: Any) -> np.ndarray:
        """The model's logits or predictions (n, outputs) for whole sequences."""
        check_is_fitted(self)
        values, width = read_sequences(self._who, X, self.layout)
        if width is not None and self._width is not None and width != self._width:
            what = "the columns of a table; sequences of another length go as X[:, :, None], or as a list of arrays"
            raise ValueError(_other_features(self._who, width, self._width, what))
        self._check_channels(values)
        return predict(self.model_, values, batch_size=int(self.batch_size), chunk=int(self.chunk))

    # --- streams

    def reset_stream(self) -> SequenceEstimator:
        """Forget the frames of `partial_predict`: the next one is the first of its sequence, or of a batch of them."""
        check_is_fitted(self)
        self._stream = None
        return self

    @property
    def stream_state(self) -> Any:
        """What the stream remembers, a `longstream.State` (None before the first frame); set it to return to where it
        was. Frames that come later do not change it, so it can be kept, and saved.
        """
        return getattr(self, "_stream", None)

    @stream_state.setter
    def stream_state(self, state: Any) -> None:
        if state is not None and not isinstance(state, State):
            raise TypeError(f"{self._who}: stream_state must be a State or None, got {type(state).__name__}")
        self._stream = state

    def _step(self, frame: Any) -> tuple[Any, bool]:
        """The model's output after one more frame, and whether it was a frame of one stream."""
        check_is_fitted(self)
        rows, single = read_frame(f"{self._who}.partial_predict", frame, len(self.model_.config.channels))
        state = self.stream_state
        if state is not None and state.batch_size != len(rows):
            raise ValueError(
                f"{self._who}.partial_predict: frame must be of the {state.batch_size} streams that began, got"
                f" {len(rows)}; reset_stream() begins others"
            )
        with torch.no_grad():
            output, self._stream = self.model_.step(torch.from_numpy(rows).to(self.model_.device), state)
        return output, single

    # --- files

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a folder: config.json and model.safetensors, as `longstream.sequences.SequenceModel` reads them, and
        estimator.json with settings and classes. The training data is not in it.

        Raises:
            FileExistsError: path exists and overwrite is False.    NotFittedError: there is nothing to save yet.
        """
        check_is_fitted(self)
        storage.save(self, Path(path), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """Read what `save` wrote, and nothing that could run code.

        Raises:
            FileNotFoundError: no such folder, or a file is missing.    ValueError: it is damaged, or of another class.
        """
        return storage.load(cls, Path(path))

    def adopt(self, model: SequenceModel, fitted: dict[str, Any]) -> None:
        """Take a loaded model and what was stored beside it, checked against each other."""
        if model.config.task != self.task:
            raise ValueError(
                f"{self._who}.load: the model must be there to {self.task}, got one to {model.config.task}"
            )
        for name, value in fitted.items():
            setattr(self, name, value)
        self.model_ = model.eval()
        self._stream = None


def _other_features(who: str, got: int, expected: int, what: str) -> str:
    """A message that begins in scikit-learn's words, which its checks expect."""
    return f"X has {got} features, but {who} is expecting {expected} features as input: {what}"


def require_y(estimator: SequenceEstimator, y: Any) -> None:
    """Refuse y that was left out; in scikit-learn's words, which its checks expect."""
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")


def check_weights(estimator: SequenceEstimator, given: Any, n: int) -> np.ndarray:
    """(n,) weights >= 0 of sequences; None is 1 for each."""
    if given is None:
        return np.ones(n)
    who = f"{type(estimator).__name__}: sample_weight"
    weights = check_array(given, dtype="float64", ensure_2d=False, input_name="sample_weight")
    if weights.shape != (n,):
        raise ValueError(f"{who} must have one number a sequence, shape ({n},), got {weights.shape}")
    if (weights < 0).any() or not weights.any():
        raise ValueError(f"{who} must be >= 0 and not all zero, got a weight of {weights.min():g}")
    return weights


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Within, the process' random numbers come from seed; afterwards they go on as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _shown(verbose: bool) -> Iterator[None]:
    """Within, what training logs goes to stderr, if that is wished and the process does not show it already."""
    logger = logging.getLogger("longstream")
    if not verbose or (logger.hasHandlers() and logger.isEnabledFor(logging.INFO)):
        yield
        return
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
