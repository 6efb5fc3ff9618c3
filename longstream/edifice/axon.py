"""Weights by Axon's names: Edifice's parameters into our models and back.

An Axon parameter is "layer/kind": "kernel" (inputs, outputs) and "bias" of dense layers, "kernel" (taps, 1, channels)
of the short convolution, "gamma" and "beta" of norms.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from longstream.edifice._parts import LayerNorm, Part
from longstream.layers import ShortConv
from longstream.models import FeatureModel


class _Parameter(NamedTuple):
    """One of our parameters, and how it looks in Axon; the way there is also the way back."""

    tensor: Tensor
    turn: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """In Axon."""
        return tuple(self.turn(self.tensor).shape)


def load_axon(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load Axon-named weights from a .npz or .safetensors file, all or none.

    Layer and kind may be divided by a slash or by a dot. Arrays whose names begin with "__" are left alone.

    Args:
        model: what `hgrn.build` and `hyena.build` and the builders of blocks and layers make; the name that a block or
               a layer was built with is what its parameters' names begin with.
        path:  the file. Nothing in it is ever unpickled.
    Raises:
        FileNotFoundError: no such file.    TypeError: the model is not one of Edifice's.
        ValueError: the file is none of the two kinds or damaged; parameters are missing, spare or of another shape.
    """
    ours = parameters_by_name("load_axon", model)
    given: dict[str, Tensor] = {}
    for name, tensor in _read(Path(path)).items():
        if name.startswith("__"):
            continue
        slashed = "/".join(name.rsplit("." if "/" not in name else "/", 1))
        if slashed in given:
            raise ValueError(f"load_axon: {path} has {slashed} twice, once with a dot")
        given[slashed] = tensor
    problems = []
    if missing := [name for name in ours if name not in given]:
        problems.append(f"missing {', '.join(missing)}")
    if spare := [name for name in given if name not in ours]:
        problems.append(f"not of this model {', '.join(spare)}")
    for name in ours.keys() & given.keys():
        if tuple(given[name].shape) != ours[name].shape:
            problems.append(f"{name} must have shape {ours[name].shape}, got {tuple(given[name].shape)}")
        elif not given[name].is_floating_point():
            problems.append(f"{name} must be floating point, got {given[name].dtype}")
    if problems:
        raise ValueError(f"load_axon: {path} does not fit, and nothing was loaded: {'; '.join(sorted(problems))}")
    with torch.no_grad():
        for name, (tensor, turn) in ours.items():
            tensor.copy_(turn(given[name]))


def save_axon(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the weights to a safetensors file under Axon's names, with slashes; `load_axon` reads it.

    It is written beside first, then renamed, so that no half-written file ever has the name.

    Raises:
        FileExistsError: path exists and overwrite is False.    FileNotFoundError: its directory does not.
        TypeError: the model is not one of Edifice's.           ValueError: the name does not end in .safetensors.
    """
    from safetensors.torch import save_file

    path = Path(path)
    ours = parameters_by_name("save_axon", model)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_axon: path must end in .safetensors, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"save_axon: no directory {path.parent}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"save_axon: {path} exists; pass overwrite=True to replace it")
    tensors = {name: turn(tensor.detach().cpu()).contiguous() for name, (tensor, turn) in ours.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, beside, metadata={"format": "pt"})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def parameters_by_name(who: str, model: nn.Module) -> dict[str, _Parameter]:
    """A model's parameters by Axon's names, and how each looks there."""
    layers: dict[str, nn.Module] = {}
    part = model
    if isinstance(model, FeatureModel):
        part = model.backbone
        layers |= {} if model.input_projection is None else {"input_projection": model.input_projection}
    if not isinstance(part, Part):
        raise TypeError(f"{who}: model must be one of longstream.edifice's, got {type(model).__name__}")
    layers |= part.axon_layers()
    parameters = {}
    for name, layer in layers.items():
        if isinstance(layer, LayerNorm):
            parameters |= {
                f"{name}/gamma": _Parameter(layer.weight, _same),
                f"{name}/beta": _Parameter(layer.bias, _same),
            }
            continue
        assert isinstance(layer, nn.Linear | ShortConv)
        assert layer.bias is not None
        turn = _transposed if isinstance(layer, nn.Linear) else _taps
        parameters |= {f"{name}/kernel": _Parameter(layer.weight, turn), f"{name}/bias": _Parameter(layer.bias, _same)}
    return parameters


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _transposed(weight: Tensor) -> Tensor:
    return weight.t()


def _taps(weight: Tensor) -> Tensor:
    """(C, W) to (W, 1, C) and back."""
    return weight.t()[:, None] if weight.dim() == 2 else weight[:, 0].t()


def _read(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"load_axon: no file {path}")
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"load_axon: path must end in .npz or .safetensors, got {path}")
    unreadable = (SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, TypeError, OSError, EOFError, KeyError)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with zipfile.ZipFile(path):  # in its words, where it is none; NumPy would speak of pickles
            pass
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except unreadable as error:
        raise ValueError(f"load_axon: {path} is damaged or of another kind: {error}") from error
