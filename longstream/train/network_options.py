"""Settings such as ``window=false``: further fields of a mixer's configuration and of `longstream.ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, get_args, get_type_hints

from longstream.models import HGRN2Config, HGRNConfig, HyenaConfig, ModelConfig
from longstream.train.settings import ModelSettings, nearest
from longstream.train.values import convert

# Fields that have a setting of their own.
_SAID_ELSEWHERE = {
    "expand_ratio": "--expand-ratio, or --recurrence-ratio",
    "conv_size": "--use-short-conv and --conv-size",
    "order": "--hyena-order",
    "max_seq_len": "--max-seq-len",
    "direction": "--direction",
    "causal": "--direction",
}
_OF_BLOCKS = (
    *("norm", "norm_eps", "dropout", "embed_dropout", "vocab_multiple"),
    *("initializer_range", "memory", "rescale_residual"),
)
_OF_FRAMES = ("memory", "initializer_range")  # those of them that models of frames have, and no setting of their own
_OF_BASELINES = ("initializer_range",)
_MIXERS = {"hgrn": HGRNConfig, "hgrn2": HGRN2Config, "hybrid": HGRN2Config, "hyena": HyenaConfig}


def mixer_fields(settings: ModelSettings, config: type[Any]) -> dict[str, Any]:
    """What ``mixer_options`` say, by field of the mixer's configuration.

    Raises:
        ValueError: an unknown field (the nearest is named), one that has a setting of its own, or a value of the wrong
            type.
    """
    known = [field.name for field in fields(config) if field.name not in _SAID_ELSEWHERE]
    return _read("model.mixer_options", settings.mixer_options, config, known, _SAID_ELSEWHERE)


def block_fields(settings: ModelSettings) -> dict[str, Any]:
    """What ``block_options`` say, by field of `longstream.ModelConfig`; raises as `mixer_fields`."""
    return _read("model.block_options", settings.block_options, ModelConfig, _OF_BLOCKS, {"mlp": "--mlp"})


def baseline_fields(settings: ModelSettings) -> dict[str, Any]:
    """The one option that baselines have, ``initializer_range``, by field of their configuration.

    Raises:
        ValueError: any other is asked for.
    """
    others = [*settings.mixer_options, *(w for w in settings.block_options if w.partition("=")[0] not in _OF_BASELINES)]
    if others:
        raise ValueError(
            f"ModelSettings: --mixer and --block must be left out for {settings.name}, except for --block"
            f" initializer_range=..., got {others[0]!r}"
        )
    return _read("model.block_options", settings.block_options, ModelConfig, _OF_BASELINES, {})


def frame_options(settings: ModelSettings) -> dict[str, Any]:
    """All such options of a model of frames, by option of `longstream.build`; raises as `mixer_fields`."""
    found: dict[str, Any] = {}
    if settings.name in _MIXERS:
        found |= mixer_fields(settings, _MIXERS[settings.name])
        elsewhere = {"mlp": "--mlp", "dropout": "--dropout"}
        found |= _read("model.block_options", settings.block_options, ModelConfig, _OF_FRAMES, elsewhere)
        found |= {"mlp": settings.mlp} if settings.mlp != "swiglu" else {}
        if settings.lower_bound != "learned":
            is_none = settings.lower_bound == "none"
            found |= {"lower_bound": None} if is_none else {"lower_bound_mode": settings.lower_bound}
        return found
    if settings.mlp != "swiglu":
        raise ValueError(f"ModelSettings.mlp must be left out for {settings.name} of frames, got {settings.mlp!r}")
    return baseline_fields(settings)


def _read(
    who: str, words: Sequence[str], config: type[Any], known: Sequence[str], elsewhere: Mapping[str, str]
) -> dict[str, Any]:
    hints, found = get_type_hints(config), {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{who} must be written as field=value, got {word!r}")
        if name in elsewhere:
            raise ValueError(f"{who}: {name} is said by {elsewhere[name]}, got {word!r}")
        if name not in known:
            all_known = ", ".join(known) or "none"
            raise ValueError(f"{who}: unknown field {name!r}{nearest(name, known)}; there are {all_known}")
        if name in found:
            raise ValueError(f"{who}: {name} is given twice")
        kinds = [kind for kind in get_args(hints[name]) if kind is not NoneType]
        may_be_none = bool(kinds) and text.lower() == "none"
        found[name] = None if may_be_none else convert(f"{who}: {name}", text, kinds[0] if kinds else hints[name])
    return found
