"""A golden HyenaDNA model as LongSafari publishes its own: config.json and safetensors."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from longstream.hf import HyenaDNAConfig
from tests import golden, golden_hyena

PORT = {  # config.json of a published checkpoint has these keys, and the port's own
    "_name_or_path": "hyenadna-tiny-1k-seqlen",
    "architectures": ["HyenaDNAForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_hyena.HyenaConfig",
        "AutoModel": "modeling_hyena.HyenaDNAModel",
        "AutoModelForCausalLM": "modeling_hyena.HyenaDNAForCausalLM",
        "AutoModelForSequenceClassification": "modeling_hyena.HyenaDNAForSequenceClassification",
    },
    "model_type": "hyenadna",
    "torch_dtype": "float32",
    "transformers_version": "4.35.0.dev0",
    "hyena_dropout": 0.0,
    "hyena_filter_dropout": 0.0,
    "hyena_order": 2,
    "initializer_range": 0.02,
    "pad_token_id": 4,
    "pad_vocab_size_multiple": 8,
    "tie_word_embeddings": False,
    "train_freq": True,
    "use_bias": True,
}
FILTER = "hyena.backbone.layers.{}.mixer.filter_fn."


def write(directory: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A directory as the port's save_pretrained leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: x.contiguous() for name, x in weights.items()}, directory / "model.safetensors", {"format": "pt"})
    return directory


def load(directory: Path, cls: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """The model in float64."""
    return cls.from_pretrained(directory, dtype=torch.float64, **options).eval()


def golden_port(folder: Path) -> SimpleNamespace:
    """The golden model as published: a directory, its configuration and weights, and the arrays."""
    arrays = golden_hyena.load("hyena_dna_lm_L64")
    meta = json.loads(str(arrays["_meta"]))["cfg"]
    fields = HyenaDNAConfig.from_authors(meta).to_dict()
    kept = ("vocab_size", "d_model", "d_inner", "n_layer", "max_seq_len", "emb_dim", "filter_order", "num_inner_mlps")
    more = ("short_filter_order", "activation_freq", "embed_dropout", "layer_norm_epsilon")
    config = PORT | {key: fields[key] for key in (*kept, *more)}
    theirs = {name: torch.from_numpy(array) for name, array in golden.below(arrays, "w.").items()}
    weights = {
        f"hyena.{name}": x for name, x in theirs.items() if not name.endswith(("filter.3.freq", "filter.5.freq"))
    }
    weights["lm_head.weight"] = theirs["backbone.embeddings.word_embeddings.weight"].clone()
    tensors = {name: torch.from_numpy(x) for name, x in arrays.items() if x.dtype.kind != "U"}
    directory = write(folder / "port", config, weights)
    return SimpleNamespace(directory=directory, config=config, weights=weights, authors=meta, arrays=tensors)
