"""The trained model of a folder, checked before it is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from longstream.train.rundir import GENERATOR, quiet_transformers
from longstream.train.tokenizer import Tokenizer, load_tokenizer

SEQUENCE_MODEL = "longstream-sequence"  # the type of models that do not read text


class LoadedRun(NamedTuple):
    """A trained model, ready to evaluate or to write."""

    model: Any  # a causal language model of longstream.hf, or a baseline
    tokenizer: Tokenizer


def read_model_type(path: str | Path) -> str:
    """transformers' word for the kind of model in a folder.

    Raises:
        FileNotFoundError: there is none; the message says what is missing.    ValueError: its configuration is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run directory")
    config, weights = path / "config.json", path / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        missing = weights if config.is_file() else config
        saved = "; nothing has been saved yet" if (path / "settings.toml").is_file() else ""
        raise FileNotFoundError(f"{path} holds no trained model: {missing.name} is missing{saved}")
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} is not the configuration of a model: {error}") from None


def load_run(path: str | Path) -> LoadedRun:
    """The model and tokenizer of a run, a checkpoint, or any folder in transformers' format with such a model.

    Raises:
        FileNotFoundError: a file is missing; the message says which.
        ValueError: a file is damaged or of another kind of model.
    """
    if (generator := read_generator(path)) is not None:
        raise ValueError(f"{path} is a model of the task {generator}, which knows no text: use longstream evaluate")
    model = load_model(path)
    tokenizer = load_tokenizer(Path(path))
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}"
        )
    return LoadedRun(model, tokenizer)


def read_generator(path: str | Path) -> str | None:
    """The token task that a model was trained on, as `longstream.tasks.make_task` reads it; None of another model.

    Raises:
        ValueError: the file that says it is damaged.
    """
    file = Path(path) / GENERATOR
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["generator"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def load_model(path: str | Path) -> Any:
    """The language model of a folder, without a tokenizer.

    Raises:
        FileNotFoundError: a file is missing; the message says which.
        ValueError: a file is damaged or of another kind of model.
    """
    from transformers import AutoModelForCausalLM

    from longstream import hf
    from longstream.baselines.language import MODEL_TYPES as BASELINES

    model_type = read_model_type(path)
    path = Path(path)
    config, weights = path / "config.json", path / "model.safetensors"
    types = [*(known.model_type for known in (hf.HGRNConfig, hf.HGRN2Config, hf.LongstreamConfig)), *BASELINES]
    if model_type == SEQUENCE_MODEL:
        raise ValueError(
            f"{path} is a model of sequences that are not text, which writes none: use longstream evaluate"
        )
    if model_type not in types:
        raise ValueError(f"{config} is of a {model_type!r} model; longstream reads {', '.join(types)}")
    with quiet_transformers():  # what does not fit is said below, in a line and not in a table
        options: dict[str, Any] = {
            "use_safetensors": True,
            "local_files_only": True,
            "ignore_mismatched_sizes": True,
        }
        load: Any = AutoModelForCausalLM.from_pretrained
        model, found = load(path, output_loading_info=True, **options)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, found.get(kind) or ())):
            raise ValueError(
                f"{weights} does not fit {config}: {len(keys)} {kind.replace('_keys', '')} tensors, such as {keys[0]}"
            )
    return model.eval()
