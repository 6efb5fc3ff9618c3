"""What flash-linear-attention (fla) 0.6.0 configures alike in HGRN and HGRN2, and the choices that it fixes."""

import logging
import os
from dataclasses import fields
from typing import Any, ClassVar

from transformers.configuration_utils import strict  # type: ignore[attr-defined]

from longstream.hf._attn import check_attn, to_attention_config
from longstream.hf.configuration import BaseConfig
from longstream.models import ModelConfig

logger = logging.getLogger(__name__)

_CHOICES = {
    "mixer_norm": ("rms", "layer", "rms_no_weight"),
    "lower_bound_sum": ("inclusive", "exclusive"),
    "hidden_act": ("swish", "silu"),
}
_UNSUPPORTED = {  # field of fla, the one value we compute
    "attnres_block_size": (None, "attention residuals"),
    "use_l2warp": (False, "L2 penalty on logits"),
}


@strict
class FlaConfig(BaseConfig):
    """What fla's HGRN and HGRN2 have in common: fla's fields and defaults, and some of our own.

    The defaults of our own fields are what fla computes, and such a default is not written to config.json, so that the
    file stays fla's. ``attn_mode`` and ``fuse_*`` are kept and change nothing. ``attnres_block_size`` and
    ``use_l2warp`` are refused. Keys of old checkpoints are read: ``rms_norm_eps`` as ``norm_eps``;
    ``share_conv_kernel``, and what the class adds, are dropped. Other keys are reported and kept.

    Args:
        attn:             for a hybrid, fla's dictionary: layers (which of them have softmax attention for a mixer),
                          num_heads, and perhaps num_kv_heads, qkv_bias, window_size (tokens that see each other, the
                          last included) and rope_theta. A window_size of None is full attention in fla; here it is
                          max_position_embeddings, which computes the same up to that many tokens.
        mixer_norm:       "rms", "layer" or "rms_no_weight" (fla: elementwise_affine False).
        use_bias:         biases on the projections of the mixer.
        conv_bias:        biases on the short convolutions.
        lower_bound_sum:  "inclusive" (P_1 + ... + P_l) or "exclusive" (P_0 + ... + P_{l-1}).
    Raises:
        ValueError: an unknown choice, sizes that do not divide, or something that longstream does not compute.
    """

    _legacy_keys: ClassVar[tuple[str, ...]] = ("share_conv_kernel",)  # what it once chose has left fla
    _own: ClassVar[tuple[str, ...]] = ("mixer_norm", "use_bias", "conv_bias", "lower_bound_sum")  # fields, not fla's
    _own_choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    attn_mode: str = "chunk"
    expand_ratio: int | None = None
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

    mixer_norm: str = "rms"
    use_bias: bool = False
    conv_bias: bool = False
    lower_bound_sum: str = "inclusive"

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Only here can a norm_eps that was given be told from the default.
        if "norm_eps" in kwargs and kwargs.get("rms_norm_eps", kwargs["norm_eps"]) != kwargs["norm_eps"]:
            raise ValueError(
                f"{cls.__name__}: rms_norm_eps is an old name of norm_eps and must agree with it, got "
                f"{kwargs['rms_norm_eps']} and {kwargs['norm_eps']}"
            )
        return super().__new__(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        if "decoder_embed_dim" in kwargs:  # the authors' language models have the same model_type
            raise ValueError(
                f"{type(self).__name__}: this is a config.json of OpenNLPLab's, not of flash-linear-attention's;"
                " `longstream convert SRC DST --to longstream` makes a folder that loads"
            )
        if "rms_norm_eps" in kwargs:
            self.norm_eps = kwargs.pop("rms_norm_eps")
        for key in self._legacy_keys:
            kwargs.pop(key, None)
        super().__post_init__(**kwargs)
        if self.attn is not None and self.attn["window_size"] is None:
            logger.warning(
                "%s: attn has no window_size, which is full attention in fla; here it is max_position_embeddings, %s "
                "tokens: a state has an end, and up to there the two are equal",
                type(self).__name__,
                self.max_position_embeddings,
            )

    def _check(self) -> None:
        name = type(self).__name__
        for key, choices in (_CHOICES | self._own_choices).items():
            if getattr(self, key) not in choices:
                raise ValueError(f"{name}: {key} must be one of {choices}, got {getattr(self, key)!r}")
        for key, (supported, what) in _UNSUPPORTED.items():
            if getattr(self, key) != supported:
                raise ValueError(
                    f"{name}: {key} must be {supported}, got {getattr(self, key)!r}: longstream has no {what}"
                )
        if self.mixer_norm == "layer" and not self.elementwise_affine:
            raise ValueError(f'{name}: mixer_norm "layer" has a weight, but elementwise_affine is False')
        if self.mixer_norm == "rms" and not self.elementwise_affine:
            self.mixer_norm = "rms_no_weight"
        self.elementwise_affine = self.mixer_norm != "rms_no_weight"
        if self.attn is not None:
            self.attn = check_attn(
                name, self.attn, self.num_hidden_layers, self.hidden_size, self.max_position_embeddings
            )

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """See `BaseConfig.attention_layers`."""
        return () if self.attn is None else tuple(self.attn["layers"])

    def to_model_config(self) -> ModelConfig:
        """The same model in the terms of `longstream.models`."""
        self._check()  # fields can be assigned after construction
        mixer, layers = self._mixer(), None
        if self.attn is not None:
            attention = to_attention_config(self.attn, self.max_position_embeddings)
            layers = tuple(attention if i in self.attention_layers else mixer for i in range(self.num_hidden_layers))
        return ModelConfig(
            hidden_size=self.hidden_size,
            num_layers=self.num_hidden_layers,
            mixer=mixer,
            layers=layers,
            intermediate_size=self.intermediate_size,
            hidden_ratio=4 if self.hidden_ratio is None else self.hidden_ratio,
            norm_eps=self.norm_eps,
            lower_bound=self.lower_bound_sum if self.use_lower_bound else None,
            vocab_size=self.vocab_size,
            tie_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
        )

    def _mixer(self) -> Any:
        raise NotImplementedError

    def _mixer_in_common(self) -> dict[str, Any]:
        return {
            "expand_ratio": self.expand_ratio,
            "norm": self.mixer_norm,
            "bias": self.use_bias,
            "conv_size": self.conv_size if self.use_short_conv else 0,
            "conv_bias": self.conv_bias,
        }

    def fla_differs(self) -> list[str]:
        """The fields by which fla, reading this configuration, would compute something else: it does not know them."""
        return [key for key, is_same in self._same_in_fla().items() if not is_same]

    def _same_in_fla(self) -> dict[str, bool]:
        return {
            "mixer_norm": self.mixer_norm != "layer",
            "use_bias": not self.use_bias,
            "conv_bias": not (self.conv_bias and self.use_short_conv),
            "lower_bound_sum": self.lower_bound_sum == "inclusive" or not self.use_lower_bound,
        }

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, and say where fla would not compute the same from it."""
        if differs := self.fla_differs():
            logger.warning(
                "%s: fla does not know %s and would compute something else from %s",
                type(self).__name__,
                differs,
                save_directory,
            )
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: our own fields only where they say more than fla's."""
        written = super().to_diff_dict()
        default = {field.name: field.default for field in fields(type(self))}
        for key in self._own:
            if written.get(key) == default[key] or (key == "mixer_norm" and written.get(key) == "rms_no_weight"):
                written.pop(key, None)
        return written
