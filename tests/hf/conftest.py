"""An fla checkpoint directory made of golden numbers, and tiny models whose parameters are all of size one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from longstream.hf import HGRN2Config, HGRN2ForCausalLM
from tests.golden import LANGUAGE_MODELS, load

VOCAB = 19


def write_fla(directory: Path, config: dict, weights: dict) -> Path:
    """A directory as fla's own save_pretrained leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config | {"architectures": ["HGRN2ForCausalLM"]}))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, directory / "model.safetensors")
    return directory


def tiny_config(**fields: Any):
    small: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "expand_ratio": 6}
    small |= {"intermediate_size": 16, "use_short_conv": True, "conv_size": 3, "eos_token_id": None}
    return HGRN2Config(**(small | fields))


def tiny_model(**fields: Any):
    """Float64, and random enough that a wrong gate, tap or bound shows."""
    model = HGRN2ForCausalLM(tiny_config(**fields)).double().eval()
    generator = torch.Generator().manual_seed(len(fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 and "bounds" not in name else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        model.model.embeddings.weight.mul_(VOCAB**0.5)
    return model


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


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture(params=LANGUAGE_MODELS)
def golden(request, tmp_path):
    """A golden language model: its directory, its weights and gradients by fla's names, and the other arrays."""
    arrays = {name: torch.from_numpy(array) for name, array in load(request.param).items() if array.dtype.kind != "U"}
    config = json.loads(str(load(request.param)["config_json"]))
    weights = {name[2:]: tensor for name, tensor in arrays.items() if name.startswith("w.")}
    grads = {name[7:]: tensor for name, tensor in arrays.items() if name.startswith("grad.w.")}
    return SimpleNamespace(
        directory=write_fla(tmp_path / "fla", config, weights),
        config=config,
        weights=weights,
        grads=grads,
        arrays=arrays,
    )
