"""HyenaDNA's names and shapes of a model's tensors against ours: one table, read in both directions.

Theirs are those of the checkpoints for transformers, LongSafari/*-hf: ``hyena.backbone...`` in a model with a head,
``backbone...`` without. In memory ours are ``model....`` and none. The names of the authors' own checkpoints are read
too: ``model.backbone...``, with ``.mixer.layer.`` and ``.mlp.layer.`` where activations were checkpointed.
"""

import re
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming


class Sizes(Protocol):
    """What the table needs of a `HyenaDNAConfig`."""

    num_inner_mlps: int


# Theirs and ours, of the base model; N is the number of the layer.
_LAYER = (
    *((f"norm1.{kind}", f"mixer_norm.{kind}") for kind in ("weight", "bias")),
    *((f"norm2.{kind}", f"mlp_norm.{kind}") for kind in ("weight", "bias")),
    *((f"mlp.fc1.{kind}", f"mlp.up_proj.{kind}") for kind in ("weight", "bias")),
    *((f"mlp.fc2.{kind}", f"mlp.down_proj.{kind}") for kind in ("weight", "bias")),
    *((f"mixer.in_proj.{kind}", f"mixer.in_proj.{kind}") for kind in ("weight", "bias")),
    *((f"mixer.out_proj.{kind}", f"mixer.out_proj.{kind}") for kind in ("weight", "bias")),
    *((f"mixer.short_filter.{kind}", f"mixer.short_conv.{kind}") for kind in ("weight", "bias")),
    ("mixer.filter_fn.bias", "mixer.filter.skip"),
    ("mixer.filter_fn.pos_emb.z", "mixer.filter.positions"),
    ("mixer.filter_fn.pos_emb.t", "mixer.filter.time"),
    ("mixer.filter_fn.modulation.deltas", "mixer.filter.delta"),
)
_REST = (
    ("backbone.embeddings.word_embeddings.weight", "embeddings.weight"),
    ("backbone.ln_f.weight", "backbone.norm.weight"),
    ("backbone.ln_f.bias", "backbone.norm.bias"),
)
HEADS = ("lm_head.weight", "score.weight")  # the same in both
DERIVED = re.compile(r"\.filter\.(positions|time|delta)$")  # of ours: computed anew where a checkpoint lacks them

# Dimensions of size 1 that theirs have and ours have not, by the end of either name.
_EXTRA = {
    (".filter.positions", ".pos_emb.z"): (0,),  # (1, L, E)
    (".filter.time", ".pos_emb.t"): (0, 2),  # (1, L, 1)
    (".filter.delta", ".modulation.deltas"): (0, 1),  # (1, 1, C)
    (".filter.frequency", ".freq"): (0,),  # (1, width)
    (".short_conv.weight", ".short_filter.weight"): (1,),  # (3 C, 1, W)
}


def rows(config: Sizes) -> list[tuple[str, str]]:
    """(their name, our name) of the base model's tensors, N for a layer's number.

    The one vector of frequencies has a name for each sine of theirs; a file may hold any of them.
    """
    last = 2 * (config.num_inner_mlps + 1)  # sines lie between the linear layers
    network = [(f"{2 * i}.{kind}", f"hidden.{i}.{kind}") for i in range(last // 2) for kind in ("weight", "bias")]
    network += [(f"{2 * i + 1}.freq", "frequency") for i in range(last // 2)] + [(f"{last}.weight", "out_proj.weight")]
    layer = [*_LAYER, *((f"mixer.filter_fn.implicit_filter.{a}", f"mixer.filter.{b}") for a, b in network)]
    return [*_REST, *((f"backbone.layers.N.{a}", f"backbone.layers.N.{b}") for a, b in layer)]


def to_ours(name: str, config: Sizes) -> str:
    """Our name of a tensor of theirs. Several of their names mean one of ours where theirs are tied: frequencies.

    Raises:
        KeyError: the name is not of HyenaDNA.
    """
    if (head := name.removeprefix("model.")) in HEADS:
        return head
    prefix = next((prefix for prefix in ("hyena.", "model.") if name.startswith(prefix)), "")
    general, number = _general(re.sub(r"\.(mixer|mlp)\.layer\.", r".\1.", name.removeprefix(prefix)))
    ours = dict(rows(config)).get(general)
    if ours is None:
        raise KeyError(name)
    return ("model." if prefix else "") + ours.replace("N", number)


def from_ours(name: str, config: Sizes) -> list[str]:
    """Their names of a tensor of ours, all that are tied to it; the published files hold the first.

    Raises:
        KeyError: the name is none of ours.
    """
    if name in HEADS:
        return [name]
    prefix = "model." if name.startswith("model.") else ""
    general, number = _general(name.removeprefix(prefix))
    found = [theirs for theirs, ours in rows(config) if ours == general]
    if not found:
        raise KeyError(name)
    return [("hyena." if prefix else "") + theirs.replace("N", number) for theirs in found]


def shape_to_ours(tensor: Tensor, name: str) -> Tensor:
    """Their tensor in our shape, a view; name is either. One that does not have their shape is left as it is."""
    dims = _extra(name)
    if tensor.dim() <= max(dims, default=-1) or any(tensor.shape[dim] != 1 for dim in dims):
        return tensor
    return tensor.squeeze(dims) if dims else tensor


def shape_from_ours(tensor: Tensor, name: str) -> Tensor:
    """Our tensor in their shape, a view: undoes `shape_to_ours`."""
    for dim in _extra(name):
        tensor = tensor.unsqueeze(dim)
    return tensor


def from_hyenadna(state_dict: Mapping[str, Tensor], config: Sizes) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes. Names that are not theirs are left as they are.

    Raises:
        ValueError: tensors that are tied, and so have one name here, differ.
    """
    converted: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    for theirs, tensor in state_dict.items():
        try:
            ours = to_ours(theirs, config)
        except KeyError:
            converted[theirs] = tensor
            continue
        tensor = shape_to_ours(tensor, ours)
        if ours in source and not same(tensor, converted[ours]):
            raise ValueError(
                f"from_hyenadna: {source[ours]} and {theirs} must be equal, for they are one, got two values"
            )
        converted.setdefault(ours, tensor)
        source.setdefault(ours, theirs)
    return converted


def to_hyenadna(state_dict: Mapping[str, Tensor], config: Sizes) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes: undoes `from_hyenadna`. Other names are left as they are."""
    return {name_in_hyenadna(ours, config): shape_from_ours(tensor, ours) for ours, tensor in state_dict.items()}


def name_in_hyenadna(name: str, config: Sizes) -> str:
    """Their name of one of our tensors, which published files hold; another name is left as it is."""
    try:
        return from_ours(name, config)[0]
    except KeyError:
        return name


def accept_hyenadna_names(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A pre-hook of ``load_state_dict``: a dictionary in HyenaDNA's form is as good as one in ours."""
    if prefix:
        return  # the names of a part are its whole's affair
    converted = from_hyenadna(state_dict, module.config)
    state_dict.clear()
    state_dict.update(converted)


def transforms(config: Sizes) -> list[WeightConverter | WeightRenaming]:
    """The table as transformers' weight transforms from their names, for the base model and for one with a head."""
    sources: dict[str, list[str]] = {}
    for theirs, ours in rows(config):
        sources.setdefault(ours, []).append(theirs)
    found: list[WeightConverter | WeightRenaming] = []
    for ours, all_theirs in sources.items():
        for their_prefix, prefix in (("", ""), ("hyena.", "model.")):
            source = [_pattern(their_prefix + theirs) for theirs in all_theirs]
            target = _pattern(prefix + ours)
            if _extra(ours):
                found.append(WeightConverter(source, target, [_Reshape()]))
            elif source != [target]:
                found.append(WeightRenaming(source, target))
    return found


def _pattern(name: str) -> str:
    return "^" + re.escape(name).replace("N", r"(\d+)")


class _Reshape(ConversionOps):
    """Their shape -> ours; of tensors that are tied, one."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        full_layer_name: str = "",
        **_: Any,
    ) -> dict[str, Any]:
        tensors = [x for each in input_dict.values() for x in (each if isinstance(each, list) else [each])]
        if not all(same(tensors[0], other) for other in tensors[1:]):
            raise ValueError(f"{full_layer_name} has {len(tensors)} copies in the file, and they differ")
        return {full_layer_name: self._reshape(tensors[0], full_layer_name)}

    def _reshape(self, tensor: Tensor, name: str) -> Tensor:
        return shape_to_ours(tensor, name)

    @property
    def reverse_op(self) -> ConversionOps:
        return _ReshapeBack()


class _ReshapeBack(_Reshape):
    """Our shape -> theirs. The name is theirs, by which shapes are known too."""

    def _reshape(self, tensor: Tensor, name: str) -> Tensor:
        return shape_from_ours(tensor, name)

    @property
    def reverse_op(self) -> ConversionOps:
        return _Reshape()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in shape and value, NaN included."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _general(name: str) -> tuple[str, str]:
    """The name with N for the layer's number, and the number."""
    found = re.search(r"(?<=\blayers\.)\d+", name)
    return re.sub(r"(?<=\blayers\.)\d+", "N", name), found[0] if found else ""


def _extra(name: str) -> tuple[int, ...]:
    return next((dims for ends, dims in _EXTRA.items() if name.endswith(ends)), ())
