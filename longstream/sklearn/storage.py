"""Estimators in folders: the model as `longstream.sequences` saves it, and estimator.json with the rest. No pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import longstream
from longstream.sequences import SequenceModel
from longstream.train.rundir import quiet_transformers, written_beside

if TYPE_CHECKING:
    from longstream.sklearn.estimator import SequenceEstimator

_FORMAT = "longstream.sklearn 1"
_FILE = "estimator.json"
_OURS = {_FILE, "config.json", "model.safetensors"}


def save(estimator: SequenceEstimator, path: Path, *, overwrite: bool) -> None:
    """Write ``estimator`` as the folder ``path``: beside it first, then renamed."""
    who = f"{type(estimator).__name__}.save"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{who}: no directory {path.parent}")
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{who}: {path} exists; pass overwrite=True to replace it")
        if not path.is_dir() or (found := {file.name for file in path.iterdir()}) - _OURS or _FILE not in found:
            raise FileExistsError(f"{who}: {path} is not the folder of an estimator, and stays as it is")
    about = {
        "format": _FORMAT,
        "longstream": longstream.__version__,
        "class": type(estimator).__name__,
        "settings": {
            name: _to_json(f"{who}: {name}", value) for name, value in estimator.get_params(deep=False).items()
        },
        "fitted": {name: _to_json(f"{who}: {name}", getattr(estimator, name)) for name in estimator.stored},
    }
    text = json.dumps(about, indent=2, allow_nan=False)
    with written_beside(path) as beside, quiet_transformers():
        beside.mkdir()
        estimator.model_.save_pretrained(beside)
        (beside / _FILE).write_text(text + "\n", encoding="utf-8")


def load(kind: type[SequenceEstimator], path: Path) -> SequenceEstimator:
    """The estimator of class ``kind`` that `save` wrote as ``path``."""
    who = f"{kind.__name__}.load"
    if not path.is_dir():
        raise FileNotFoundError(f"{who}: no folder {path}")
    file = path / _FILE
    if not file.is_file():
        raise FileNotFoundError(f"{who}: {path} holds no estimator: {_FILE} is missing")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']!r}, this version reads {_FORMAT!r}")
        if about["class"] != kind.__name__:
            raise ValueError(f"it is of a {about['class']}: use {about['class']}.load")
        settings = {name: _from_json(value) for name, value in about["settings"].items()}
        fitted = {name: _from_json(about["fitted"][name]) for name in kind.stored}
        estimator = kind(**settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{who}: {file} is damaged or not of this class: {error}") from None
    estimator.adopt(SequenceModel.from_pretrained(path), fitted)
    return estimator


def _to_json(who: str, value: Any) -> Any:
    """What JSON can hold of a setting; arrays and dictionaries with keys of any kind are marked as such."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(who, item) for item in value]
    if isinstance(value, dict):
        return {"pairs": [[_to_json(who, key), _to_json(who, item)] for key, item in value.items()]}
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return {"dtype": "O" if value.dtype == object else value.dtype.str, "values": _to_json(who, value.tolist())}
    raise ValueError(f"{who} must be numbers, words, or lists and dicts of them to be saved, got {value!r:.60}")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict) and "pairs" in value:
        return {_from_json(key): _from_json(item) for key, item in value["pairs"]}
    if isinstance(value, dict):
        return np.array(value["values"], dtype=np.dtype(value["dtype"]))
    return value
