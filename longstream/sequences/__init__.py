"""Sequences that are not text: sensors, images, sound, DNA; read from files, held in memory, split; models of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longstream.sequences.data import Sequences, as_labels, concatenate, label_order
from longstream.sequences.documents import read_token_documents
from longstream.sequences.read import read_sequences
from longstream.sequences.spec import ReadSpec
from longstream.sequences.split import split_sequences, split_time

if TYPE_CHECKING:
    from longstream.sequences.collate import Collator as Collator
    from longstream.sequences.collate import LengthBuckets as LengthBuckets
    from longstream.sequences.collate import SequenceDataset as SequenceDataset
    from longstream.sequences.collate import class_weights as class_weights
    from longstream.sequences.collate import label_numbers as label_numbers
    from longstream.sequences.config import SequenceConfig as SequenceConfig
    from longstream.sequences.evaluation import evaluate as evaluate
    from longstream.sequences.make import make_model as make_model
    from longstream.sequences.model import SequenceModel as SequenceModel
    from longstream.sequences.model import SequenceOutput as SequenceOutput
    from longstream.sequences.prediction import forecast_at as forecast_at
    from longstream.sequences.prediction import predict as predict
    from longstream.sequences.report import Report as Report

# What needs transformers is imported when it is first asked for: readers need numpy alone.
_LAZY = {
    "collate": ("Collator", "LengthBuckets", "SequenceDataset", "class_weights", "label_numbers"),
    "config": ("SequenceConfig",),
    "evaluation": ("evaluate",),
    "make": ("make_model",),
    "model": ("SequenceModel", "SequenceOutput"),
    "prediction": ("forecast_at", "predict"),
    "report": ("Report",),
}
_MODULE = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


__all__ = [
    "ReadSpec",
    "Sequences",
    "as_labels",
    "concatenate",
    "label_order",
    "read_sequences",
    "read_token_documents",
    "split_sequences",
    "split_time",
]
