"""Configurations: frozen, complete, and strict about what they are given."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from longstream.layers import HGRN, HGRN2, MLPS
from longstream.layers.attention import SlidingWindowAttention, check_attention
from longstream.layers.hgrn import check_hgrn
from longstream.layers.hgrn2 import check_hgrn2
from longstream.layers.hyena import Hyena, check_hyena
from longstream.layers.norm import NORMS


def _without_backend(config: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name != "backend"}


@dataclass(frozen=True, kw_only=True)
class HGRNConfig:
    """The arguments of `longstream.layers.HGRN` except hidden_size, which lives in `ModelConfig`, once."""

    expand_ratio: int = 1
    unit: str = "real"
    direction: str = "causal"
    shared_theta: bool = True
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_first: bool = True
    gate_activation: str = "silu"
    bias: bool = False
    conv_size: int = 0
    conv_bias: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_hgrn("HGRNConfig", **_without_backend(self))


@dataclass(frozen=True, kw_only=True)
class HGRN2Config:
    """The arguments of `longstream.layers.HGRN2` except hidden_size.

    `longstream.hf.HGRN2Config` is another class: a whole model in flash-linear-attention's fields, whose query_scale is
    expand_ratio ** -0.5 where this one's is 1.
    """

    expand_ratio: int = 128
    direction: str = "causal"
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
        check_hgrn2("HGRN2Config", **_without_backend(self))


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """The arguments of `longstream.layers.Hyena` except hidden_size."""

    max_seq_len: int = 1024
    order: int = 2
    num_heads: int = 1
    short_conv_size: int = 3
    filter_width: int = 64
    filter_layers: int = 2
    positional_width: int = 33
    frequency: float = 14.0
    window: bool = True
    window_target: float = 1e-2
    window_fast: float = 0.3
    window_slow: float = 1.5
    window_shift: float = 0.0
    filter_layout: str = "stage"
    normalize_filter: bool = False
    filter_init_std: float | None = None
    activation: str = "none"
    bias: bool = True
    dropout: float = 0.0
    causal: bool = True
    filter_lr: float | None = None
    filter_weight_decay: float = 0.0
    positions_lr: float = 1e-5
    window_lr: float = 0.0
    decode: str = "tiled"
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_hyena("HyenaConfig", **_without_backend(self))


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The arguments of `longstream.layers.SlidingWindowAttention` except hidden_size."""

    num_heads: int
    window_size: int
    num_kv_heads: int | None = None
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        check_attention("AttentionConfig", **asdict(self))


LOWER_BOUND_MODES = ("learned", "fixed", "decreasing")
MixerConfig = HGRNConfig | HGRN2Config | HyenaConfig | AttentionConfig
MIXERS: dict[type[Any], type[nn.Module]] = {
    HGRNConfig: HGRN,
    HGRN2Config: HGRN2,
    HyenaConfig: Hyena,
    AttentionConfig: SlidingWindowAttention,
}


def register_mixer(config: type[Any], mixer: type[nn.Module]) -> None:
    """Let `ModelConfig` name one more kind of mixer, such as a baseline's.

    Args:
        config: a frozen dataclass of the mixer's arguments except hidden_size.
        mixer:  called as ``mixer(hidden_size, **arguments)``; forward, step and init_state as of the other mixers, and
                its projection into the residual stream is called ``out_proj``.
    """
    MIXERS[config] = mixer


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A stack of blocks, and what a language model adds to it."""

    hidden_size: int
    num_layers: int
    mixer: MixerConfig = HGRN2Config()  # of every layer, unless `layers` says otherwise
    layers: tuple[MixerConfig, ...] | None = None  # mixers of a hybrid in turn, repeated over the depth
    hidden_ratio: float = 4  # of the MLP; SwiGLU takes 2/3 of it, for its third matrix
    intermediate_size: int | None = None  # of the MLP; None derives it from hidden_ratio
    # Or "gelu", two matrices with biases; "bilinear", SwiGLU without its activation; "none", a block is its mixer.
    mlp: str = "swiglu"
    norm: str = "rms"  # of the block, and the last one: "rms", "layer" or "rms_no_weight"
    norm_eps: float = 1e-6  # theirs; the mixer has its own
    dropout: float = 0.0  # on what mixer and MLP add
    embed_dropout: float = 0.0  # on the embeddings of LanguageModel
    lower_bound: str | None = "inclusive"  # which cumulative sum bounds the forget gates; None for no bounds
    # Or "fixed": as they begin, l / L, and not trained. Or "decreasing": in reverse order, most at the first layer.
    lower_bound_mode: str = "learned"
    vocab_size: int | None = None  # for LanguageModel
    vocab_multiple: int = 1  # the embeddings have this or a multiple of it as rows; ids stay below vocab_size
    tie_embeddings: bool = False
    initializer_range: float = 0.02  # standard deviation of linear and embedding weights
    memory: int | None = None  # tokens that forget gates remember at first, by their biases; None starts these at 0
    rescale_residual: bool = False  # divide that of the projections into the residual stream by sqrt(2 num_layers)

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "intermediate_size", "vocab_size", "vocab_multiple", "memory"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"ModelConfig.{name} must be an integer >= 1, got {value!r}")
        for name in ("hidden_ratio", "norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"ModelConfig.{name} must be a number > 0, got {value!r}")
        for name in ("dropout", "embed_dropout"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"ModelConfig.{name} must be a number in [0, 1), got {value!r}")
        choices: dict[str, tuple[Any, ...]] = {"mlp": (*MLPS, "none"), "norm": NORMS}
        choices |= {"lower_bound": ("inclusive", "exclusive", None), "lower_bound_mode": LOWER_BOUND_MODES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"ModelConfig.{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))  # a list is welcome
        for name, mixer in [("mixer", self.mixer), *(("layers", mixer) for mixer in self.layers or ())]:
            if type(mixer) not in MIXERS:
                names = [config.__name__ for config in MIXERS]
                raise TypeError(f"ModelConfig.{name} must be of {names}, got {type(mixer).__name__}")
        if self.layers is not None and not 1 <= len(self.layers) <= self.num_layers:
            raise ValueError(
                f"ModelConfig.layers must name 1 to num_layers={self.num_layers} mixers, got {len(self.layers)}"
            )
        if self.lower_bound is None and self.lower_bound_mode != "learned":
            raise ValueError(
                f"ModelConfig.lower_bound_mode must be 'learned' without a lower_bound, got {self.lower_bound_mode!r}"
            )
        _ = self.gate_size  # refuses gates of different widths
        if self.memory and not all(m.bias for m in self.mixers if isinstance(m, HGRNConfig | HGRN2Config)):
            raise ValueError(f"ModelConfig.memory must be None unless the mixers have bias=True, got {self.memory}")

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """The mixer of each layer."""
        turn = self.layers or (self.mixer,)
        return tuple(turn[i % len(turn)] for i in range(self.num_layers))

    @property
    def gate_size(self) -> int | None:
        """Channels of the lower bounds that the layers with forget gates share; None where there are none."""
        ratios = {m.expand_ratio if isinstance(m, HGRNConfig) else 1 for m in self.mixers if has_gates(m)}
        if self.lower_bound is None or not ratios:
            return None
        if len(ratios) > 1:
            raise ValueError(
                "ModelConfig.layers must have forget gates of one width to share lower bounds, got expand_ratio "
                f"{sorted(ratios)}; or set lower_bound=None"
            )
        return self.hidden_size * ratios.pop()

    @property
    def max_seq_len(self) -> int | None:
        """The most tokens that a sequence may have, which Hyena's filters decide; None is no limit."""
        return min((m.max_seq_len for m in self.mixers if isinstance(m, HyenaConfig)), default=None)

    @property
    def mlp_size(self) -> int:
        """Width of the MLP: intermediate_size, or hidden_ratio * hidden_size; with 3 matrices 2/3 of it, up to 256s.

        0 where there is none.
        """
        if self.mlp == "none":
            return 0
        if self.intermediate_size:
            return self.intermediate_size
        if self.mlp == "gelu":
            return int(self.hidden_ratio * self.hidden_size)
        return 256 * math.ceil(int(self.hidden_size * self.hidden_ratio * 2 / 3) / 256)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embeddings: vocab_size up to the next multiple of vocab_multiple."""
        return self.vocab_multiple * math.ceil((self.vocab_size or 0) / self.vocab_multiple)

    def build_mixer(self, layer: int) -> nn.Module:
        """A new mixer for a layer."""
        config = self.mixers[layer]
        return MIXERS[type(config)](self.hidden_size, **asdict(config))


def has_gates(mixer: MixerConfig) -> bool:
    """Whether a mixer has forget gates, and so a lower bound."""
    return isinstance(mixer, HGRNConfig | HGRN2Config)


# What of a mixer's configuration has no say in what a state means.
_NOT_DECIDING = {
    *("backend", "dropout", "decode", "filter_init_std"),
    *("filter_lr", "filter_weight_decay", "positions_lr", "window_lr"),
}


def deciding(mixer: MixerConfig) -> list[Any]:
    """What decides the meaning of a mixer's state, in a form that is the same for 1 and 1.0."""
    kept = [f for f in fields(mixer) if f.name not in _NOT_DECIDING]
    values = {f.name: getattr(mixer, f.name) for f in kept}
    values |= {f.name: float(values[f.name]) for f in kept if isinstance(f.default, float)}
    return [type(mixer).__name__, sorted(values.items())]
