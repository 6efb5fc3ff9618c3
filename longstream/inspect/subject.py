"""What `longstream inspect` looks at: the model of a run, and some of the data that it is to be looked at on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longstream.layers import HGRN, HGRN2, Hyena, SlidingWindowAttention
from longstream.models import Backbone, State
from longstream.tasks import Examples
from longstream.train.layer_scalars import find_backbone
from longstream.train.loading import SEQUENCE_MODEL, load_model, load_run, read_generator, read_model_type
from longstream.train.rundir import RunDirectory
from longstream.train.settings import Settings, build_settings, flatten

LONGEST = 4096  # tokens or frames of a sequence, unless more is asked for
LEAST_EXAMPLES = 64  # of a token task, for its accuracy
SHOWN = (HGRN, HGRN2, Hyena, SlidingWindowAttention)


@dataclass(frozen=True)
class Subject:
    """A model, and sequences of equal length.

    Attributes:
        name:           the folder.
        unit:           "tokens" or "frames".
        inputs:         (N, T) ids, (N, T, C) frames, or (N, height, width, C) images.
        data:           what the inputs are, in words.
        trained_length: of the sequences it was trained on; 0 where that is not known.
        settings:       of the run; None of a model without one.
        metrics:        the rows of its metrics.jsonl.
        notes:          what has to be said of the inputs.
        examples:       of a token task: inputs and what is asked of them.
        chance:         of a token task: the accuracy of guessing.
    """

    name: str
    model: Any
    backbone: Backbone
    unit: str
    inputs: Tensor
    data: str
    trained_length: int = 0
    settings: Settings | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    notes: tuple[str, ...] = ()
    examples: Examples | None = None
    chance: float = 0.0

    @property
    def batch_size(self) -> int:
        """Sequences that it was trained on at a time; 1 where that is not known."""
        return 1 if self.settings is None else self.settings.train.batch_size

    @property
    def length(self) -> int:
        """T, or of images the number of pixels."""
        return int(np.prod(self.inputs.shape[1:] if self.unit == "tokens" else self.inputs.shape[1:-1]))

    @property
    def causal(self) -> bool:
        """Whether it goes from token to token, and so has a state and looks back only."""
        return self.backbone.causal

    @property
    def mixers(self) -> list[Any]:
        """The mixer of each layer."""
        return [block.mixer for block in self.backbone.layers]

    @torch.no_grad()
    def run(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """The network's vector of each place, (rows, T, D), and the state after the last; None if it is not causal."""
        if self.unit == "frames":
            out = self.model(values=inputs, state=state)
            return out.hidden, out.state
        out = self.model.base_model(input_ids=inputs, past_key_values=state, use_cache=self.causal)
        return out.last_hidden_state, out.past_key_values.state if self.causal else None

    @torch.no_grad()
    def predict(self, hidden: Tensor) -> Tensor:
        """Of tokens the probabilities of the next one, (..., vocabulary)."""
        return self.model.get_output_embeddings()(hidden).float().softmax(-1)


def read_subject(
    path: str,
    *,
    data: Sequence[str] = (),
    reading: Mapping[str, Any] | None = None,
    generator: str = "",
    length: int = 0,
    count: int = 8,
) -> Subject:
    """The model of a folder, and data for it.

    Args:
        path:      run directory, or a checkpoint or model of this library.
        data:      files, or "builtin"; none: what the run held out.
        reading:   settings of how the files are read, where they are not as the run's own.
        generator: of a token task: the task, where it is not the run's own.
        length:    tokens or frames of a sequence; 0: twice what it was trained on, of token tasks theirs.
        count:     sequences.
    Raises:
        ValueError: the model is of another kind, or the data do not fit.    FileNotFoundError: a file is missing.
    """
    if count < 1 or length < 0 or length == 1:
        which, got = ("sequences must be >= 1", count) if count < 1 else ("length must be >= 2, or 0", length)
        raise ValueError(f"inspect: {which}, got {got}")
    is_frames, own = read_model_type(path) == SEQUENCE_MODEL, read_generator(path)
    run = next((RunDirectory(p) for p in (Path(path), Path(path).resolve().parent.parent) if _is_run(p)), None)
    settings = None if run is None else run.read_settings()
    kind = "frames" if is_frames else "text" if own is None else "token tasks"
    for name, value, fits in (("generator", generator, "token tasks"), ("data", data, "frames and text")):
        if value and kind not in fits:
            raise ValueError(f"inspect: --{name} is for runs of {fits}; {path} is one of {kind}")
    if reading and not (is_frames and data):
        raise ValueError(f"inspect: {next(iter(reading))} is about --data FILE... of sequences")
    examples, chance = None, 0.0
    if is_frames:
        model, inputs, what, notes = _read_frames(path, settings, data, dict(reading or {}), length, count)
    elif own is not None:
        model, examples, what, chance = _read_token_task(path, generator or own, length, count)
        inputs, notes = torch.from_numpy(examples.inputs[:count].astype(np.int64)), []
    else:
        model, inputs, what, notes = _read_text(path, settings, data, length, count)
    backbone = find_backbone(model)
    assert backbone is not None  # _refuse_others has looked
    return Subject(
        name=path,
        model=model,
        backbone=backbone,
        unit="frames" if is_frames else "tokens",
        inputs=inputs,
        data=what,
        trained_length=_trained_length(settings, kind, own),
        settings=settings,
        metrics=() if run is None else run.read_metrics(),
        notes=tuple(notes),
        examples=examples,
        chance=chance,
    )


_Read = tuple[Any, Tensor, str, list[str]]


def _read_text(path: str, settings: Settings | None, files: Sequence[str], length: int, count: int) -> _Read:
    from longstream.baselines.language import context_limit
    from longstream.train.text_task import read_data, read_files

    model, tokenizer = load_run(path)
    _refuse_others(path, model)
    notes: list[str] = []
    if files:
        documents, what = read_files(files, build_settings().data), ", ".join(files)
    elif settings is None:
        raise ValueError(f"{path} has no settings.toml that says what was held out; give --data FILE...")
    else:
        trained, documents = read_data(settings.data)
        what = f"held out from {', '.join(settings.data.validation_files or settings.data.files)}"
        if not documents:
            documents, what = trained, ", ".join(settings.data.files)
            notes.append("The run held nothing out: this is what it was trained on.")
    ids = [tokenizer.encode_document(document) for document in documents]
    longest = min(max(map(len, ids)), context_limit(model) or LONGEST**2)
    wanted = length or min(LONGEST, 2 * (settings.data.seq_len if settings else 512))
    if length > longest:
        raise ValueError(f"inspect: length must be at most {longest:,}, as {what} or the model has it, got {length:,}")
    T = min(wanted, longest)
    if T < 2:
        raise ValueError(f"inspect: {what} must have documents of at least 2 tokens, got {longest}")
    windows = [each[i : i + T] for each in ids for i in range(0, len(each) - T + 1, T)]
    rows = np.stack([windows[i] for i in _evenly(len(windows), count)]).astype(np.int64)
    return model, torch.from_numpy(rows), what, notes


def _read_token_task(path: str, generator: str, length: int, count: int) -> tuple[Any, Examples, str, float]:
    from longstream.tasks import make_task
    from longstream.train.evaluate_tokens import check_readable

    model = load_model(path)
    _refuse_others(path, model)
    task = make_task(generator)
    check_readable(model, task, who="inspect")
    if length:
        raise ValueError(f"inspect: length must be 0 for a token task, which has {task.length:,} tokens, got {length}")
    size = task.size("test")
    count = max(count, LEAST_EXAMPLES)
    examples = task.make(count if size is None else min(count, size), 0, "test")
    return model, examples, f"test examples of {task.describe()}", task.chance


def _read_frames(
    path: str, settings: Settings | None, files: Sequence[str], reading: dict[str, Any], length: int, count: int
) -> _Read:
    from longstream.sequences import SequenceModel, read_sequences
    from longstream.train.sequence_task import read_parts, read_spec

    model = SequenceModel.from_pretrained(path).eval()
    _refuse_others(path, model)
    stored = flatten(settings) if settings is not None else {"data.task": model.config.task}
    notes: list[str] = []
    if files:
        if "data.labels_file" not in reading:
            stored.pop("data.labels_file", None)  # of the run's own files
        spec = read_spec(build_settings(stored, reading).data)
        sequences, what = read_sequences(list(files), spec, model.config.task), ", ".join(files)
    elif settings is None:
        raise ValueError(f"{path} has no settings.toml that says what was held out; give --data FILE...")
    else:
        trained, held_out, _ = read_parts(settings.data)
        sequences = trained if held_out is None else held_out
        what = f"held out from {', '.join(settings.data.validation_files or settings.data.files)}"
        if held_out is None:
            what = ", ".join(settings.data.files)
            notes.append("The run held nothing out: this is what it was trained on.")
    if list(sequences.channels) != list(model.config.channels):
        raise ValueError(f"inspect: {what} must have the channels {model.config.channels}, got {sequences.channels}")
    if sequences.is_grid:
        chosen = [sequences.values[i] for i in _evenly(len(sequences), count)]
        return model, torch.from_numpy(np.stack(chosen)), what, notes
    longest = min(int(sequences.lengths.max()), model.max_frames or LONGEST**2)
    if length > longest:
        raise ValueError(f"inspect: length must be at most {longest:,}, as {what} or the model has it, got {length:,}")
    # half of all are at least as long as the median, so some sequences of that length are no odd ones
    T = length or min(int(np.median(sequences.lengths)), longest, LONGEST)
    long_enough = [value for value in sequences.values if len(value) >= T]
    chosen = [long_enough[i][:T] for i in _evenly(len(long_enough), count)]
    if len(long_enough) < len(sequences) or any(len(value) > T for value in long_enough):
        notes.append(f"Of sequences of at least {T:,} frames, the first {T:,}; shorter ones are left out.")
    return model, torch.from_numpy(np.stack(chosen).astype(np.float32)), what, notes


def _refuse_others(path: str, model: Any) -> None:
    backbone = find_backbone(model)
    kind = model.config.name if hasattr(model.config, "outputs") else model.config.model_type
    if backbone is None or not all(isinstance(block.mixer, SHOWN) for block in backbone.layers):
        raise ValueError(
            f"inspect: {path} is a {kind} model; gates, states and filters are shown of hgrn, hgrn2, hyena and hybrid"
        )


def _trained_length(settings: Settings | None, kind: str, generator: str | None) -> int:
    if generator is not None:
        from longstream.tasks import make_task

        return make_task(generator).length
    return settings.data.seq_len if settings is not None and kind == "text" else 0


def _is_run(path: Path) -> bool:
    return RunDirectory(path).settings.is_file()


def _evenly(size: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, size - 1, min(size, count)).round()]
