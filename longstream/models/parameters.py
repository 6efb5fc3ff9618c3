"""The parameters of a model: how many there are, who is decayed, and who learns at a rate of its own."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from longstream.layers import make_norm
from longstream.models.backbone import Block
from longstream.models.config import ModelConfig


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for this parameter: matrices and embeddings, not norms, biases and gates' bounds.

    Nor Mamba's A_log, which is a matrix, as its authors have it.
    """
    return parameter.ndim > 1 and not name.endswith(("lower_bounds", "A_log"))


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, with the hints of modules that have ``optimizer_hints()``, as Hyena's filters do.

    Args:
        model:        of which the parameters that require a gradient are taken, each once.
        lr:           peak learning rate of those without a hint.
        weight_decay: of those that `decays` says and that have no hint.
    Returns:
        dicts of params, lr, weight_decay and names (of the parameters), in the order of ``model.named_parameters()``.
    """
    hints: dict[str, dict[str, float]] = {}
    for prefix, module in model.named_modules():
        if hasattr(module, "optimizer_hints"):
            own: dict[str, dict[str, float]] = module.optimizer_hints()  # type: ignore[operator]
            hints |= {f"{prefix}.{name}" if prefix else name: hint for name, hint in own.items()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_hint = hints.get(name, {})
        rate = own_hint.get("lr", lr)
        decay = own_hint.get("weight_decay", weight_decay if decays(name, parameter) else 0.0)
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def count_parameters(config: ModelConfig) -> int:
    """How many parameters a `LanguageModel` (a `Backbone`, where there is no vocab_size) has, without making it."""
    of_mixer = {mixer: _count_block(_alone(config, mixer)) for mixer in set(config.mixers)}
    with torch.device("meta"):
        norm = sum(p.numel() for p in make_norm(config.norm, config.hidden_size, config.norm_eps).parameters())
    embeddings = config.padded_vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    bounds = 0 if config.lower_bound_mode == "fixed" else config.num_layers * (config.gate_size or 0)
    return sum(of_mixer[mixer] for mixer in config.mixers) + norm + embeddings + bounds


def _alone(config: ModelConfig, mixer: Any) -> ModelConfig:
    """One block with this mixer, and nothing of the configuration that its size does not depend on."""
    return replace(config, num_layers=1, mixer=mixer, layers=None, vocab_size=None, vocab_multiple=1, memory=None)


@lru_cache(maxsize=512)  # a search for a size asks for the same blocks at many depths
def _count_block(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Block(config).parameters())
