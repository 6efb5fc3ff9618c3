"""HyenaDNA as its checkpoints under transformers, LongSafari/*-hf, configure it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.configuration_utils import strict  # type: ignore[attr-defined]

from longstream.hf.configuration import BaseConfig
from longstream.models import HyenaConfig, ModelConfig

# The authors' original config.json: name there -> ours. Those of the operator lie under the key "layer".
_AUTHORS = {
    "d_model": "d_model",
    "n_layer": "n_layer",
    "d_inner": "d_inner",
    "vocab_size": "vocab_size",
    "embed_dropout": "embed_dropout",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "pad_vocab_size_multiple": "pad_vocab_size_multiple",
}
_AUTHORS_LAYER = {
    "l_max": "max_seq_len",
    "order": "hyena_order",
    "filter_order": "filter_order",
    "emb_dim": "emb_dim",
    "num_inner_mlps": "num_inner_mlps",
    "short_filter_order": "short_filter_order",
    "w": "activation_freq",
    "dropout": "hyena_dropout",
}
_AUTHORS_LAYER_DEFAULTS: dict[str, Any] = {  # where HyenaDNA's operator has others than the configuration below
    "hyena_order": 2,
    "filter_order": 64,
    "emb_dim": 3,
    "activation_freq": 1,
}
_AUTHORS_FIXED = {"attn_layer_idx": (None, []), "max_position_embeddings": (0, None)}  # name, values that we compute
_AUTHORS_LAYER_FIXED: dict[str, tuple[Any, ...]] = {
    "modulate": (True,),
    "bidirectional": (False,),
    "normalized": (False,),
    "num_heads": (1,),
    "num_blocks": (1,),
    "inner_factor": (1,),
    "outer_mixing": (False,),
    "post_order_ffn": (False,),
    "activation": ("id",),
    "shift": (0.05,),
    "target": (1e-2,),
    "fast_decay_pct": (0.3,),
    "slow_decay_pct": (1.5,),
}


@strict
class HyenaDNAConfig(BaseConfig):
    """HyenaDNA (Nguyen et al. 2023, arXiv:2306.15794) by the field names of its checkpoints for transformers.

    ``use_bias`` and ``hyena_filter_dropout`` are kept and change nothing, as upstream: projections always have biases.
    The filters' positional features are fixed, as the authors trained. Other keys are reported and kept.

    Args:
        d_model, n_layer:        hidden_size and num_layers of `longstream.ModelConfig`.
        d_inner:                 width of the MLP; None is 4 d_model.
        max_seq_len:             length of the filters, the most tokens of a text.
        emb_dim, filter_order, num_inner_mlps, activation_freq: of the filters: positional_width, filter_width,
                                 filter_layers and frequency of `longstream.HyenaConfig`.
        train_freq:              whether the frequencies are trained, and so are in a checkpoint.
        hyena_order, short_filter_order, hyena_dropout: order, short_conv_size and dropout of `longstream.HyenaConfig`.
        embed_dropout:           dropout on the embeddings in training; the port's models leave it out.
        pad_vocab_size_multiple: the embeddings have this or a multiple of it as rows; ids stay below vocab_size.
    Raises:
        ValueError: a number out of range.
    """

    model_type = "hyenadna"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "d_inner",
        "max_position_embeddings": "max_seq_len",
        "vocab_multiple": "pad_vocab_size_multiple",
    }

    vocab_size: int = 12
    d_model: int = 256
    d_inner: int | None = None
    use_bias: bool = True
    train_freq: bool = True
    max_seq_len: int = 1024
    emb_dim: int = 3
    n_layer: int = 12
    num_inner_mlps: int = 2
    hyena_order: int = 2
    short_filter_order: int = 3
    filter_order: int = 64
    activation_freq: int | float = 1
    embed_dropout: int | float = 0.1
    hyena_dropout: int | float = 0.0
    hyena_filter_dropout: int | float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    pad_vocab_size_multiple: int = 8
    pad_token_id: int | None = 4
    tie_word_embeddings: bool = True

    @classmethod
    def from_authors(cls, config: Mapping[str, Any], **kwargs: Any) -> "HyenaDNAConfig":
        """The configuration of an original checkpoint: config.json beside its Lightning file.

        Args:
            config: what is in the file: d_model, n_layer, vocab_size, ... and, under "layer", the operator's arguments.
            kwargs: fields that win over the file's.
        Raises:
            ValueError: there is no "layer", or it asks for what HyenaDNA's checkpoints do not have.
        """
        layer = config.get("layer")
        if not isinstance(layer, Mapping) or "l_max" not in layer:
            raise ValueError(
                "HyenaDNAConfig.from_authors: config must have a 'layer' with the operator's arguments, such as l_max, "
                f"got the keys {sorted(config)}"
            )
        wrong = [
            f"{key} {config[key]!r}" for key, known in _AUTHORS_FIXED.items() if config.get(key, known[0]) not in known
        ]
        given = ((key, layer.get(key, known[0]), known) for key, known in _AUTHORS_LAYER_FIXED.items())
        wrong += [f"layer.{key} {value!r}, not {known[0]!r}" for key, value, known in given if value not in known]
        if wrong:
            raise ValueError(
                f"HyenaDNAConfig.from_authors: config must be of a published HyenaDNA, got {'; '.join(wrong)}"
            )
        fields = {ours: config[theirs] for theirs, ours in _AUTHORS.items() if config.get(theirs) is not None}
        fields |= _AUTHORS_LAYER_DEFAULTS
        fields |= {ours: layer[theirs] for theirs, ours in _AUTHORS_LAYER.items() if layer.get(theirs) is not None}
        return cls(**(fields | kwargs))

    def __post_init__(self, **kwargs: Any) -> None:
        if self.d_inner is None:
            self.d_inner = 4 * self.d_model
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        self.to_model_config()  # refuses what cannot be computed

    def to_model_config(self) -> ModelConfig:
        """The same model in the terms of `longstream.models`."""
        return ModelConfig(
            hidden_size=self.d_model,
            num_layers=self.n_layer,
            mixer=HyenaConfig(
                max_seq_len=self.max_seq_len,
                order=self.hyena_order,
                short_conv_size=self.short_filter_order,
                filter_width=self.filter_order,
                filter_layers=self.num_inner_mlps,
                positional_width=self.emb_dim,
                frequency=float(self.activation_freq),
                window_shift=0.05,  # HyenaDNA's, where safari has none
                dropout=float(self.hyena_dropout),
                positions_lr=0.0,
            ),
            intermediate_size=self.d_inner,
            mlp="gelu",
            norm="layer",
            norm_eps=self.layer_norm_epsilon,
            embed_dropout=float(self.embed_dropout),
            vocab_size=self.vocab_size,
            vocab_multiple=self.pad_vocab_size_multiple,
            tie_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
            rescale_residual=True,
        )
