"""From the settings of a network to a model of transformers, for every `--model`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from longstream.models import HyenaConfig, ModelConfig, count_parameters
from longstream.train.settings import ModelSettings, parse_count

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTH_STEP = 16  # hidden sizes that `--params` tries: multiples of it, and of HGRN2's expand_ratio where one is given
DEPTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
# Channels a layer that `--params` aims at: 40 at a million parameters, as in the demo's 160 x 4, and by this power 85
# at a billion, as in flash-linear-attention's 2048 x 24.
USUAL_RATIO = (1e6, 40.0, 0.11)


def build_model(settings: ModelSettings, *, vocab_size: int, boundary_id: int, seq_len: int) -> Any:
    """A new causal language model of `longstream.hf`, its weights drawn from torch's random state.

    Args:
        settings:    the network; its hidden size and depth count unless ``params`` says how large it is to be.
        vocab_size:  of the tokenizer.
        boundary_id: the token that begins and ends a document.
        seq_len:     tokens of a training sequence: Hyena's longest sequence, unless the settings name another.
    """
    from transformers import AutoModelForCausalLM

    settings = choose_size(settings, vocab_size, seq_len)
    ids = {"bos_token_id": boundary_id, "eos_token_id": boundary_id, "pad_token_id": boundary_id}
    return AutoModelForCausalLM.from_config(_hf_config(settings, vocab_size, seq_len, ids))


def model_config(settings: ModelSettings, vocab_size: int, seq_len: int) -> ModelConfig:
    """The network in the terms of `longstream.models`."""
    return _hf_config(settings, vocab_size, seq_len, {}).to_model_config()  # type: ignore[attr-defined]


def choose_size(settings: ModelSettings, vocab_size: int, seq_len: int) -> ModelSettings:
    """The settings with the hidden size, MLP and depth that come nearest to ``settings.params`` parameters.

    Width and depth are also held to the proportion that models of that size have: 1 % of parameters counts as much as
    4 % of proportion, and the last 3 % nothing.

    Raises:
        ValueError: no size comes within 25 %.
    """
    if not settings.params:
        return settings
    wanted = parse_count(settings.params)
    base, ratio, power = USUAL_RATIO
    usual = ratio * (wanted / base) ** power

    width_step = math.lcm(WIDTH_STEP, (settings.has_expand_ratio and settings.expand_ratio) or 1)

    def sized(width: int, depth: int) -> ModelSettings:
        middle = math.ceil(settings.hidden_ratio * width * 2 / 3 / WIDTH_STEP) * WIDTH_STEP
        return replace(settings, hidden_size=width, num_hidden_layers=depth, intermediate_size=middle, params="")

    found = []
    for depth in DEPTHS:
        low, high = 1, 1024  # in steps of width; parameters grow with it
        while low < high:
            middle = (low + high) // 2
            if count_parameters(model_config(sized(middle * width_step, depth), vocab_size, seq_len)) < wanted:
                low = middle + 1
            else:
                high = middle
        for step in {max(low - 1, 1), low}:
            width = step * width_step
            count = count_parameters(model_config(sized(width, depth), vocab_size, seq_len))
            miss, out_of_proportion = abs(math.log(count / wanted)), abs(math.log(width / depth / usual))
            found.append((4 * max(miss, 0.03) + out_of_proportion, miss, width, depth))
    _, miss, width, depth = min(found)
    if miss > 0.25:
        raise ValueError(f"--params {settings.params}: no {settings.name} of that size; use --hidden-size and the like")
    return sized(width, depth)


def _hf_config(settings: ModelSettings, vocab_size: int, seq_len: int, ids: dict[str, int]) -> PretrainedConfig:
    from longstream import hf

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.num_hidden_layers,
        "hidden_ratio": settings.hidden_ratio,
        "intermediate_size": settings.intermediate_size or None,
        "tie_word_embeddings": settings.tie_word_embeddings,
        **ids,
    }
    convolutions = {"use_short_conv": settings.use_short_conv, "conv_size": settings.conv_size}
    if settings.name == "hgrn":
        return hf.HGRNConfig(**common, **convolutions, expand_ratio=settings.recurrence_ratio)
    if settings.has_expand_ratio:
        attn = _attention(settings) if settings.name == "hybrid" else None
        return hf.HGRN2Config(**common, **convolutions, expand_ratio=settings.state_size, attn=attn)
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
