"""Models and sequences that are small, and whose gates are known."""

from typing import Any

import torch

from longstream import ModelConfig, hf
from longstream.inspect.subject import Subject
from longstream.layers import HGRN, HGRN2
from longstream.train.layer_scalars import find_backbone


def language_subject(mixer: Any, *, T: int = 64, rows: int = 4, gate: float | None = None, **more: Any) -> Subject:
    """An untrained language model of 2 layers on random tokens.

    Args:
        gate: what every forget gate is about, where the mixer has bias=True.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "intermediate_size": 32, "initializer_range": 0.3}
    config = ModelConfig(**{**sizes, "vocab_size": 11, "mixer": mixer, **more})
    model = hf.LongstreamForCausalLM(hf.LongstreamConfig.from_model_config(config)).eval()
    backbone = find_backbone(model)
    assert backbone is not None
    if gate is not None:
        for block in backbone.layers:
            if isinstance(block.mixer, HGRN | HGRN2):
                assert block.mixer.forget_proj.bias is not None
                torch.nn.init.constant_(block.mixer.forget_proj.bias, torch.tensor(gate).logit().item())
                torch.nn.init.normal_(block.mixer.forget_proj.weight, std=0.01)
    inputs = torch.randint(11, (rows, T), generator=torch.Generator().manual_seed(1))
    return Subject("a model", model, backbone, "tokens", inputs, "random tokens", trained_length=T)
