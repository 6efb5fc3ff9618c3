"""What the configurations under transformers have in common, and that of any `longstream.models.ModelConfig`."""

import logging
from collections.abc import Iterable
from dataclasses import MISSING, asdict, field, fields
from typing import Any, ClassVar

from transformers import GenerationConfig, PretrainedConfig
from transformers.configuration_utils import strict  # type: ignore[attr-defined]

from longstream.models import AttentionConfig, HGRN2Config, HGRNConfig, HyenaConfig, ModelConfig

logger = logging.getLogger(__name__)

# What transformers itself has written into a config.json, now or in 4.x, beside its fields and generation's.
_TRANSFORMERS_KEYS = """
    model_type torch_dtype name_or_path num_labels auto_map quantization_config output_attentions attn_implementation
    experts_implementation per_layer_config tie_last_hidden_states is_decoder add_cross_attention tie_encoder_decoder
    cross_attention_hidden_size pruned_heads torchscript use_bfloat16 tf_legacy_loss finetuning_task tokenizer_class
    task_specific_params prefix sep_token_id distributed_config
"""
_MIXERS: dict[str, type[Any]] = {
    "hgrn": HGRNConfig,
    "hgrn2": HGRN2Config,
    "hyena": HyenaConfig,
    "attention": AttentionConfig,
}


def register_mixer_type(name: str, config: type[Any]) -> None:
    """Let "type" of a mixer in config.json name one more configuration, registered with `ModelConfig` before."""
    _MIXERS[name] = config


@strict
class BaseConfig(PretrainedConfig):
    """Generation's tokens, and one voice about keys that nobody knows: they are reported, and kept."""

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embeddings": "free_full_weight",
        "backbone.layers.*": "free_full_weight",
        "backbone.norm": "keep_full_weight",
    }

    _parts: ClassVar[tuple[str, ...]] = ()  # what can be given, and set, without being a field

    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        name = type(self).__name__
        weights = kwargs.get("transformers_weights")  # what from_pretrained then loads; adapter_model.bin is a pickle
        if weights is not None and not str(weights).endswith(".safetensors"):
            raise ValueError(f"{name}: transformers_weights must name a file of safetensors, got {weights!r}")
        known = (
            {field.name for field in fields(PretrainedConfig)}
            | set(_TRANSFORMERS_KEYS.split())
            | set(GenerationConfig().to_dict())
            | set(self._parts)
        )
        unknown = sorted(key for key in kwargs if key not in known and not key.startswith("_"))
        if unknown:
            logger.warning("%s: unknown keys %s change nothing; they are kept and saved again", name, unknown)
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Refuse what cannot be computed, and derive the fields that follow from others."""

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Which layers of a hybrid have softmax attention for a mixer."""
        return ()

    def to_model_config(self) -> ModelConfig:
        """The same model in the terms of `longstream.models`."""
        raise NotImplementedError


@strict
class LongstreamConfig(BaseConfig):
    """Any `longstream.models.ModelConfig`: what fla has no format for, such as Hyena, and mixtures of its own.

    ``config.json`` holds the model's configuration, whole, under the key "model"; each mixer in it is a dictionary
    with its "type": "hgrn", "hgrn2", "hyena" or "attention". ``vocab_size`` is the number of true tokens: with a
    vocab_multiple the embeddings have more rows.

    Args:
        model: the fields of ModelConfig by name, as plain JSON. What is left out has ModelConfig's default.
    Raises:
        ValueError: a key of ``model`` is unknown or lacking, or what ModelConfig raises.
    """

    model_type = "longstream"
    _parts: ClassVar[tuple[str, ...]] = ("vocab_size", "vocab_multiple", "tie_word_embeddings")

    model: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_model_config(cls, model_config: ModelConfig, **kwargs: Any) -> "LongstreamConfig":
        """The configuration of a language model; ``kwargs`` are the other fields, such as eos_token_id."""
        return cls(model=_to_json(model_config), **kwargs)

    def to_model_config(self) -> ModelConfig:
        """What `from_model_config` was given."""
        model_config = _from_json(self.model)
        if model_config.vocab_size is None:
            raise ValueError("LongstreamConfig: model['vocab_size'] must be given, got None")
        return model_config

    def __post_init__(self, **kwargs: Any) -> None:
        if misplaced := sorted({"hidden_size", "num_hidden_layers", "max_position_embeddings"} & set(kwargs)):
            raise ValueError(f"LongstreamConfig: {misplaced} follow from model and cannot be given")
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        self.model = _to_json(self.to_model_config())  # whole: a later version may have other defaults

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """See `BaseConfig.attention_layers`."""
        return tuple(
            layer for layer, mixer in enumerate(self.to_model_config().mixers) if isinstance(mixer, AttentionConfig)
        )

    # The words that transformers, and others, know the parts of ``model`` by.

    @property
    def vocab_size(self) -> int:
        """Number of true tokens."""
        return self.model["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.model = self.model | {"vocab_size": size}

    @property
    def vocab_multiple(self) -> int:
        """The embeddings have this or a multiple of it as rows."""
        return self.model["vocab_multiple"]

    @vocab_multiple.setter
    def vocab_multiple(self, multiple: int) -> None:
        self.model = self.model | {"vocab_multiple": multiple}

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head has the embeddings for weights."""
        return self.model["tie_embeddings"]

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, tied: bool) -> None:
        self.model = self.model | {"tie_embeddings": tied}

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.model["hidden_size"]

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return self.model["num_layers"]

    @property
    def max_position_embeddings(self) -> int | None:
        """The most tokens of a text, which Hyena's filters limit; None is no limit."""
        return self.to_model_config().max_seq_len


def _to_json(config: ModelConfig) -> dict[str, Any]:
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    layers = None if config.layers is None else [_mixer_to_json(mixer) for mixer in config.layers]
    return values | {"mixer": _mixer_to_json(config.mixer), "layers": layers}


def _from_json(values: dict[str, Any]) -> ModelConfig:
    _check_keys("model", values, ModelConfig)
    values = dict(values)
    if "mixer" in values:
        values["mixer"] = _mixer_from_json("model['mixer']", values["mixer"])
    if values.get("layers") is not None:
        values["layers"] = tuple(
            _mixer_from_json(f"model['layers'][{i}]", mixer) for i, mixer in enumerate(values["layers"])
        )
    return ModelConfig(**values)


def _mixer_to_json(mixer: Any) -> dict[str, Any]:
    (name,) = (name for name, cls in _MIXERS.items() if type(mixer) is cls)
    return {"type": name} | asdict(mixer)


def _mixer_from_json(where: str, values: Any) -> Any:
    name = values.get("type") if isinstance(values, dict) else values
    if not isinstance(name, str) or name not in _MIXERS:
        raise ValueError(f"LongstreamConfig: {where} must have a 'type' out of {list(_MIXERS)}, got {name!r}")
    _check_keys(where, values, _MIXERS[name], extra=("type",))
    return _MIXERS[name](**{key: value for key, value in values.items() if key != "type"})


def _check_keys(where: str, values: dict[str, Any], cls: Any, extra: Iterable[str] = ()) -> None:
    known = {each.name for each in fields(cls)} | set(extra)
    if unknown := sorted(set(values) - known):
        raise ValueError(f"LongstreamConfig: {where} has unknown keys {unknown}; {cls.__name__} takes {sorted(known)}")
    needed = {each.name for each in fields(cls) if each.default is MISSING}
    if lacking := sorted(needed - set(values)):
        raise ValueError(f"LongstreamConfig: {where} must have the keys {sorted(needed)}, got none named {lacking}")
