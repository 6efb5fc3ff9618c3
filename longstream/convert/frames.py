"""Edifice's models of frames: their tensors under Axon's names, and in a file of ours that says what model it is of."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longstream.catalog import build
from longstream.convert.layouts import Layout
from longstream.convert.tensors import Row, SafetensorsFiles, Tensors, open_safetensors
from longstream.edifice.axon import parameters_by_name
from longstream.models import FeatureModel

FORMAT = "longstream.FeatureModel"  # in the metadata of our file


@dataclass(frozen=True)
class FrameConfig:
    """What `longstream.build` is given: a name, "edifice-hgrn" or "edifice-hyena", and options."""

    name: str
    options: dict[str, Any]

    def build(self) -> FeatureModel:
        """A new model."""
        return build(self.name, **self.options)

    def metadata(self) -> dict[str, str]:
        """What a file of ours says of the model."""
        return {"format": FORMAT, "name": self.name, "options": json.dumps(self.options)}


def load_frames(path: str | Path) -> FeatureModel:
    """The model in a file that ``longstream convert`` made of Axon's weights, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.    ValueError: a file of something else, or damaged, or not whole.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_frames: no file {path}")
    files = SafetensorsFiles([path])
    config = read_metadata(path, files.metadata)
    if config is None:
        raise ValueError(f"load_frames: {path} is a file of safetensors that longstream convert did not write")
    model = config.build()
    try:
        model.load_state_dict({name: files.get(name) for name in files.names()})
    except RuntimeError as error:
        raise ValueError(f"load_frames: {path} does not fit its own description: {error}") from error
    return model.eval()


def read_metadata(path: Path, metadata: Mapping[str, str]) -> FrameConfig | None:
    """What a file of ours says that it is; None for another's."""
    if metadata.get("format") != FORMAT:
        return None
    try:
        config = FrameConfig(metadata["name"], json.loads(metadata["options"]))
        with torch.device("meta"):
            config.build()
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"convert: {path} does not say well what model it is of: {error}") from error
    return config


def is_ours(path: Path) -> bool:
    """Whether a file of safetensors is one of ours."""
    with open_safetensors(path) as file:
        return (file.metadata() or {}).get("format") == FORMAT


def axon_name(name: str) -> str:
    """With a slash between layer and kind, as Axon has it; a dot is as good."""
    return "/".join(name.rsplit("." if "/" not in name else "/", 1))


def read_axon_config(path: Path, tensors: Tensors, given: Mapping[str, Any]) -> FrameConfig:
    """The model that weights under Axon's names are of: its sizes follow from theirs, the rest is ``given``.

    Raises:
        ValueError: they are of neither of the two models; or it is Hyena and seq_len is not given.
    """
    shapes = {axon_name(name): tuple(tensors.meta(name).shape) for name in tensors.names()}
    kinds = [kind for kind in ("hgrn", "hyena") if any(name.startswith(f"{kind}_block_") for name in shapes)]
    if len(kinds) != 1 or "final_norm/gamma" not in shapes:
        raise ValueError(
            f"convert: {path} must hold a whole Edifice model, hgrn_block_1_... or hyena_block_1_... and final_norm,"
            f" got {sorted(shapes)[:3]}..."
        )
    (kind,) = kinds
    hidden = shapes["final_norm/gamma"][-1] if shapes["final_norm/gamma"] else 0
    blocks = [int(found[1]) for name in shapes if (found := re.match(rf"{kind}_block_(\d+)_", name))]
    first = {name.removeprefix(f"{kind}_block_1_"): shape for name, shape in shapes.items()}
    options: dict[str, Any] = {
        "embed_dim": shapes.get("input_projection/kernel", (hidden,))[0],
        "hidden_size": hidden,
        "num_layers": max(blocks),
    }
    if kind == "hgrn":
        options["state_expansion"] = max(first.get("rnn_value_proj/kernel", (0, hidden))[-1] // hidden, 1)
    else:
        orders = [int(found[1]) for name in first if (found := re.match(r"filter(\d+)_", name))]
        options["order"] = max(orders, default=-1) + 1
        if "filter0_dense1/bias" in first:
            options["filter_size"] = first["filter0_dense1/bias"][0]
        if not {"seq_len", "window_size"} & set(given):
            raise ValueError(
                f"convert: {path} holds Edifice's Hyena, whose seq_len no file of weights has: give --config FILE with"
                ' {"seq_len": FRAMES}'
            )
    return FrameConfig(f"edifice-{kind}", {**options, **given})


def axon_layout(config: FrameConfig, present: list[str]) -> tuple[dict[str, Tensor], Layout]:
    """Our tensors, and how Axon has them; each way there is also the way back."""
    with torch.device("meta"):
        model = config.build()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    dotted = {axon_name(name): name for name in present}
    to_ours, to_theirs = {}, {}
    for slashed, (parameter, turn) in parameters_by_name("convert", model).items():
        ours, theirs = names[id(parameter)], dotted.get(slashed, slashed)
        to_ours[ours], to_theirs[theirs] = Row((theirs,), turn), Row((ours,), turn)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}, Layout(to_ours, to_theirs)
