"""The configuration of HGRN2 under transformers: fla's fields and defaults, and the choices that fla fixes."""

import logging
import os
from dataclasses import fields
from typing import Any, ClassVar

from transformers import GenerationConfig, PretrainedConfig
from transformers.configuration_utils import strict  # type: ignore[attr-defined]

from longstream.models import HGRN2Config as MixerConfig
from longstream.models import ModelConfig

logger = logging.getLogger(__name__)

_CHOICES = {
    "query_activation": ("silu", "sigmoid"),
    "value_activation": ("none", "silu"),
    "mixer_norm": ("rms", "layer", "rms_no_weight"),
    "lower_bound_sum": ("inclusive", "exclusive"),
    "hidden_act": ("swish", "silu"),
}
_UNSUPPORTED = {  # field of fla, the one value we compute
    "attn": (None, "layers of softmax attention"),
    "attnres_block_size": (None, "attention residuals"),
    "use_l2warp": (False, "L2 penalty on logits"),
}
_LEGACY_KEYS = ("share_conv_kernel",)  # of old checkpoints; what it once chose has left fla
# What transformers itself has written into a config.json, now or in 4.x, beside its fields and generation's.
_TRANSFORMERS_KEYS = """
    model_type torch_dtype name_or_path num_labels auto_map quantization_config output_attentions attn_implementation
    experts_implementation per_layer_config tie_last_hidden_states is_decoder add_cross_attention tie_encoder_decoder
    cross_attention_hidden_size pruned_heads torchscript use_bfloat16 tf_legacy_loss finetuning_task tokenizer_class
    task_specific_params prefix sep_token_id distributed_config
"""


@strict
class HGRN2Config(PretrainedConfig):
    """An HGRN2 language model: the fields and defaults of flash-linear-attention 0.6.0 (fla), and some of our own.

    The defaults of our own fields are what fla computes, and such a default is not written to config.json, so that the
    file stays fla's. ``expand_ratio`` decides the number of heads; ``num_heads`` does where expand_ratio is None.
    ``attn_mode``, ``fuse_*`` and ``max_position_embeddings`` are kept and change nothing. ``attn`` (hybrid layers),
    ``attnres_block_size`` and ``use_l2warp`` are refused. Keys of old checkpoints are read: ``rms_norm_eps`` as
    ``norm_eps``; ``share_conv_kernel``, and a ``num_heads`` that contradicts expand_ratio, are dropped. Other keys are
    reported and kept.

    `longstream.models.HGRN2Config` is another class: the arguments of one layer, whose query_scale is 1 by default.
    `to_model_config` makes one of this.

    Args:
        query_activation: "silu" or "sigmoid".
        value_activation: "none" or "silu".
        query_scale:      factor on the query; None is expand_ratio ** -0.5.
        mixer_norm:       "rms", "layer" or "rms_no_weight" (fla: elementwise_affine False).
        g_norm_eps:       epsilon of that norm. fla computes with 1e-5 whatever norm_eps says.
        use_bias:         biases on the four projections of the mixer.
        conv_bias:        biases on the short convolutions.
        lower_bound_sum:  "inclusive" (P_1 + ... + P_l) or "exclusive" (P_0 + ... + P_{l-1}).
    Raises:
        ValueError: an unknown choice, sizes that do not divide, or something that longstream does not compute.
    """

    model_type = "hgrn2"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embeddings": "free_full_weight",
        "backbone.layers.*": "free_full_weight",
        "backbone.norm": "keep_full_weight",
    }

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    attn_mode: str = "chunk"
    num_heads: int | None = None
    expand_ratio: int | None = 128
    use_short_conv: bool = False
    conv_size: int = 4
    use_lower_bound: bool = True
    max_position_embeddings: int | None = 2048
    hidden_ratio: int | float | None = 4
    intermediate_size: int | None = None
    hidden_act: str = "swish"
    elementwise_affine: bool | None = True
    norm_eps: float = 1e-6
    attn: dict[str, Any] | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    fuse_norm: bool = True
    fuse_swiglu: bool = True
    fuse_cross_entropy: bool = True
    fuse_linear_cross_entropy: bool = False
    use_l2warp: bool = False
    attnres_block_size: int | None = None

    query_activation: str = "silu"
    value_activation: str = "none"
    query_scale: float | int | None = None
    mixer_norm: str = "rms"
    g_norm_eps: float = 1e-5
    use_bias: bool = False
    conv_bias: bool = False
    lower_bound_sum: str = "inclusive"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Only here can a norm_eps that was given be told from the default.
        if "norm_eps" in kwargs and kwargs.get("rms_norm_eps", kwargs["norm_eps"]) != kwargs["norm_eps"]:
            raise ValueError(
                "HGRN2Config: rms_norm_eps is an old name of norm_eps and must agree with it, got "
                f"{kwargs['rms_norm_eps']} and {kwargs['norm_eps']}"
            )
        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        weights = kwargs.get("transformers_weights")  # what from_pretrained then loads; adapter_model.bin is a pickle
        if weights is not None and not str(weights).endswith(".safetensors"):
            raise ValueError(f"HGRN2Config: transformers_weights must name a file of safetensors, got {weights!r}")
        if "rms_norm_eps" in kwargs:
            self.norm_eps = kwargs.pop("rms_norm_eps")
        for key in _LEGACY_KEYS:
            kwargs.pop(key, None)
        known = (
            {field.name for field in fields(PretrainedConfig)}
            | set(_TRANSFORMERS_KEYS.split())
            | set(GenerationConfig().to_dict())
        )
        unknown = sorted(key for key in kwargs if key not in known and not key.startswith("_"))
        if unknown:
            logger.warning("HGRN2Config: unknown keys %s change nothing; they are kept and saved again", unknown)
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"HGRN2Config: {key} must be one of {choices}, got {getattr(self, key)!r}")
        for key, (supported, what) in _UNSUPPORTED.items():
            if getattr(self, key) != supported:
                raise ValueError(
                    f"HGRN2Config: {key} must be {supported}, got {getattr(self, key)!r}: longstream has no {what}"
                )
        if self.expand_ratio is None and not self.num_heads:
            raise ValueError(f"HGRN2Config: expand_ratio is None, so num_heads must be >= 1, got {self.num_heads}")
        if self.expand_ratio is None:
            self.expand_ratio = self.hidden_size // self.num_heads  # type: ignore[operator]
        if not 1 <= self.expand_ratio <= self.hidden_size or self.hidden_size % self.expand_ratio:
            raise ValueError(
                f"HGRN2Config: expand_ratio must divide hidden_size {self.hidden_size}, got {self.expand_ratio}"
            )
        heads = self.hidden_size // self.expand_ratio
        if self.num_heads not in (None, heads):
            logger.warning(
                "HGRN2Config: num_heads %s contradicts hidden_size / expand_ratio = %s; expand_ratio counts",
                self.num_heads,
                heads,
            )
        self.num_heads = heads
        if self.mixer_norm == "layer" and not self.elementwise_affine:
            raise ValueError('HGRN2Config: mixer_norm "layer" has a weight, but elementwise_affine is False')
        if self.mixer_norm == "rms" and not self.elementwise_affine:
            self.mixer_norm = "rms_no_weight"
        self.elementwise_affine = self.mixer_norm != "rms_no_weight"

    def to_model_config(self) -> ModelConfig:
        """The same model in the terms of `longstream.models`."""
        self._check()  # fields can be assigned after construction
        assert self.expand_ratio is not None
        return ModelConfig(
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            mixer=MixerConfig(
                expand_ratio=self.expand_ratio,
                query_activation=self.query_activation,
                value_activation=self.value_activation,
                query_scale=self.expand_ratio**-0.5 if self.query_scale is None else self.query_scale,
                norm=self.mixer_norm,
                norm_eps=self.g_norm_eps,
                bias=self.use_bias,
                conv_size=self.conv_size if self.use_short_conv else 0,
                conv_bias=self.conv_bias,
            ),
            intermediate_size=self.intermediate_size,
            hidden_ratio=4 if self.hidden_ratio is None else self.hidden_ratio,
            norm_eps=self.norm_eps,
            lower_bound=self.lower_bound_sum if self.use_lower_bound else None,
            vocab_size=self.vocab_size,
            tie_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
        )

    def fla_differs(self) -> list[str]:
        """The fields by which fla, reading this configuration, would compute something else: it does not know them."""
        same = {
            "query_activation": self.query_activation == "silu",
            "value_activation": self.value_activation == "none",
            "query_scale": self.query_scale in (None, (self.expand_ratio or 1) ** -0.5),
            "mixer_norm": self.mixer_norm != "layer",
            "g_norm_eps": self.g_norm_eps == 1e-5,
            "use_bias": not self.use_bias,
            "conv_bias": not (self.conv_bias and self.use_short_conv),
            "lower_bound_sum": self.lower_bound_sum == "inclusive" or not self.use_lower_bound,
        }
        return [key for key, is_same in same.items() if not is_same]

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, and say where fla would not compute the same from it."""
        if differs := self.fla_differs():
            logger.warning(
                "HGRN2Config: fla does not know %s and would compute something else from %s", differs, save_directory
            )
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: our own fields only where they say more than fla's."""
        ours = (
            "query_activation",
            "value_activation",
            "query_scale",
            "mixer_norm",
            "g_norm_eps",
            "use_bias",
            "conv_bias",
            "lower_bound_sum",
        )
        written = super().to_diff_dict()
        default = {field.name: field.default for field in fields(type(self))}
        for key in ours:
            if written.get(key) == default[key] or (key == "mixer_norm" and written.get(key) == "rms_no_weight"):
                written.pop(key, None)
        return written
