"""From the settings of a network to a model of transformers, for every `--model`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from longstream.baselines import NAMES as BASELINES
from longstream.baselines.configs import TRANSFORMERS, count_transformers, new_model
from longstream.models import AttentionConfig, HyenaConfig, ModelConfig, count_parameters
from longstream.train.batches import Collator, RowCollator
from longstream.train.data import PackedCollator
from longstream.train.network_options import baseline_fields, block_fields, mixer_fields
from longstream.train.settings import ModelSettings, parse_count

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTH_STEP = 16  # hidden sizes that `--params` tries: multiples of it, and of HGRN2's expand_ratio where one is given
DEPTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
# Channels a layer that `--params` aims at: 40 at a million parameters, as in the demo's 160 x 4, and by this power 85
# at a billion, as in flash-linear-attention's 2048 x 24.
USUAL_RATIO = (1e6, 40.0, 0.11)
HALF_BLOCKS = 0.5  # of that where a layer has no MLP: Mamba's authors take twice as many layers as a Transformer has


def build_model(settings: ModelSettings, *, vocab_size: int, seq_len: int, boundary_id: int | None = None) -> Any:
    """A new causal language model, of `longstream.hf` or a baseline, its weights drawn from torch's random state.

    Args:
        settings:    the network; its hidden size and depth count unless ``params`` says how large it is to be.
        vocab_size:  of the tokenizer.
        seq_len:     tokens of a training sequence: the longest one of Hyena and Llama, unless the settings say.
        boundary_id: the token that begins and ends a document; None: there are no documents.
    """
    from transformers import AutoModelForCausalLM

    from longstream.train.rundir import quiet_transformers

    settings = choose_size(settings, vocab_size, seq_len)
    with quiet_transformers():
        return new_model(AutoModelForCausalLM, _hf_config(settings, vocab_size, seq_len, boundary_id))


def describe_model(settings: ModelSettings, model: Any) -> str:
    """The network in a few words, for the line that a run begins with: also what makes a baseline slow here."""
    from longstream.baselines.configs import has_mambapy

    text = f"{settings.name} of {model.num_parameters():,} parameters"
    if settings.params:
        text += f", {model.config.hidden_size} wide, {model.config.num_hidden_layers} layers"
    if settings.name == "mamba":
        scans = ("its scan is transformers' loop, slow: pip install mambapy", "its scan is mambapy's")
        text += f" ({scans[has_mambapy()]})"
    return text


def model_config(settings: ModelSettings, vocab_size: int, seq_len: int) -> ModelConfig:
    """The network in the terms of `longstream.models`; "llama", "mamba" and "mamba2" have none."""
    return _hf_config(settings, vocab_size, seq_len).to_model_config()  # type: ignore[attr-defined]


def count(settings: ModelSettings, vocab_size: int, seq_len: int) -> int:
    """How many parameters `build_model` gives a model, without making it."""
    if settings.name in TRANSFORMERS:
        return count_transformers(_hf_config(settings, vocab_size, seq_len))
    return count_parameters(model_config(settings, vocab_size, seq_len))


def choose_size(
    settings: ModelSettings,
    vocab_size: int,
    seq_len: int,
    *,
    count: Callable[[ModelSettings], int] | None = None,
    depths: Sequence[int] = DEPTHS,
    step: int = WIDTH_STEP,
) -> ModelSettings:
    """The settings with the hidden size, MLP and depth that come nearest to ``settings.params`` parameters.

    Width and depth are also held to the proportion that models of that size have: 1 % of parameters counts as much as
    4 % of proportion, and the last 3 % nothing.

    Args:
        count:  of the parameters of a model of these settings; None is `count` of this module.
        depths: to try.
        step:   the widths to try are multiples of it.
    Raises:
        ValueError: no size comes within 25 %.
    """
    if not settings.params:
        return settings
    measure = count or (lambda sized: _count(sized, vocab_size, seq_len))
    wanted = parse_count(settings.params)
    base, ratio, power = USUAL_RATIO
    usual = ratio * (wanted / base) ** power * (HALF_BLOCKS if settings.name in ("mamba", "mamba2") else 1)

    width_step = math.lcm(step, (settings.has_expand_ratio and settings.expand_ratio) or 1)

    def sized(width: int, depth: int) -> ModelSettings:
        middle = math.ceil(settings.hidden_ratio * width * 2 / 3 / step) * step
        return replace(settings, hidden_size=width, num_hidden_layers=depth, intermediate_size=middle, params="")

    found = []
    for depth in depths:
        low, high = 1, 1024  # in steps of width; parameters grow with it
        while low < high:
            middle = (low + high) // 2
            if measure(sized(middle * width_step, depth)) < wanted:
                low = middle + 1
            else:
                high = middle
        for steps in {max(low - 1, 1), low}:
            width = steps * width_step
            size = measure(sized(width, depth))
            miss, out_of_proportion = abs(math.log(size / wanted)), abs(math.log(width / depth / usual))
            found.append((4 * max(miss, 0.03) + out_of_proportion, miss, width, depth))
    _, miss, width, depth = min(found)
    if miss > 0.25:
        raise ValueError(f"--params {settings.params}: no {settings.name} of that size; use --hidden-size and the like")
    return sized(width, depth)


_count = count  # `choose_size` has an argument of that name


def make_collator(settings: ModelSettings, boundary_id: int) -> PackedCollator:
    """How windows become a batch: packed in one row, or for transformers' baselines a row for each document's part."""
    return (RowCollator if settings.name in TRANSFORMERS else Collator)(boundary_id)


def _hf_config(
    settings: ModelSettings, vocab_size: int, seq_len: int, boundary_id: int | None = None
) -> PretrainedConfig:
    """The configuration; one that fla has no words for is a `longstream.hf.LongstreamConfig`."""
    from longstream import hf

    config = _plain_config(settings, vocab_size, seq_len, boundary_id)
    if settings.name in TRANSFORMERS:
        config.update(baseline_fields(settings))
        return config
    before: ModelConfig = config.to_model_config()  # type: ignore[attr-defined]
    mixers = tuple(
        mixer if isinstance(mixer, AttentionConfig) else replace(mixer, **mixer_fields(settings, type(mixer)))
        for mixer in before.mixers
    )
    changes: dict[str, Any] = {"mixer": mixers[0], "layers": None if len(set(mixers)) == 1 else mixers}
    changes |= {"mlp": settings.mlp, **block_fields(settings)}
    if settings.lower_bound in ("fixed", "decreasing"):
        changes["lower_bound_mode"] = settings.lower_bound
    after = replace(before, **changes)  # all at once: a memory wants mixers with biases
    if after.mixers == before.mixers and replace(after, mixer=before.mixer, layers=before.layers) == before:
        return config
    kind = type(config) if isinstance(config, hf.LongstreamConfig) else hf.LongstreamConfig
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return kind.from_model_config(after, **ids)


def _plain_config(settings: ModelSettings, vocab_size: int, seq_len: int, boundary_id: int | None) -> PretrainedConfig:
    from longstream import hf

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "hidden_ratio": settings.hidden_ratio,
        "intermediate_size": settings.intermediate_size or None,
        "tie_word_embeddings": settings.tie_word_embeddings,
        **(ids := dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), boundary_id)),
    }
    if settings.name in BASELINES:
        from longstream.baselines.language import language_config

        return language_config(
            settings.name,
            vocab_size=vocab_size,
            boundary_id=boundary_id,
            hidden_size=settings.hidden_size,
            num_layers=settings.num_hidden_layers,
            hidden_ratio=settings.hidden_ratio,
            intermediate_size=settings.intermediate_size or None,
            max_seq_len=settings.max_seq_len or seq_len,
            expand_ratio=settings.recurrence_ratio,
            tie_embeddings=settings.tie_word_embeddings,
        )
    gated = {
        "use_short_conv": settings.use_short_conv,
        "conv_size": settings.conv_size,
        "use_lower_bound": settings.lower_bound != "none",
    }
    if settings.name == "hgrn":
        return hf.HGRNConfig(**common, **gated, expand_ratio=settings.recurrence_ratio)
    if settings.has_expand_ratio:
        attn = _attention(settings) if settings.name == "hybrid" else None
        return hf.HGRN2Config(**common, **gated, expand_ratio=settings.state_size, attn=attn)
    mixer = HyenaConfig(order=settings.hyena_order, max_seq_len=settings.max_seq_len or seq_len)
    config = ModelConfig(
        hidden_size=settings.hidden_size,
        num_layers=settings.num_hidden_layers,
        mixer=mixer,
        hidden_ratio=settings.hidden_ratio,
        intermediate_size=settings.intermediate_size or None,
        vocab_size=vocab_size,
        tie_embeddings=settings.tie_word_embeddings,
    )
    return hf.LongstreamConfig.from_model_config(config, **ids)


def _attention(settings: ModelSettings) -> dict[str, Any]:
    """flash-linear-attention's description of the attention layers: the last of every ``attention_every``."""
    every = min(settings.attention_every, settings.num_hidden_layers)
    if every < 2:
        sizes = f"attention_every={settings.attention_every}, num_hidden_layers={settings.num_hidden_layers}"
        raise ValueError(f"ModelSettings: a hybrid needs both at least 2, to have HGRN2 and attention, got {sizes}")
    return {
        "layers": list(range(every - 1, settings.num_hidden_layers, every)),
        "num_heads": _heads(settings),
        "window_size": settings.attention_window,
    }


def _heads(settings: ModelSettings) -> int:
    """Heads of about 64 channels, of an even number each, which rotary positions want."""
    sizes = [k for k in range(2, settings.hidden_size + 1, 2) if settings.hidden_size % k == 0]
    if not sizes:
        raise ValueError(f"ModelSettings.hidden_size must be even for attention, got {settings.hidden_size}")
    return settings.hidden_size // min(sizes, key=lambda k: abs(k - 64))
