"""fla's names and shapes of an HGRN2 model's tensors against ours: one table, read in both directions.

On disk every checkpoint is in fla's form; in memory the parameters have longstream's names. `checkpoint_transforms`
gives the table to transformers, which applies it in `from_pretrained` and reverses it in `save_pretrained`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

# fla's name and ours, of the base model; N is the number of the layer. A causal language model has "model." before
# each, and lm_head.weight, in both. A convolution's taps are (D, 1, W) in fla, as torch.nn.Conv1d's, and (D, W) here.
TENSOR_NAMES: tuple[tuple[str, str], ...] = (
    ("embeddings.weight", "embeddings.weight"),
    ("lower_bounds", "backbone.lower_bounds"),
    ("layers.N.attn_norm.weight", "backbone.layers.N.mixer_norm.weight"),
    *(
        (f"layers.N.attn.{fla}_proj.{kind}", f"backbone.layers.N.mixer.{ours}_proj.{kind}")
        for fla, ours in (("q", "q"), ("f", "forget"), ("i", "v"), ("o", "out"))
        for kind in ("weight", "bias")
    ),
    *(
        (f"layers.N.attn.{fla}_conv1d.{kind}", f"backbone.layers.N.mixer.{ours}_conv.{kind}")
        for fla, ours in (("q", "q"), ("f", "forget"), ("i", "v"))
        for kind in ("weight", "bias")
    ),
    ("layers.N.attn.g_norm.weight", "backbone.layers.N.mixer.norm.weight"),
    ("layers.N.attn.g_norm.bias", "backbone.layers.N.mixer.norm.bias"),
    ("layers.N.mlp_norm.weight", "backbone.layers.N.mlp_norm.weight"),
    *(
        (f"layers.N.mlp.{name}_proj.weight", f"backbone.layers.N.mlp.{name}_proj.weight")
        for name in ("gate", "up", "down")
    ),
    ("norm.weight", "backbone.norm.weight"),
)
_OURS, _FLAS = dict(TENSOR_NAMES), {ours: fla for fla, ours in TENSOR_NAMES}


def from_fla(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fla's tensors under our names and in our shapes. Names that are not fla's are left as they are."""
    return _convert(state_dict, _OURS, lambda taps: taps.squeeze(1) if taps.dim() == 3 else taps)


def to_fla(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under fla's names and in fla's shapes: undoes `from_fla`."""
    return _convert(state_dict, _FLAS, lambda taps: taps.unsqueeze(1) if taps.dim() == 2 else taps)


def name_in_fla(name: str) -> str:
    """fla's name of one of our tensors; another name is left as it is."""
    return _rename(name, _FLAS)


def accept_fla_names(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A pre-hook of ``load_state_dict``: a dictionary in fla's form is as good as one in ours.

    transformers' `Trainer` resumes with ``load_state_dict`` from the file that ``save_pretrained`` wrote.
    """
    mine = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    converted = from_fla({name.removeprefix(prefix): tensor for name, tensor in mine.items()})
    state_dict.update({prefix + name: tensor for name, tensor in converted.items()})


def checkpoint_transforms() -> list[WeightConverter | WeightRenaming]:
    """The table as transformers' weight transforms, for the base model and for one below "model."."""
    transforms: list[WeightConverter | WeightRenaming] = []
    for fla, ours in TENSOR_NAMES:
        for prefix in ("", "model.") if fla != ours else ():
            source, target = (_pattern(prefix + name) for name in (fla, ours))
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


def _convert(
    state_dict: Mapping[str, Tensor], names: dict[str, str], reshape: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    return {_rename(name, names): reshape(x) if _is_taps(name) else x for name, x in state_dict.items()}


def _rename(name: str, names: dict[str, str]) -> str:
    prefix = "model." if name.startswith("model.") else ""
    general = re.sub(r"(?<=\blayers\.)\d+", "N", name.removeprefix(prefix))
    if general not in names:
        return name
    number = re.search(r"(?<=\blayers\.)\d+", name)
    return prefix + (names[general].replace("N", number[0]) if number else names[general])


def _pattern(name: str) -> str:
    # One capturing group, as both directions of WeightTransform want it.
    return "^" + re.escape(name).replace("N", r"(\d+)")


def _is_taps(name: str) -> bool:
    return name.endswith(("_conv1d.weight", "_conv.weight"))
