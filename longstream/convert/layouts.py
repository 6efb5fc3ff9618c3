"""How each format of a language model on disk lays out our tensors: two tables, each of which undoes the other.

"Ours" are the names of `longstream.hf`'s models, as ``model.backbone.layers.0.mixer.q_proj.weight``. `Layout.to_ours`
makes ours of theirs, `Layout.to_theirs` theirs of ours; shapes are never written down, they follow from the second.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from longstream.convert.tensors import Row
from longstream.hf import to_fla
from longstream.hf.convert_hyenadna import DERIVED, from_ours, shape_from_ours, shape_to_ours, to_ours
from longstream.models.config import MIXERS

Metas = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """The tensors of a format against ours.

    Attributes:
        to_ours:   our names -> how each is made of theirs.
        to_theirs: their names -> how each is made of ours.
        copies:    names that a file may have besides, and the name of theirs that each must be equal to.
        rounds:    names of theirs that ours do not give back to the last bit.
    """

    to_ours: dict[str, Row]
    to_theirs: dict[str, Row]
    copies: dict[str, str] = field(default_factory=dict)
    rounds: frozenset[str] = frozenset()


def skeleton(config: Any, has_head: bool) -> dict[str, Tensor]:
    """The names, shapes and dtypes of a model's tensors, buffers too; what is tied, once."""
    with torch.device("meta"):
        model = (AutoModelForCausalLM if has_head else AutoModel).from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def same(tensor: Tensor) -> Tensor:
    """The tensor."""
    return tensor


def own_layout(ours: Metas) -> Layout:
    """Our own folders have our names."""
    rows = {name: Row((name,), same) for name in ours}
    return Layout(rows, rows, tied_head(ours))


def tied_head(ours: Metas) -> dict[str, str]:
    """Where the head is tied, a file may have it besides."""
    if "lm_head.weight" in ours or "model.embeddings.weight" not in ours:
        return {}
    return {"lm_head.weight": "model.embeddings.weight"}


def fla_layout(config: Any, ours: Metas) -> Layout:
    """flash-linear-attention's: the table of `longstream.hf.convert`."""

    def there(name: str, tensor: Tensor) -> Tensor:
        return next(iter(to_fla({name: tensor}, config).values()))

    names = {name: next(iter(to_fla({name: tensor}, config))) for name, tensor in ours.items()}
    to_theirs = {theirs: Row((name,), partial(there, name)) for name, theirs in names.items()}
    to_ours = {
        name: Row((theirs,), partial(torch.reshape, shape=tuple(ours[name].shape))) for name, theirs in names.items()
    }
    return Layout(to_ours, to_theirs, tied_head(ours))


def hyenadna_layout(config: Any, ours: Metas, present: list[str] | None = None) -> Layout:
    """HyenaDNA's, for transformers or the authors' own: the table of `longstream.hf.convert_hyenadna`.

    Args:
        config:  a `HyenaDNAConfig`.
        ours:    of `skeleton`.
        present: the names in the file: any one of the names of tied frequencies is enough, and what follows from the
                 configuration may be missing. None is a file to be written, which gets one name of each.
    """
    held: dict[str, list[str]] = {name: [] for name in ours}
    spare_heads = []
    for name in present or ():
        try:
            mine = to_ours(name, config)
        except KeyError:
            continue
        if mine in held:
            held[mine].append(name)
        elif mine == "lm_head.weight" and "model.embeddings.weight" in ours:
            spare_heads.append(name)
    to_our, to_their, copies = {}, {}, {}
    for mine, names in held.items():
        tied = from_ours(mine, config)
        is_derived = DERIVED.search(mine) or (mine.endswith(".filter.frequency") and not config.train_freq)
        if present is not None and not names and is_derived:
            to_our[mine] = Row((), partial(_derived, config, mine))
            continue
        theirs, *others = names or tied
        copies |= dict.fromkeys(others if names else (), theirs)
        to_our[mine] = Row((theirs,), partial(_with_name, shape_to_ours, mine))
        to_their[theirs] = Row((mine,), partial(_with_name, shape_from_ours, mine))
    embeddings = to_our["model.embeddings.weight" if "model.embeddings.weight" in ours else "embeddings.weight"]
    return Layout(to_our, to_their, copies | dict.fromkeys(spare_heads, embeddings.sources[0]))


def _with_name(reshape: Callable[[Tensor, str], Tensor], our_name: str, tensor: Tensor) -> Tensor:
    return reshape(tensor, our_name)


def _derived(config: Any, name: str) -> Tensor:
    """What a new filter of this configuration has under the last word of the name."""
    return _new_filter_buffers(config.to_model_config().mixer, config.d_model)[name.rpartition(".")[2]]


@cache
def _new_filter_buffers(mixer: Any, channels: int) -> dict[str, Tensor]:
    new: Any = MIXERS[type(mixer)](channels, **asdict(mixer))
    state = new.filter.state_dict()
    return {name: state[name] for name in ("positions", "time", "delta", "frequency")}
