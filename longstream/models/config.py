"""Configurations: frozen, complete, and strict about what they are given."""

import math
from dataclasses import asdict, dataclass

from longstream.layers import HGRN2
from longstream.layers.hgrn2 import check_choices


@dataclass(frozen=True, kw_only=True)
class HGRN2Config:
    """The arguments of `longstream.layers.HGRN2` except hidden_size, which lives in `ModelConfig`, once.

    `longstream.hf.HGRN2Config` is another class: a whole model in flash-linear-attention's fields, whose query_scale is
    expand_ratio ** -0.5 where this one's is 1.
    """

    expand_ratio: int = 128
    query_activation: str = "silu"
    value_activation: str = "none"
    query_scale: float = 1.0
    norm: str = "rms"
    norm_eps: float = 1e-5
    bias: bool = False
    conv_size: int = 0
    conv_bias: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        choices = (self.query_activation, self.value_activation, self.norm, self.norm_eps, self.conv_size)
        check_choices("HGRN2Config", self.expand_ratio, *choices)
        if not isinstance(self.query_scale, int | float):
            raise ValueError(f"HGRN2Config: query_scale must be a number, got {self.query_scale!r}")


MixerConfig = HGRN2Config  # a union, once there are more
MIXERS = {HGRN2Config: HGRN2}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of blocks, and what a language model adds to it."""

    hidden_size: int
    num_layers: int
    mixer: MixerConfig = HGRN2Config()
    hidden_ratio: float = 4  # of the MLP, before the 2/3 that SwiGLU's third matrix costs
    intermediate_size: int | None = None  # of the MLP; None derives it from hidden_ratio, a multiple of 256
    norm_eps: float = 1e-6  # of the block's norms; the mixer has its own
    lower_bound: str | None = "inclusive"  # which cumulative sum bounds the forget gates; None for no bounds
    vocab_size: int | None = None  # for LanguageModel
    tie_embeddings: bool = False
    initializer_range: float = 0.02  # standard deviation of linear and embedding weights

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "intermediate_size", "vocab_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"ModelConfig.{name} must be an integer >= 1, got {value!r}")
        for name in ("hidden_ratio", "norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"ModelConfig.{name} must be a number > 0, got {value!r}")
        if type(self.mixer) not in MIXERS:
            names = [config.__name__ for config in MIXERS]
            raise TypeError(f"ModelConfig.mixer must be one of {names}, got {type(self.mixer).__name__}")
        if self.lower_bound not in ("inclusive", "exclusive", None):
            raise ValueError(
                f"ModelConfig.lower_bound must be 'inclusive', 'exclusive' or None, got {self.lower_bound!r}"
            )

    @property
    def mlp_size(self) -> int:
        """Width of the MLP: intermediate_size, or hidden_ratio * hidden_size * 2/3 rounded up to a multiple of 256."""
        return self.intermediate_size or 256 * math.ceil(int(self.hidden_size * self.hidden_ratio * 2 / 3) / 256)

    def build_mixer(self) -> HGRN2:
        """A new mixer of this configuration."""
        return MIXERS[type(self.mixer)](self.hidden_size, **asdict(self.mixer))
