"""What a checkpoint becomes: the configuration of the target format, if it can say what the model computes."""

from copy import deepcopy
from dataclasses import fields
from typing import Any

from longstream.convert.checkpoint import Checkpoint
from longstream.convert.frames import axon_layout
from longstream.convert.layouts import Layout, fla_layout, hyenadna_layout, own_layout
from longstream.hf import HGRN2Config, HGRNConfig, LongstreamConfig
from longstream.hf.configuration_hyenadna import HyenaDNAConfig
from longstream.models import AttentionConfig, HyenaConfig, ModelConfig
from longstream.models import HGRNConfig as HGRNMixerConfig
from longstream.models.config import deciding, has_gates

TARGETS = ("longstream", "fla", "hyenadna", "axon")
_KEPT = ("pad_token_id", "bos_token_id", "eos_token_id", "use_cache")
# Of ModelConfig: what has no say in what a trained model computes.
_NOT_DECIDING = {"mixer", "layers", "hidden_ratio", "intermediate_size", "dropout", "embed_dropout", "vocab_multiple"}
_NOT_DECIDING |= {"initializer_range", "memory", "rescale_residual", "vocab_size", "lower_bound"}


def make_target(source: Checkpoint, to: str) -> tuple[Any, Layout]:
    """The configuration in format ``to``, and the layout of the tensors.

    Raises:
        ValueError: the format has no words for this model; what it cannot say is named.
    """
    if (to == "axon") != source.is_frames and to != "longstream":
        frames, texts = "longstream, axon", "longstream, fla, hyenadna"
        which = f"a model of frames, and becomes {frames}" if source.is_frames else f"a language model: {texts}"
        raise ValueError(f"convert: --to {to} is not for {source.path}, which is {which}")
    if source.is_frames:
        ours, layout = axon_layout(source.config, [])
        return source.config, layout if to == "axon" else own_layout(ours)
    if to == "longstream":
        config: Any = LongstreamConfig.from_model_config(source.config.to_model_config(), **_tokens(source.config))
        return config, own_layout(source.ours)
    config = _fla_config(source) if to == "fla" else _hyenadna_config(source)
    _refuse_differences(source, config, to)
    if to == "fla":
        return config, fla_layout(config, source.ours)
    return config, hyenadna_layout(config, source.ours)


def _tokens(config: Any) -> dict[str, Any]:
    return {key: getattr(config, key) for key in _KEPT}


def _fla_config(source: Checkpoint) -> Any:
    if source.format == "fla":
        return deepcopy(source.config)  # with what only fla knows
    model = source.config.to_model_config()
    gated = list({repr(deciding(mixer)): mixer for mixer in model.mixers if has_gates(mixer)}.values())
    attention = list({repr(deciding(m)): m for m in model.mixers if isinstance(m, AttentionConfig)}.values())
    others = {type(m).__name__ for m in model.mixers if not has_gates(m) and not isinstance(m, AttentionConfig)}
    if len(gated) != 1 or len(attention) > 1 or others:
        kinds = [type(mixer).__name__ for mixer in model.mixers]
        raise ValueError(
            f"convert: --to fla needs layers of HGRN or HGRN2, alike, and perhaps of attention, got {kinds}"
        )
    if model.mlp != "swiglu":
        raise ValueError(f"convert: --to fla needs the MLP 'swiglu', which all of its layers have, got {model.mlp!r}")
    (mixer,) = gated
    options: dict[str, Any] = {
        "vocab_size": model.padded_vocab_size,  # which is part of the vocabulary there
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "intermediate_size": model.mlp_size,
        "norm_eps": model.norm_eps,
        "use_lower_bound": model.lower_bound is not None,
        "lower_bound_sum": model.lower_bound or "inclusive",
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.initializer_range,
        "expand_ratio": mixer.expand_ratio,
        "mixer_norm": mixer.norm,
        "elementwise_affine": mixer.norm != "rms_no_weight",
        "use_bias": mixer.bias,
        "use_short_conv": mixer.conv_size > 0,
        "conv_bias": mixer.conv_bias,
        **({"conv_size": mixer.conv_size} if mixer.conv_size else {}),
        **_tokens(source.config),
    }
    if attention:
        (one,) = attention
        layers = [i for i, m in enumerate(model.mixers) if isinstance(m, AttentionConfig)]
        words = ("num_heads", "num_kv_heads", "window_size", "rope_theta", "qkv_bias")
        options["attn"] = {"layers": layers, **{word: getattr(one, word) for word in words}}
    if isinstance(mixer, HGRNMixerConfig):
        own = ("unit", "norm_first", "gate_activation")
        return HGRNConfig(**options, **{word: getattr(mixer, word) for word in own})
    own = {word: getattr(mixer, word) for word in ("query_activation", "value_activation")}
    scale = None if mixer.query_scale == mixer.expand_ratio**-0.5 else mixer.query_scale  # None is fla's
    return HGRN2Config(**options, **own, query_scale=scale, g_norm_eps=mixer.norm_eps)


def _hyenadna_config(source: Checkpoint) -> HyenaDNAConfig:
    if source.format == "hyenadna":
        config = deepcopy(source.config)
        config.train_freq = True  # or they would not be read: they are written
        return config
    model = source.config.to_model_config()
    mixers = list({repr(deciding(mixer)): mixer for mixer in model.mixers}.values())
    if len(mixers) != 1 or not isinstance(mixers[0], HyenaConfig):
        kinds = [type(mixer).__name__ for mixer in model.mixers]
        raise ValueError(f"convert: --to hyenadna needs layers of Hyena, all alike, got {kinds}")
    (mixer,) = mixers
    return HyenaDNAConfig(
        vocab_size=model.vocab_size or 0,
        d_model=model.hidden_size,
        d_inner=model.mlp_size,
        max_seq_len=mixer.max_seq_len,
        emb_dim=mixer.positional_width,
        n_layer=model.num_layers,
        num_inner_mlps=mixer.filter_layers,
        hyena_order=mixer.order,
        short_filter_order=mixer.short_conv_size,
        filter_order=mixer.filter_width,
        activation_freq=mixer.frequency,
        embed_dropout=model.embed_dropout,
        hyena_dropout=mixer.dropout,
        layer_norm_epsilon=model.norm_eps,
        initializer_range=model.initializer_range,
        pad_vocab_size_multiple=model.vocab_multiple,
        tie_word_embeddings=model.tie_embeddings,
        **_tokens(source.config),
    )


def _refuse_differences(source: Checkpoint, config: Any, to: str) -> None:
    """The target, read back, must compute what the source does."""
    before, after = source.config.to_model_config(), config.to_model_config()
    if to == "fla" and (unknown := config.fla_differs()):
        raise ValueError(f"convert: --to fla: flash-linear-attention does not know {', '.join(unknown)} of this model")
    differing = [
        f"{field.name} {getattr(before, field.name)!r} (there {getattr(after, field.name)!r})"
        for field in fields(ModelConfig)
        if field.name not in _NOT_DECIDING and getattr(before, field.name) != getattr(after, field.name)
    ]
    if before.padded_vocab_size != after.padded_vocab_size or before.mlp_size != after.mlp_size:
        differing.append("sizes of the vocabulary or of the MLP")
    if before.gate_size is not None and before.lower_bound != after.lower_bound:
        differing.append(f"lower_bound {before.lower_bound!r}")
    for mixer, other in zip(before.mixers, after.mixers, strict=True):
        mine, theirs = (dict(deciding(m)[1]) for m in (mixer, other))
        changed = [
            f"{key} {value!r} (there {theirs.get(key)!r})" for key, value in mine.items() if value != theirs.get(key)
        ]
        differing += [words for words in changed if words not in differing]
    if differing:
        raise ValueError(f"convert: --to {to} has no words for {', '.join(differing)} of this model")
