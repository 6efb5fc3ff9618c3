"""An fla checkpoint directory made of golden numbers, and tiny models whose parameters are all of size one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from longstream.hf import HGRN2Config, HGRNConfig, LongstreamConfig, LongstreamForCausalLM
from longstream.models import AttentionConfig, HyenaConfig, ModelConfig
from longstream.models import HGRN2Config as HGRN2MixerConfig
from longstream.models import HGRNConfig as HGRNMixerConfig
from tests.golden import load
from tests.golden_lm import LANGUAGE_MODELS

VOCAB = 19
HYENA = HyenaConfig(max_seq_len=64, filter_width=8, positional_width=5)
ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, window_size=4, qkv_bias=True)
ATTN = {"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 4}
FLA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "eos_token_id": None,
}
OURS: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 24, "num_layers": 2, "intermediate_size": 16}
CONVS = {"use_short_conv": True, "conv_size": 3}

# PEFT 0.21 asks for gradient checkpointing by the word that transformers 5.23 gave up.
PEFT_WARNS = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# A class of configuration and its small fields, by a name for the kind.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hgrn2": (HGRN2Config, FLA | CONVS | {"expand_ratio": 6}),
    "hgrn": (HGRNConfig, FLA | CONVS | {"expand_ratio": 2}),
    "hgrn2 hybrid": (HGRN2Config, FLA | CONVS | {"num_hidden_layers": 3, "expand_ratio": 6, "attn": ATTN}),
    "hgrn hybrid": (HGRNConfig, FLA | {"num_hidden_layers": 3, "unit": "complex", "attn": ATTN}),
    "hyena": (ModelConfig, OURS | {"mixer": HYENA, "vocab_multiple": 8, "mlp": "gelu", "norm": "layer"}),
    "mixture": (
        ModelConfig,
        OURS | {"num_layers": 4, "layers": (HGRNMixerConfig(), HYENA, HGRN2MixerConfig(expand_ratio=6), ATTENTION)},
    ),
}


def write_fla(directory: Path, config: dict, weights: dict) -> Path:
    """A directory as fla's own save_pretrained leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    architecture = f"{config['model_type'].upper()}ForCausalLM"
    (directory / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "model.safetensors")
    return directory


def tiny_config(kind: str = "hgrn2", **fields: Any) -> Any:
    cls, small = KINDS[kind]
    if cls is ModelConfig:
        return LongstreamConfig.from_model_config(ModelConfig(**(small | fields)))
    return cls(**(small | fields))


def tiny_model(kind: str = "hgrn2", **fields: Any) -> Any:
    """Float64, and random enough that a wrong gate, tap or bound shows."""
    model: Any = AutoModelForCausalLM.from_config(tiny_config(kind, **fields)).double().eval()
    assert isinstance(model, LongstreamForCausalLM)
    generator = torch.Generator().manual_seed(len(fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 and "bounds" not in name else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.model.embeddings.weight.mul_(VOCAB**0.5)
    return model


def has_hyena(model: Any) -> bool:
    return model.config.to_model_config().max_seq_len is not None


def load_with_info(cls, directory, **options: Any) -> Any:
    """The model, and what did not match."""
    return cls.from_pretrained(directory, output_loading_info=True, **options)


def random_ids(*shape, seed=1):
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def left_padded(prompts, pad=0):
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.as_tensor(prompt), 1
    return ids, mask


@pytest.fixture(params=["hgrn2", "hgrn", "hgrn2 hybrid", "hyena", "mixture"])
def model(request):
    """A tiny model of each type, a hybrid, and one of every mixer at once."""
    return tiny_model(request.param)


@pytest.fixture(params=LANGUAGE_MODELS)
def golden(request, tmp_path):
    """A golden language model: its directory, its weights and gradients by fla's names, and the other arrays."""
    arrays = {name: torch.from_numpy(array) for name, array in load(request.param).items() if array.dtype.kind != "U"}
    config = json.loads(str(load(request.param)["config_json"]))
    weights = {name[2:]: tensor for name, tensor in arrays.items() if name.startswith("w.")}
    grads = {name[7:]: tensor for name, tensor in arrays.items() if name.startswith("grad.w.")}
    return SimpleNamespace(
        name=request.param,
        directory=write_fla(tmp_path / "fla", config, weights),
        config=config,
        weights=weights,
        grads=grads,
        arrays=arrays,
    )
