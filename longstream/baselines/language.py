"""Baselines as language models under transformers, and what the harness asks of any language model.

Importing it makes transformers' Auto classes know the types "longstream-gru" and "longstream-lstm": PyTorch's GRU and
LSTM in the blocks of longstream's models. "llama", "mamba" and "mamba2" are transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, PretrainedConfig
from transformers.configuration_utils import strict  # type: ignore[attr-defined]

from longstream import hf
from longstream.baselines.configs import TRANSFORMERS, transformers_config
from longstream.baselines.mamba import continue_mamba
from longstream.baselines.recurrent import RECURRENT
from longstream.hf.configuration import register_mixer_type
from longstream.models import ModelConfig


@strict
class GRULanguageConfig(hf.LongstreamConfig):
    """A `longstream.ModelConfig` whose mixers are "gru"; fields as of `longstream.hf.LongstreamConfig`."""

    model_type = "longstream-gru"


class GRUModel(hf.LongstreamModel):
    """GRU without a head; see `longstream.hf.LongstreamModel`."""

    config_class = GRULanguageConfig


class GRUForCausalLM(hf.LongstreamForCausalLM):
    """GRU as a language model; see `longstream.hf.LongstreamForCausalLM`."""

    config_class = GRULanguageConfig
    _model_class = GRUModel


@strict
class LSTMLanguageConfig(hf.LongstreamConfig):
    """A `longstream.ModelConfig` whose mixers are "lstm"; fields as of `longstream.hf.LongstreamConfig`."""

    model_type = "longstream-lstm"


class LSTMModel(hf.LongstreamModel):
    """LSTM without a head; see `longstream.hf.LongstreamModel`."""

    config_class = LSTMLanguageConfig


class LSTMForCausalLM(hf.LongstreamForCausalLM):
    """LSTM as a language model; see `longstream.hf.LongstreamForCausalLM`."""

    config_class = LSTMLanguageConfig
    _model_class = LSTMModel


_CONFIGS = {"gru": GRULanguageConfig, "lstm": LSTMLanguageConfig}
MODEL_TYPES = (*TRANSFORMERS, *(config.model_type for config in _CONFIGS.values()))


def language_config(
    name: str,
    *,
    vocab_size: int,
    boundary_id: int | None = None,
    hidden_size: int,
    num_layers: int,
    hidden_ratio: int = 4,
    intermediate_size: int | None = None,
    max_seq_len: int | None = None,
    expand_ratio: int = 1,
    tie_embeddings: bool = False,
) -> PretrainedConfig:
    """The configuration of a baseline as a language model, for ``AutoModelForCausalLM.from_config``.

    Args:
        name:              of `longstream.baselines.NAMES`.
        boundary_id:       the token that begins and ends a document.
        hidden_ratio:      gru and lstm: as of `longstream.ModelConfig`.
        intermediate_size: of the MLP; Mamba and Mamba-2 have none.
        max_seq_len:       llama: the longest sequence it is trained on.
        expand_ratio:      gru and lstm: channels of the recurrence over hidden_size.
    """
    ids = {"bos_token_id": boundary_id, "eos_token_id": boundary_id}
    if name in TRANSFORMERS:
        return transformers_config(
            name,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            intermediate_size=intermediate_size,
            max_seq_len=max_seq_len,
            tie_word_embeddings=tie_embeddings,
            **ids,
        )
    if name not in RECURRENT:
        raise ValueError(f"language_config: name must be one of {[*TRANSFORMERS, *RECURRENT]}, got {name!r}")
    mixer: Any = RECURRENT[name](expand_ratio=expand_ratio)
    config = ModelConfig(
        hidden_size=hidden_size,
        num_layers=num_layers,
        mixer=mixer,
        hidden_ratio=hidden_ratio,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        tie_embeddings=tie_embeddings,
    )
    return _CONFIGS[name].from_model_config(config, **ids, pad_token_id=boundary_id)


# What the harness asks of any language model, a baseline or not.


def context_limit(model: Any) -> int | None:
    """The most tokens that a model takes at once: Hyena's longest sequence, those that Llama was trained on; or None.

    Llama's rotary positions go on past what it was trained on, and its predictions get worse there.
    """
    if hasattr(model.config, "to_model_config"):
        return model.config.to_model_config().max_seq_len
    return model.config.max_position_embeddings if model.config.model_type == "llama" else None


def continue_from(model: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """Logits (B, T, vocabulary) for ids (B, T) behind what a cache has seen, and the cache after them.

    Args:
        cache: of an earlier call, which it changes; None is the start.
    """
    if hasattr(model.config, "to_model_config"):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        return output.logits, output.past_key_values
    is_new = cache is None
    cache = DynamicCache(config=model.config) if is_new else cache
    if model.config.model_type == "mamba" and (is_new or ids.shape[1] > 1):
        return continue_mamba(model, ids, cache), cache
    name = "past_key_values" if model.config.model_type == "llama" else "cache_params"
    return model(input_ids=ids, use_cache=True, **{name: cache}).logits, cache


def describe_state(model: Any) -> str:
    """How much a model carries from token to token, and whether that grows."""
    with torch.no_grad():
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        cache = continue_from(model, ids)[1]
        first = cache_bytes(cache)
        later = cache_bytes(continue_from(model, ids, cache)[1])
    limit = context_limit(model)
    if model.config.model_type == "llama":
        return f"{later - first:,} bytes per token and sequence; trained on texts of {limit:,} tokens"
    grows = "" if limit is None else f", more with the text, which may have {limit:,} tokens"
    return f"{first:,} bytes per sequence{grows or ', however long'}"


def config_of(model: Any) -> Any:
    """What a model is: its `longstream.ModelConfig`, or the fields of transformers' configuration that say so."""
    if hasattr(model.config, "to_model_config"):
        return model.config.to_model_config()
    usual = type(model.config)().to_dict()
    left_out = ("architectures", "dtype", "transformers_version", "pad_token_id", "bos_token_id", "eos_token_id")
    own = {key: value for key, value in model.config.to_dict().items() if usual.get(key) != value}
    return {key: value for key, value in own.items() if key not in left_out}


def keep_rows(cache: Any, rows: int) -> None:
    """Drop the rows of a cache behind the first ``rows``."""
    tensors = cache_tensors(cache)
    cache.reorder_cache(torch.arange(rows, device=tensors[0].device))


def cache_tensors(cache: Any) -> list[Tensor]:
    """All that a cache carries from token to token."""
    if isinstance(cache, hf.RecurrentCache):
        return [] if cache.state is None else cache.state.tensors()
    found = []
    for layer in cache.layers:
        states = [getattr(layer, name, None) or {} for name in ("conv_states", "recurrent_states")]
        found += [tensor for state in states for tensor in state.values()]
        found += [getattr(layer, name, None) for name in ("keys", "values")]
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def cache_bytes(cache: Any) -> int:
    """Bytes of `cache_tensors`."""
    return sum(tensor.nbytes for tensor in cache_tensors(cache))


def register() -> None:
    """Make transformers' Auto classes know the recurrent baselines; importing this module does it."""
    for config, model, causal_lm in (
        (GRULanguageConfig, GRUModel, GRUForCausalLM),
        (LSTMLanguageConfig, LSTMModel, LSTMForCausalLM),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    for name, mixer in RECURRENT.items():
        register_mixer_type(name, mixer)


register()
