"""Networks of sequence models by name, and their weights from a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from longstream import baselines
from longstream.catalog import build, list_models
from longstream.hf._misfits import describe_absence, refuse_misfits
from longstream.models import FeatureModel
from longstream.sequences.config import SequenceConfig

if TYPE_CHECKING:
    from longstream.sequences.model import SequenceModel

_WHERE = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
# What transformers' own from_pretrained takes and what makes no difference here.
_HARMLESS = ("use_safetensors", "ignore_mismatched_sizes", "device_map", "low_cpu_mem_usage", "trust_remote_code")
_HARMLESS += ("adapter_kwargs",)  # the Auto classes pass it


def build_features(name: str, embed_dim: int, options: dict[str, Any]) -> FeatureModel:
    """The network ``name`` on frames of embed_dim numbers, one vector out for each frame.

    Args:
        name:    of `longstream.list_models` or of `longstream.baselines`.
        options: of `longstream.build` or `longstream.baselines.build`.
    Raises:
        ValueError: an unknown name, or an option out of range.    TypeError: an unknown option.
    """
    known = [info.name for info in list_models()]
    if name not in (*known, *baselines.OF_FRAMES):
        raise ValueError(f"SequenceModel: name must be one of {[*known, *baselines.OF_FRAMES]}, got {name!r}")
    if name in known:
        return build(name, embed_dim=embed_dim, outputs="all", **options)
    return baselines.build(name, embed_dim=embed_dim, outputs="all", **options)


def read_weights(cls: type[SequenceModel], source: Any, **kwargs: Any) -> Any:
    """`SequenceModel.from_pretrained`: the model is made as always, and every tensor of the file must fit it."""
    who = f"{cls.__name__}.from_pretrained: {source}"
    where = {key: kwargs.pop(key) for key in _WHERE if key in kwargs}
    where = {key: value for key, value in where.items() if value is not None}
    config, with_info = kwargs.pop("config", None), kwargs.pop("output_loading_info", False)
    dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    if unknown := [key for key in kwargs if key not in _HARMLESS and not key.startswith("_")]:
        raise TypeError(f"{who}: unknown arguments {sorted(unknown)}")
    if kwargs.get("use_safetensors") is False or kwargs.get("device_map") is not None:
        raise ValueError(f"{who}: weights are read from safetensors only, onto the CPU; move the model afterwards")
    try:
        config = SequenceConfig.from_pretrained(source, **where) if config is None else config
        file = cached_file(source, "model.safetensors", **where)
    except OSError as error:
        if os.path.isdir(source):
            raise
        raise OSError(f"{who}: {describe_absence(source, error)}") from error
    if not isinstance(config, SequenceConfig):
        raise ValueError(f"{who}: expected a SequenceConfig, got {type(config).__name__}")
    model = cls(config)
    try:
        found = load_file(str(file))
    except SafetensorError as error:
        raise ValueError(f"{who}: model.safetensors is cut short or damaged: {error}") from error
    wanted = model.state_dict()
    shapes = [(name, found[name].shape, wanted[name].shape) for name in sorted(wanted.keys() & found.keys())]
    refuse_misfits(
        f"{who}: expected a whole {cls.__name__}",
        missing=sorted(wanted.keys() - found.keys()),
        spare=sorted(found.keys() - wanted.keys()),
        misshapen=[row for row in shapes if row[1] != row[2]],
    )
    model.load_state_dict(found)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    if isinstance(dtype, torch.dtype):
        model.to(dtype=dtype)  # type: ignore[call-overload]
    model.eval()
    info = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    return (model, info) if with_info else model
