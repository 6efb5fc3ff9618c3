"""Models of frames by name, so that one is swapped for another by changing a word."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from longstream.edifice import hgrn as edifice_hgrn
from longstream.edifice import hyena as edifice_hyena
from longstream.edifice._options import read_options
from longstream.models import AttentionConfig, Backbone, FeatureModel, HGRN2Config, HGRNConfig, HyenaConfig, ModelConfig


class ModelInfo(NamedTuple):
    """One line of `list_models`."""

    name: str
    family: str  # "paper" or "edifice"
    summary: str


# What `build` takes for every model of the papers, with its default.
_COMMON: dict[str, Any] = {
    "embed_dim": None,
    "hidden_size": 256,
    "num_layers": 4,
    "window_size": 60,
    "seq_len": None,
    "dropout": 0.0,
    "outputs": "last",
    "hidden_ratio": 4,
    "intermediate_size": None,
    "mlp": "swiglu",
    "lower_bound": "inclusive",
    "lower_bound_mode": "learned",
    "memory": None,
    "initializer_range": None,
}
_OF_MODEL = (
    *("hidden_size", "num_layers", "dropout", "hidden_ratio", "intermediate_size"),
    *("mlp", "lower_bound", "lower_bound_mode"),
)
_MOST_STATE = 128  # of an HGRN2 head where none is given: the papers' expand_ratio
_USUAL_HEAD = 64  # of attention


def build(name: str, **options: Any) -> FeatureModel:
    """A model of frames: (B, T, embed_dim) in, (B, hidden_size) or (B, T, hidden_size) out, and a state.

    Every model takes embed_dim (or input_size, input_dim, obs_size), hidden_size, num_layers, window_size (or seq_len,
    which wins), dropout and outputs ("last", "all" or "mean"). window_size, in frames, is Hyena's longest sequence and
    the hybrid's attention window; the others take any number of frames and only read it.

    The models of the papers have hidden_size 256, num_layers 4, window_size 60, no dropout, and also take hidden_ratio,
    intermediate_size, mlp, lower_bound, lower_bound_mode, memory and initializer_range of `longstream.ModelConfig` and
    what their mixer's configuration has: `HGRNConfig`, `HGRN2Config` or `HyenaConfig`. The hybrid is HGRN2 whose every
    attention_every-th layer (4) is attention of num_heads. Edifice's models have their options and defaults of
    `longstream.edifice.hgrn.build` and `longstream.edifice.hyena.build`.

    Four defaults are not those of a language model but for some dozens of frames: initializer_range is
    0.5 hidden_size ** -0.5; HGRN and HGRN2 have biases and remember window_size frames at first (memory); expand_ratio
    of HGRN2 is the largest divisor of hidden_size up to 128; Hyena's frequency is 1, at which filters of 60 taps begin
    as smooth ones, where 14 makes them noise.

    Args:
        name:    of `list_models`.
        options: see above.
    Returns:
        `FeatureModel`: forward, step, prefill, init_state. In training mode, as modules of torch are.
    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: an unknown option, whose nearest known one is named, or no embed_dim.
    """
    if name not in _MODELS:
        raise ValueError(f"build: name must be one of {list(_MODELS)}, got {name!r}")
    return _MODELS[name][1](**options)


def list_models() -> list[ModelInfo]:
    """The models that `build` knows: name, family, and what each is in a line."""
    return [info for info, _ in _MODELS.values()]


def _hgrn(**options: Any) -> FeatureModel:
    read, own = _read("hgrn", HGRNConfig, options)
    return _make(read, HGRNConfig(**own))


def _hgrn2(**options: Any) -> FeatureModel:
    read, own = _read("hgrn2", HGRN2Config, options)
    return _make(read, HGRN2Config(**own))


def _hyena(**options: Any) -> FeatureModel:
    read, own = _read("hyena", HyenaConfig, options)
    return _make(read, HyenaConfig(**own))


def _hybrid(**options: Any) -> FeatureModel:
    read, own = _read("hybrid", HGRN2Config, options, attention_every=4, num_heads=None)
    every, heads = read["attention_every"], read["num_heads"]
    if not isinstance(every, int) or isinstance(every, bool) or every < 2:
        raise ValueError(f"build('hybrid'): attention_every must be an integer >= 2, got {every!r}")
    if read["num_layers"] < 2:
        raise ValueError("build('hybrid'): num_layers must be >= 2, to have HGRN2 and attention, got 1")
    if heads is None:
        sizes = [k for k in _divisors(read["hidden_size"], _USUAL_HEAD) if k % 2 == 0]
        if not sizes:
            raise ValueError(f"build('hybrid'): hidden_size must be even for attention, got {read['hidden_size']}")
        heads = read["hidden_size"] // sizes[-1]
    every = min(every, read["num_layers"])
    attention = AttentionConfig(num_heads=heads, window_size=read["seq_len"])
    return _make(read, *[HGRN2Config(**own)] * (every - 1), attention)


def _read(name: str, config: Any, options: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """All options with their defaults, and those of them that are of the mixer."""
    defaults = {f.name: f.default for f in fields(config)}
    read = read_options(f"build({name!r})", {**defaults, **_COMMON, **more}, options)
    own = {key: read[key] for key in defaults if key not in _COMMON}
    if config is HGRN2Config and "expand_ratio" not in options:
        own["expand_ratio"] = _divisors(read["hidden_size"], _MOST_STATE)[-1]
    if config is HyenaConfig:
        own |= {
            key: value for key, value in (("max_seq_len", read["seq_len"]), ("frequency", 1.0)) if key not in options
        }
    elif "bias" not in options:
        own["bias"] = True
    if read["memory"] is None and own["bias"] and config is not HyenaConfig:
        read["memory"] = read["seq_len"]
    return read, own


def _make(read: dict[str, Any], *mixers: Any) -> FeatureModel:
    scale = read["initializer_range"]
    scale = 0.5 * read["hidden_size"] ** -0.5 if scale is None else scale
    options = {key: read[key] for key in _OF_MODEL}
    config = ModelConfig(layers=mixers, memory=read["memory"], initializer_range=scale, **options)
    return FeatureModel(Backbone(config), read["embed_dim"], outputs=read["outputs"])


def _divisors(n: int, most: int) -> list[int]:
    return [k for k in range(1, min(n, most) + 1) if n % k == 0]


_MODELS: dict[str, tuple[ModelInfo, Callable[..., FeatureModel]]] = {
    name: (ModelInfo(name, family, summary), function)
    for name, family, summary, function in (
        ("hgrn", "paper", "HGRN, arXiv:2311.04823: gated recurrence with lower bounds on its gates", _hgrn),
        ("hgrn2", "paper", "HGRN2, arXiv:2404.07904: HGRN with an outer product as state", _hgrn2),
        ("hyena", "paper", "Hyena, arXiv:2302.10866: gated long convolutions, up to window_size frames", _hyena),
        ("hybrid", "paper", "HGRN2 with attention over window_size frames in every fourth layer", _hybrid),
        ("edifice-hgrn", "edifice", "Edifice's HGRN: untied gates, coarser with depth, plain MLP", edifice_hgrn.build),
        ("edifice-hyena", "edifice", "Edifice's Hyena: filters of bare time, no window, no skip", edifice_hyena.build),
    )
}
