"""What comes next in series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from longstream.sequences import Sequences, evaluate, forecast_at
from longstream.sequences.split import split_time
from longstream.sklearn.estimator import SequenceEstimator
from longstream.sklearn.inputs import Series, read_series


@dataclass(eq=False, repr=False)
class SequenceForecaster(SequenceEstimator):
    """The next frames after each frame: ``x_T + head(network(x_1 ... x_T))`` for all of them at once.

    Trained by absolute error on windows, at every frame of them. X is one series, (time,) or (time, channels), or
    several: (n, time, channels) or a list of arrays of any lengths; NaN is a missing value. What comes out has the
    shape and layout of what went in, with ``horizon`` frames.

    Args:
        model, hidden_size ... verbose: as of `SequenceClassifier`, but that
        batch_size:          counts windows,
        validation_fraction: is that of the end of every series,
        layout:              "channels-time" is (channels, time) and (n, channels, time).
        horizon:             frames to forecast.
        targets:             channels to forecast, by number, or by name where X is a data frame; None: all.
        seq_len:             frames of a window; shorter series are one window. 0: 256. Hyena sees no farther back.
        season:              frames after which a series repeats itself; `score` compares with the frame that far back.
    Attributes:
        model_:         `longstream.sequences.SequenceModel`.
        history_:       what training logged.
        n_features_in_: channels.
        channels_:      their names.
    """

    task: ClassVar[str] = "forecast"
    stored: ClassVar[tuple[str, ...]] = (*SequenceEstimator.stored, "channels_")

    horizon: int = 1
    targets: Sequence[int | str] | None = None
    seq_len: int = 0
    season: int = 1

    def fit(self, X: Any, y: Any = None) -> SequenceForecaster:
        """Train a new model on X; y is there for scikit-learn's pipelines, and not looked at.

        Raises:
            ValueError: infinite or ragged X, series that are too short, unknown targets, settings out of range.
        """
        from longstream.train.fit import WINDOW

        self._check_settings({"horizon": 1, "seq_len": 0, "season": 1})
        series = read_series(self._who, X, self.layout)
        channels = series.names or tuple(map(str, range(series.values[0].shape[-1])))
        data = Sequences(series.values, channels=channels)
        if data.lengths.max() < 2:
            raise ValueError(f"{self._who}: X must have a series of two frames or more, got n_samples=1 in each")
        targets = self._target_names(data.channels)
        seed = self._seed()
        train, held_out = split_time(data, self.validation_fraction) if self.validation_fraction else (data, None)
        frames = min(int(self.seq_len) or WINDOW, int(data.lengths.max()))
        made = {"horizon": int(self.horizon), "target_channels": targets, "seq_len": frames}
        self._train(train, held_out, seed, made, {"seq_len": int(self.seq_len)})
        self.channels_ = np.array(data.channels)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The ``horizon`` frames that follow the end of each series: (horizon,), (horizon, K) or (n, horizon, K), with
        time last where layout is "channels-time". K channels, the ``targets``.
        """
        series = self._read(X)
        ends = [np.array([len(value) - 1]) for value in series.values]
        found = np.concatenate(forecast_at(self.model_, series.values, ends, batch_size=int(self.batch_size)))
        found = found if self.layout == "time-channels" else found.swapaxes(1, 2)  # from (n, horizon, K)
        if series.ndim == 3:
            return found
        return found[0] if series.ndim == 2 else found.reshape(-1)

    def score(self, X: Any, y: Any = None) -> float:
        """Skill: 1 - (mean absolute error) / (that of repeating the value one ``season`` earlier), over the forecasts
        after every frame of X, from the first for which there is a season; 1 is perfect, 0 no better than repeating.
        """
        data = Sequences(self._read(X).values, channels=tuple(self.channels_))
        report = evaluate(self.model_, data, batch_size=int(self.batch_size), season=int(self.season))
        naive = "seasonal_naive" if self.season > 1 else "naive"
        errors = [errors for errors in report.metrics["channels"].values() if errors[naive] > 0]
        if not errors:
            raise ValueError(f"{self._who}.score: X must have a target that does not merely repeat itself, got none")
        return float(1 - np.mean([channel["model"] / channel[naive] for channel in errors]))

    def partial_predict(self, frame: Any) -> np.ndarray:
        """The forecast after one more frame: a frame (C,) of one stream, or (B, C), one for each of B streams.

        The first call after `fit`, `load` or `reset_stream` begins the streams. Returns (horizon, K), of several
        streams (B, horizon, K).
        """
        output, single = self._step(frame)
        found = output.prediction.cpu().numpy()
        return found[0] if single else found

    def _read(self, X: Any) -> Series:
        check_is_fitted(self)
        series = read_series(self._who, X, self.layout)
        self._check_channels(series.values)
        if series.names and series.names != tuple(self.channels_):
            raise ValueError(
                f"{self._who}: X must have the columns {self.channels_.tolist()}, got {list(series.names)}"
            )
        return series

    def _target_names(self, channels: Sequence[str]) -> tuple[str, ...]:
        """The names of the channels to forecast; none: all."""
        if self.targets is None:
            return ()
        if isinstance(self.targets, str) or not np.iterable(self.targets):
            raise ValueError(f"{self._who}: targets must be a list of channels or None, got {self.targets!r}")
        names = []
        for target in self.targets:
            if isinstance(target, int | np.integer) and not isinstance(target, bool):
                name = channels[target] if 0 <= target < len(channels) else None
            else:
                name = target if target in channels else None
            if name is None or name in names:
                raise ValueError(
                    f"{self._who}: targets must be different channels, by number or of the names {list(channels)}, got"
                    f" {target!r}"
                )
            names.append(name)
        if not names:
            raise ValueError(f"{self._who}: targets must name one channel or more, got none")
        return tuple(names)
