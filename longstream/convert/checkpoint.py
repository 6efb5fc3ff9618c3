"""A checkpoint on disk: which format it is of, its configuration, and its tensors against ours."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CONFIG_MAPPING

import longstream.hf  # noqa: F401  the Auto classes know our types after it
from longstream.convert import frames, opennlplab
from longstream.convert.layouts import Layout, fla_layout, hyenadna_layout, own_layout, skeleton
from longstream.convert.tensors import (
    Below,
    Held,
    Made,
    SafetensorsFiles,
    Tensors,
    npz_file,
    open_safetensors,
    same_bits,
    torch_files,
)
from longstream.hf._misfits import describe_misfits
from longstream.hf.configuration_hyenadna import HyenaDNAConfig

FORMATS = ("longstream", "fla", "hyenadna", "opennlplab", "axon")
_TYPES = {"longstream": "longstream", "hgrn": "fla", "hgrn2": "fla", "hyenadna": "hyenadna"}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "weights.ckpt")  # in this order


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, opened but not read.

    Attributes:
        path:    the folder, or the file.
        format:  one of FORMATS.
        config:  of `longstream.hf`, or `FrameConfig` of a model of frames.
        has_head: whether it is a causal language model, or else what is below the head.
        ours:    our names, with shapes; a dtype here means nothing.
        layout:  between ours and those of the file.
        tensors: of the file.
        is_stored_config: whether ``config`` is what config.json beside the tensors says in our classes' own words.
        holds_more: whether there are a head and a normalization besides, which are left out.
    """

    path: Path
    format: str
    config: Any
    has_head: bool
    ours: dict[str, Tensor]
    layout: Layout
    tensors: Tensors
    is_stored_config: bool = False
    holds_more: bool = False

    @property
    def is_frames(self) -> bool:
        """Whether it is a model of frames."""
        return isinstance(self.config, frames.FrameConfig)

    def in_our_names(self) -> Made:
        """The tensors as our model has them."""
        return Made(self.tensors, self.layout.to_ours)

    def parameters(self) -> int:
        """How many numbers there are."""
        return sum(tensor.numel() for tensor in self.ours.values())

    def describe(self) -> str:
        """One line."""
        if self.is_frames:
            what = self.config.name + (", without its head and its normalization" if self.holds_more else "")
        else:
            what = f"{self.config.model_type}, {self.config.num_hidden_layers} layers" + (
                "" if self.has_head else ", without a head"
            )
        return f"{self.path} ({self.format}: {what}, {self.parameters():,} parameters)"


def open_checkpoint(path: Path, format: str | None = None, given: dict[str, Any] | None = None) -> Checkpoint:
    """Open what is there and check the names and shapes of its tensors.

    Args:
        path:   a folder with config.json and weights; a file of weights with config.json beside it; or a file of an
                Edifice model.
        format: one of FORMATS; None looks.
        given:  in place of what is in config.json. For Axon's weights: options of `longstream.build`.
    Raises:
        FileNotFoundError: something is not there.
        ValueError: the format is not known; a file is damaged; tensors are missing, spare or misshapen: all are named.
    """
    with _said_in_one_line(path):
        found = _open(path, format, given)
    _check(found)
    return found


def _open(path: Path, format: str | None, given: dict[str, Any] | None) -> Checkpoint:
    frames_file = path.is_file() and path.suffix in (".npz", ".safetensors")
    if format == "axon" or (frames_file and format in (None, "longstream") and _is_frames_file(path)):
        return _open_frames(path, given or {})
    if format in (None, "longstream") and _is_sequence_run(path, given):
        return _open_sequence_model(path, given)
    return _open_language_model(path, format, given)


@contextmanager
def _said_in_one_line(path: Path) -> Iterator[None]:
    """A configuration with values of a wrong kind is one more thing that can be wrong with a file."""
    try:
        yield
    except (StrictDataclassError, TypeError, KeyError, AttributeError) as error:
        lines = " ".join(str(error).split())
        raise ValueError(f"convert: the configuration of {path} makes no sense: {lines}") from error


def _is_frames_file(path: Path) -> bool:
    if path.suffix == ".npz" or frames.is_ours(path):
        return True
    with open_safetensors(path) as file:
        return any(frames.axon_name(name) == "final_norm/gamma" for name in file.keys())  # noqa: SIM118


def _open_frames(path: Path, given: Mapping[str, Any]) -> Checkpoint:
    if not path.is_file():
        raise FileNotFoundError(f"convert: no file {path}")
    tensors: Tensors = npz_file(path) if path.suffix == ".npz" else SafetensorsFiles([path])
    config = frames.read_metadata(path, getattr(tensors, "metadata", {}))
    if config is not None:
        ours, _ = frames.axon_layout(config, [])
        return Checkpoint(path, "longstream", config, False, ours, own_layout(ours), tensors)
    kept = {name: tensors.get(name) for name in tensors.names() if not name.startswith("__")}
    config = frames.read_axon_config(path, Held(kept), given)
    ours, layout = frames.axon_layout(config, list(kept))
    return Checkpoint(path, "axon", config, False, ours, layout, Held(kept))


def _is_sequence_run(path: Path, given: dict[str, Any] | None) -> bool:
    if not (path / "config.json").is_file():
        return False
    return (given or read_json(path / "config.json")).get("model_type") == "longstream-sequence"


def _open_sequence_model(path: Path, given: dict[str, Any] | None) -> Checkpoint:
    """Of a model trained on sequences, the network below its head and above its normalization, if it is Edifice's."""
    from longstream.sequences import SequenceConfig

    config = SequenceConfig.from_dict(given or read_json(path / "config.json"))
    if not config.name.startswith("edifice-"):
        raise ValueError(
            f"convert: {path} is a model of sequences with the network {config.name}; only Edifice's, edifice-hgrn and"
            " edifice-hyena, have another format"
        )
    frame_config = frames.FrameConfig(config.name, {"embed_dim": config.inputs, "outputs": "all", **config.options})
    ours, _ = frames.axon_layout(frame_config, [])
    tensors = Below(_read_weights(path), "features.")
    return Checkpoint(path, "longstream", frame_config, False, ours, own_layout(ours), tensors, holds_more=True)


def _open_language_model(path: Path, format: str | None, given: dict[str, Any] | None) -> Checkpoint:
    folder = path.parent if path.is_file() else path
    if not path.exists():
        raise FileNotFoundError(f"convert: no file or folder {path}")
    tensors = _read_weights(path)
    values = read_json(folder / "config.json") if given is None else given
    names = tensors.names()
    found = format or _recognize(values)
    has_head = any(name.startswith(("model.", "hyena.")) for name in names)
    if found is None:
        raise ValueError(
            f"convert: {folder / 'config.json'} is of model_type {values.get('model_type')!r}, which is none of"
            f" {[*_TYPES]}, nor is it HyenaDNA's or OpenNLPLab's own; --config FILE takes the place of it"
        )
    if found == "opennlplab":
        config: Any = opennlplab.opennlplab_config(values, names)
    elif found == "hyenadna" and "layer" in values:
        config = HyenaDNAConfig.from_authors(values)
    else:
        kind = values.get("model_type", "hyenadna" if found == "hyenadna" else None)  # which --from then says
        if _TYPES.get(str(kind)) != found:
            types = [kind for kind, name in _TYPES.items() if name == found]
            raise ValueError(f"convert: model_type must be one of {types} for {found}, got {kind!r}")
        config = CONFIG_MAPPING[kind].from_dict(values)
    ours = skeleton(config, has_head)
    if found == "fla":
        layout = fla_layout(config, ours)
    elif found == "hyenadna":
        layout = hyenadna_layout(config, ours, names)
    elif found == "opennlplab":
        layout = opennlplab.opennlplab_layout(values, ours)
    else:
        layout = own_layout(ours)
    is_stored = given is None and values.get("model_type") == config.model_type and found != "opennlplab"
    return Checkpoint(path, found, config, has_head, ours, layout, tensors, is_stored)


def _recognize(values: Mapping[str, Any]) -> str | None:
    if "decoder_embed_dim" in values:
        return "opennlplab"
    if isinstance(values.get("layer"), Mapping) and "d_model" in values:
        return "hyenadna"
    return _TYPES.get(str(values.get("model_type")))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"convert: no {path}; --config names a file in its place")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"convert: {path} must be JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"convert: {path} must hold a JSON object, got {type(values).__name__}")
    return values


def _read_weights(path: Path) -> Tensors:
    if path.is_file():
        return SafetensorsFiles([path]) if path.suffix == ".safetensors" else torch_files([path])
    for name in _WEIGHTS:
        file, index = path / name, path / f"{name}.index.json"
        files = [file] if file.is_file() else _shards(index) if index.is_file() else []
        if files:
            return SafetensorsFiles(files) if name.endswith(".safetensors") else torch_files(files)
    others = ", ".join(_WEIGHTS[:-1])
    raise FileNotFoundError(f"convert: {path} must have weights, {others} or {_WEIGHTS[-1]}, got {_listing(path)}")


def _listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))[:8]


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"convert: {index} must have a weight_map")
    files = [index.parent / name for name in dict.fromkeys(weight_map.values())]
    if outside := [file.name for file in files if file.parent != index.parent]:
        raise ValueError(f"convert: {index} names files in other folders: {outside}")
    if lacking := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"convert: {index} names files that are not there: {', '.join(lacking)}")
    return files


def _check(checkpoint: Checkpoint) -> None:
    """Name everything that does not fit, at once."""
    expected = Made(Held(checkpoint.ours), checkpoint.layout.to_theirs)
    wanted = {name: tuple(expected.meta(name).shape) for name in expected.names()}
    copies = checkpoint.layout.copies
    got = {name: checkpoint.tensors.meta(name) for name in checkpoint.tensors.names()}
    missing, spare = wanted.keys() - got.keys(), got.keys() - wanted.keys() - copies.keys()
    wrong = []
    for name, tensor in sorted(got.items()):
        shape = wanted.get(name, wanted.get(copies.get(name, "")))
        if shape is not None and tuple(tensor.shape) != shape:
            wrong.append(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        elif shape is not None and not tensor.is_floating_point():
            wrong.append(f"{name} must be floating point, got {tensor.dtype}")
    if not (missing or spare or wrong):
        wrong += [
            f"{name} must be equal to {other}, which it is tied to, got another"
            for name, other in copies.items()
            if name in got and not same_bits(checkpoint.tensors.get(name), checkpoint.tensors.get(other))
        ]
    if misfits := describe_misfits(missing=missing, spare=spare, wrong=wrong):
        raise ValueError(f"convert: {checkpoint.path} does not fit its configuration: {misfits}")
