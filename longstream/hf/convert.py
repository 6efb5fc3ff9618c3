"""fla's names and shapes of a model's tensors against ours: one table, read in both directions.

On disk every checkpoint of HGRN and HGRN2 is in fla's form; in memory the parameters have longstream's names. Other
model types have ours in both. `loading_transforms` and `saving_transforms` give the table to transformers, which
applies it in `from_pretrained` and in `save_pretrained`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from longstream.hf import convert_hyenadna
from longstream.hf.configuration import BaseConfig

Rows = tuple[tuple[str, str], ...]


def _mixer_rows(projections: dict[str, str], convolutions: str, *more: tuple[str, str]) -> Rows:
    """fla's letter and our word of each projection, and which of them a convolution may follow."""
    rows = [
        (f"{letter}_proj.{kind}", f"{word}_proj.{kind}")
        for letter, word in projections.items()
        for kind in ("weight", "bias")
    ]
    rows += [
        (f"{letter}_conv1d.{kind}", f"{projections[letter]}_conv.{kind}")
        for letter in convolutions
        for kind in ("weight", "bias")
    ]
    return tuple((f"layers.N.attn.{fla}", f"backbone.layers.N.mixer.{ours}") for fla, ours in (*rows, *more))


# fla's name and ours, of the base model; N is the number of the layer. A causal language model has "model." before
# each, and lm_head.weight, in both. A convolution's taps are (D, 1, W) in fla, as torch.nn.Conv1d's, and (D, W) here.
_NORM = tuple((f"g_norm.{kind}", f"norm.{kind}") for kind in ("weight", "bias"))
MIXERS: dict[str, Rows] = {
    "hgrn": _mixer_rows(
        {"i": "candidate", "f": "forget", "g": "out_gate", "o": "out"}, "if", *_NORM, ("theta", "theta")
    ),
    "hgrn2": _mixer_rows({"q": "q", "f": "forget", "i": "v", "o": "out"}, "qfi", *_NORM),
}
ATTENTION = _mixer_rows({"q": "q", "k": "k", "v": "v", "o": "out"}, "")
REST: Rows = (
    ("embeddings.weight", "embeddings.weight"),
    ("lower_bounds", "backbone.lower_bounds"),
    ("layers.N.attn_norm.weight", "backbone.layers.N.mixer_norm.weight"),
    ("layers.N.mlp_norm.weight", "backbone.layers.N.mlp_norm.weight"),
    *(
        (f"layers.N.mlp.{name}_proj.weight", f"backbone.layers.N.mlp.{name}_proj.weight")
        for name in ("gate", "up", "down")
    ),
    ("norm.weight", "backbone.norm.weight"),
)


def from_fla(state_dict: Mapping[str, Tensor], config: BaseConfig) -> dict[str, Tensor]:
    """fla's tensors under our names and in our shapes. Names that are not fla's are left as they are."""
    if config.model_type not in MIXERS:
        return dict(state_dict)
    names = dict((*REST, *MIXERS[config.model_type], *ATTENTION))  # a name of fla's means one of ours in every layer
    return _convert(state_dict, lambda layer: names, lambda taps: taps.squeeze(1) if taps.dim() == 3 else taps)


def to_fla(state_dict: Mapping[str, Tensor], config: BaseConfig) -> dict[str, Tensor]:
    """Our tensors under fla's names and in fla's shapes: undoes `from_fla`."""
    if config.model_type not in MIXERS:
        return dict(state_dict)
    return _convert(state_dict, _names_in_fla(config), lambda taps: taps.unsqueeze(1) if taps.dim() == 2 else taps)


def name_in_fla(name: str, config: BaseConfig) -> str:
    """The name in a checkpoint of the model's type, fla's or HyenaDNA's, of one of our tensors; others stay."""
    if config.model_type == "hyenadna":
        return convert_hyenadna.name_in_hyenadna(name, config)  # type: ignore[arg-type]
    return _rename(name, _names_in_fla(config))


def accept_fla_names(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A pre-hook of ``load_state_dict``: a dictionary in fla's form is as good as one in ours.

    transformers' `Trainer` resumes with ``load_state_dict`` from the file that ``save_pretrained`` wrote.
    """
    mine = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    converted = from_fla({name.removeprefix(prefix): tensor for name, tensor in mine.items()}, module.config)
    state_dict.update({prefix + name: tensor for name, tensor in converted.items()})


def loading_transforms(model_type: str) -> list[WeightConverter | WeightRenaming]:
    """The table as transformers' weight transforms from fla's names, for every model of a type."""
    return _transforms(dict.fromkeys((*REST, *MIXERS[model_type], *ATTENTION)))


def saving_transforms(config: BaseConfig) -> list[WeightConverter | WeightRenaming]:
    """The transforms that transformers reverses to save a model: in a hybrid, each layer has its mixer's."""
    if config.model_type == "hyenadna":
        return convert_hyenadna.transforms(config)  # type: ignore[arg-type]
    if config.model_type not in MIXERS:
        return []
    attention = set(config.attention_layers)
    if not attention:
        return _transforms((*REST, *MIXERS[config.model_type]))
    others = set(range(config.num_hidden_layers)) - attention  # type: ignore[attr-defined]
    return [
        *_transforms(REST),
        *_transforms(MIXERS[config.model_type], others),
        *_transforms(ATTENTION, attention),
    ]


def _transforms(rows: Iterable[tuple[str, str]], layers: set[int] | None = None) -> list[Any]:
    """For the base model and for one below "model.", in all layers or in some."""
    number = r"(\d+)" if layers is None else f"({'|'.join(map(str, sorted(layers)))})"
    transforms: list[WeightConverter | WeightRenaming] = []
    for fla, ours in rows:
        for prefix in ("", "model.") if fla != ours else ():
            source, target = ("^" + re.escape(prefix + name).replace("N", number) for name in (fla, ours))
            if _is_taps(fla):
                transforms.append(WeightConverter(source, target, [_DropMiddle()]))
            else:
                transforms.append(WeightRenaming(source, target))
    return transforms


class _DropMiddle(ConversionOps):
    """(D, 1, W) -> (D, W)."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        full_layer_name: str = "",
        **_: Any,
    ) -> dict[str, Any]:
        (tensor,) = input_dict.values()
        return {full_layer_name: self._reshape(tensor[0] if isinstance(tensor, list) else tensor)}

    def _reshape(self, taps: Tensor) -> Tensor:
        return taps.squeeze(1)

    @property
    def reverse_op(self) -> ConversionOps:
        return _AddMiddle()


class _AddMiddle(_DropMiddle):
    """(D, W) -> (D, 1, W)."""

    def _reshape(self, taps: Tensor) -> Tensor:
        return taps.unsqueeze(1)

    @property
    def reverse_op(self) -> ConversionOps:
        return _DropMiddle()


def _names_in_fla(config: BaseConfig) -> Callable[[int | None], dict[str, str]]:
    """Our names -> fla's, by layer: the same name of ours is v_proj in fla's attention and i_proj in its HGRN2."""
    if config.model_type not in MIXERS:
        return lambda layer: {}
    attention = set(config.attention_layers)
    in_mixer, in_attention = (
        {ours: fla for fla, ours in (*REST, *rows)} for rows in (MIXERS[config.model_type], ATTENTION)
    )
    return lambda layer: in_attention if layer in attention else in_mixer


def _convert(
    state_dict: Mapping[str, Tensor],
    names: Callable[[int | None], dict[str, str]],
    reshape: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    return {_rename(name, names): reshape(x) if _is_taps(name) else x for name, x in state_dict.items()}


def _rename(name: str, names: Callable[[int | None], dict[str, str]]) -> str:
    prefix = "model." if name.startswith("model.") else ""
    number = re.search(r"(?<=\blayers\.)\d+", name)
    general = re.sub(r"(?<=\blayers\.)\d+", "N", name.removeprefix(prefix))
    renamed = names(int(number[0]) if number else None).get(general)
    if renamed is None:
        return name
    return prefix + (renamed.replace("N", number[0]) if number else renamed)


def _is_taps(name: str) -> bool:
    return name.endswith(("_conv1d.weight", "_conv.weight"))
