"""The sizes of transformers' baselines: what `--model llama`, `mamba` and `mamba2` are at a width and a depth."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TRANSFORMERS = ("llama", "mamba", "mamba2")
HEAD = 64  # channels of a head of attention and of Mamba-2 where they can be so many, as in the published models
# Of a Mamba-2 head: 128 is the published models'; on a CPU it would make the state, and the work, of a small one
# several times that of all else.
MAMBA2_STATE = 64


def transformers_config(
    name: str,
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    intermediate_size: int | None = None,
    max_seq_len: int | None = None,
    **options: Any,
) -> PretrainedConfig:
    """The configuration of one of transformers' models.

    Llama's MLP is 8/3 of the hidden size wide, up to a multiple of 16, unless told. Mamba and Mamba-2 have no MLP:
    their mixer is twice as wide instead, as their authors have it, and they take more layers of a budget. All weights
    begin with the same standard deviation as longstream's (transformers' 0.1 for Mamba is five times that of its
    authors); see `new_model` for the rest.

    Args:
        name:              one of TRANSFORMERS.
        intermediate_size: of Llama's MLP.
        max_seq_len:       Llama's max_position_embeddings.
        options:           further fields of transformers' configuration, which win.
    Raises:
        ValueError: an unknown name, or sizes that do not go together.
    """
    from transformers import LlamaConfig, Mamba2Config, MambaConfig

    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,  # transformers' embeddings do not train a pad's row, and the boundary token is a pad too
        "tie_word_embeddings": False,
    }
    if name == "llama":
        if hidden_size % 2:
            raise ValueError(f"llama: hidden_size must be even for rotary positions, got {hidden_size}")
        common |= {
            "intermediate_size": intermediate_size or -(-8 * hidden_size // 3 // 16) * 16,
            "num_attention_heads": hidden_size // near(hidden_size, HEAD, even=True),
            "max_position_embeddings": max_seq_len or 2048,
        }
        return LlamaConfig(**(common | options))
    if name == "mamba":
        common["use_mambapy"] = has_mambapy()
        return MambaConfig(**(common | options))
    if name == "mamba2":
        head = near(2 * hidden_size, HEAD)
        common |= {
            "head_dim": head,
            "num_heads": 2 * hidden_size // head,
            "n_groups": 1,
            "state_size": MAMBA2_STATE,
            "chunk_size": 64,  # the work within a chunk grows with its square, and 256 is for GPUs
        }
        return Mamba2Config(**(common | options))
    raise ValueError(f"transformers_config: name must be one of {TRANSFORMERS}, got {name!r}")


def new_model(auto: Any, config: PretrainedConfig) -> Any:
    """``auto.from_config(config)``; Mamba's projections into the residual stream are divided by sqrt(num_layers).

    Its authors do so. transformers' own setting for it, rescale_prenorm_residual, divides them once more whenever the
    model is loaded (5.23).
    """
    model = auto.from_config(config)
    if config.model_type in ("mamba", "mamba2"):
        with torch.no_grad():
            for block in model.base_model.layers:
                block.mixer.out_proj.weight /= len(model.base_model.layers) ** 0.5
    return model


def count_transformers(config: PretrainedConfig) -> int:
    """How many parameters a language model of such a configuration has, without making it."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer
    from transformers.models.mamba.modeling_mamba import MambaBlock
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Block

    kind: Any = {"llama": LlamaDecoderLayer, "mamba": MambaBlock, "mamba2": Mamba2Block}[config.model_type]
    sizes: Any = config
    with torch.device("meta"):
        layer = sum(p.numel() for p in kind(config, 0).parameters())
    embeddings = sizes.vocab_size * sizes.hidden_size * (1 if sizes.tie_word_embeddings else 2)
    return sizes.num_hidden_layers * layer + embeddings + sizes.hidden_size  # and the last norm


def near(size: int, wanted: int, *, even: bool = False) -> int:
    """The divisor of a size, an even one if asked, that is nearest to the one wanted."""
    return min((k for k in range(1, size + 1) if size % k == 0 and not (even and k % 2)), key=lambda k: abs(k - wanted))


def has_mambapy() -> bool:
    """Whether the package mambapy is installed, whose parallel scan makes transformers' Mamba trainable on a CPU."""
    return importlib.util.find_spec("mambapy") is not None
