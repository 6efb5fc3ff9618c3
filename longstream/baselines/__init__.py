"""Baselines under the same surface as longstream's models: Llama, Mamba and Mamba-2 of transformers, PyTorch's GRU and
LSTM.

`make_backbone` and `build` make models of frames; `longstream train --model NAME` trains them as language models.
"""

from typing import Any

from torch import nn

from longstream.baselines.configs import TRANSFORMERS
from longstream.baselines.recurrent import GRU as GRU
from longstream.baselines.recurrent import LSTM as LSTM
from longstream.baselines.recurrent import RECURRENT
from longstream.baselines.recurrent import GRUConfig as GRUConfig
from longstream.baselines.recurrent import LSTMConfig as LSTMConfig
from longstream.edifice._options import read_options
from longstream.models import Backbone, FeatureModel, ModelConfig

NAMES = (*TRANSFORMERS, *RECURRENT)  # llama, mamba, mamba2, gru, lstm
OF_FRAMES = (*NAMES, "vit")  # which `make_backbone` knows; ViT looks both ways, and is no language model

# Of `make_backbone`; window_size and seq_len are only read, so that a name can stand in for one of `longstream.build`.
_OF_BOTH: dict[str, Any] = {
    "hidden_size": 256,
    "num_layers": 4,
    "window_size": 60,
    "seq_len": None,
    "initializer_range": None,
}
_OF_KIND: dict[bool, dict[str, Any]] = {
    True: {"dropout": 0.0, "hidden_ratio": 4, "intermediate_size": None, "expand_ratio": 1},  # recurrent
    False: {},  # and any field of transformers' configuration
}


def make_backbone(name: str, hidden_size: int = 256, num_layers: int = 4, **options: Any) -> nn.Module:
    """A baseline as a backbone of frames, under the surface of `longstream.models.Backbone`.

    "gru" and "lstm" are a `Backbone` with a recurrent layer of torch.nn as its mixer: blocks with the norms, residuals
    and MLPs of longstream's models, a state, a step. "llama", "mamba" and "mamba2" are transformers' models and take
    whole sequences: their state is None, and step and init_state refuse in words. "vit" looks at whole images, patches
    in reading order, and does so, too; see `longstream.baselines.vit.ViTBackbone`.

    Args:
        name:        one of OF_FRAMES.
        hidden_size: D.
        num_layers:  blocks.
        options:     initializer_range (0.5 D^-0.5, as `longstream.build` has it); window_size and seq_len, which change
                     nothing but in vit, whose positions they number; gru, lstm and vit: dropout and intermediate_size;
                     gru and lstm: hidden_ratio of `longstream.ModelConfig`, and expand_ratio (channels of the
                     recurrence over D); the others: fields of their configuration.
    Returns:
        A module with forward(x, state=None, *, mask=None, cu_seqlens=None) -> (y, state), step, init_state,
        hidden_size and causal.
    Raises:
        ValueError: an unknown name, or a value out of range.    TypeError: an unknown option.
    """
    if name not in OF_FRAMES:
        raise ValueError(f"make_backbone: name must be one of {list(OF_FRAMES)}, got {name!r}")
    own_kind = name in RECURRENT or name == "vit"
    who, defaults = f"make_backbone({name!r})", _OF_BOTH | _OF_KIND[own_kind]
    own = {} if own_kind else _fields(name, options, defaults)
    given = {key: value for key, value in options.items() if key not in own}
    read = read_options(who, defaults, {"hidden_size": hidden_size, "num_layers": num_layers, **given})
    scale = read["initializer_range"]
    scale = 0.5 * read["hidden_size"] ** -0.5 if scale is None else scale
    if name == "vit":
        from longstream.baselines.vit import ViTBackbone

        sizes = {key: read[key] for key in ("intermediate_size", "dropout")}
        seq_len = read["seq_len"] or read["window_size"]
        return ViTBackbone(read["hidden_size"], read["num_layers"], seq_len=seq_len, initializer_range=scale, **sizes)
    if name not in RECURRENT:
        from longstream.baselines.frames import TransformersBackbone

        return TransformersBackbone(name, read["hidden_size"], read["num_layers"], initializer_range=scale, **own)
    sizes = {key: read[key] for key in ("hidden_size", "num_layers", "dropout", "hidden_ratio", "intermediate_size")}
    mixer: Any = RECURRENT[name](expand_ratio=read["expand_ratio"])
    return Backbone(ModelConfig(mixer=mixer, initializer_range=scale, **sizes))


def build(name: str, *, embed_dim: int, outputs: str = "last", **options: Any) -> FeatureModel:
    """A baseline of frames: (B, T, embed_dim) in, as `longstream.build` makes longstream's models.

    Args:
        name:      one of OF_FRAMES.
        embed_dim: size of a frame.
        outputs:   "last", "all" or "mean".
        options:   of `make_backbone`.
    """
    return FeatureModel(make_backbone(name, **options), embed_dim, outputs=outputs)


def _fields(name: str, options: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that transformers' configuration has as fields."""
    from longstream.baselines.configs import transformers_config

    known = set(transformers_config(name, vocab_size=1, hidden_size=64, num_layers=1).to_dict()) - set(taken)
    return {key: value for key, value in options.items() if key in known - {"vocab_size", "num_hidden_layers"}}
