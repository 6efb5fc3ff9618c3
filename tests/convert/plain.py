"""Checkpoints as others leave them, and the authors' language models written out in plain torch; a refusal."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from longstream.convert import convert
from tests import golden
from tests.hf.conftest import write_fla


def tensors(name, prefix="w."):
    """A golden file's parameters, by their producers' names, and its other arrays."""
    arrays = golden.load(name)
    found = {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind != "U" and array.size}
    return {key[len(prefix) :]: t for key, t in found.items() if key.startswith(prefix)}, found, arrays


def fla_folder(folder: Path, name: str) -> Path:
    """A golden language model of fla's, as fla saves it."""
    weights, _, arrays = tensors(name)
    return write_fla(folder, json.loads(str(arrays["config_json"])), weights)


def hyenadna_weights():
    """The golden HyenaDNA: its config.json, tensors by the authors' names, ids and logits."""
    weights, found, arrays = tensors("hyena_dna_lm_L64")
    return json.loads(str(arrays["_meta"]))["cfg"], weights, found["in.ids"], found["out.logits_tied"]


def lightning_folder(folder: Path, *, checkpointed: bool = False, without: tuple[str, ...] = ()) -> Path:
    """weights.ckpt and config.json of LongSafari/hyenadna-*."""
    config, weights, _, _ = hyenadna_weights()
    folder.mkdir()
    named = {}
    for name, tensor in weights.items():
        if not name.endswith(without):
            inserted = (
                name.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer.") if checkpointed else name
            )
            named[f"model.{inserted}"] = tensor
    named["model.lm_head.weight"] = weights["backbone.embeddings.word_embeddings.weight"]
    rest = {"epoch": 3, "pytorch-lightning_version": "1.8.6", "optimizer_states": [{"step": torch.tensor(7.0)}]}
    torch.save({"state_dict": named, **rest}, folder / "weights.ckpt")
    (folder / "config.json").write_text(json.dumps(config | {"checkpoint_mixer": checkpointed}))
    return folder


def port_folder(folder: Path, *, without: tuple[str, ...] = (), with_head: bool = True) -> Path:
    """LongSafari/hyenadna-*-hf."""
    config, weights, _, _ = hyenadna_weights()
    layer = config["layer"]
    port = {
        "model_type": "hyenadna",
        "architectures": ["HyenaDNAForCausalLM"],
        "vocab_size": 12,
        "d_model": config["d_model"],
        "d_inner": config["d_inner"],
        "n_layer": config["n_layer"],
        "max_seq_len": layer["l_max"],
        "emb_dim": layer["emb_dim"],
        "filter_order": layer["filter_order"],
        "short_filter_order": layer["short_filter_order"],
        "activation_freq": layer["w"],
        "num_inner_mlps": 2,
        "hyena_order": 2,
        "train_freq": True,
        "use_bias": True,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(port))
    named = {f"hyena.{name}": tensor.clone() for name, tensor in weights.items() if not name.endswith(without)}
    if with_head:
        named["lm_head.weight"] = weights["backbone.embeddings.word_embeddings.weight"].clone()
    save_file(named, folder / "model.safetensors")
    return folder


def hgrn2_values(**changed: Any) -> dict[str, Any]:
    """A config.json of OpenNLPLab's HGRN2; fields and defaults as hgru2-pytorch has them."""
    values: dict[str, Any] = {"model_type": "hgrn2", "vocab_size": 23, "decoder_embed_dim": 16, "decoder_layers": 3}
    values |= {"expand_ratio": 4, "glu_dim": 20, "in_act": "none", "out_act": "silu", "glu_act": "none", "bias": False}
    values |= {"norm_type": "simplermsnorm", "no_scale_embedding": True, "tie_word_embeddings": False, "causal": True}
    return values | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} | changed


def hgrn_values(**changed: Any) -> dict[str, Any]:
    """The like of HGRN, whose embeddings are scaled and tied and whose norms are LayerNorm."""
    values: dict[str, Any] = {"model_type": "hgrn", "vocab_size": 23, "decoder_embed_dim": 16, "decoder_layers": 3}
    values |= {"glu_dim": 20, "act_fun": "silu", "glu_act": "swish", "norm_type": "layernorm"}
    return values | {"no_scale_embedding": False} | changed


def opennlplab_weights(values: dict[str, Any], dtype: Any = torch.float64) -> dict[str, torch.Tensor]:
    """Random ones, all of the size of one."""
    generator = torch.Generator().manual_seed(1)
    D, L, M = values["decoder_embed_dim"], values["decoder_layers"], values["glu_dim"]

    def draw(*shape):
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    layer_norm = values["norm_type"] == "layernorm"
    norms = {"weight": D, "bias": D} if layer_norm else {}
    weights = {"model.embed_tokens.weight": draw(values["vocab_size"], D), "model.lower_bounds": draw(L, D).mul(D**0.5)}
    weights |= {f"model.final_norm.{kind}": draw(width) for kind, width in norms.items()}
    for i in range(L):
        at = f"model.layers.{i}."
        if values["model_type"] == "hgrn2":
            mixer = {"in_proj.weight": draw(3 * D, D), "out_proj.weight": draw(D, D)}
            mixer |= {"in_proj.bias": draw(3 * D), "out_proj.bias": draw(D)} if values["bias"] else {}
            mixer |= {f"norm.{kind}": draw(width) for kind, width in norms.items()}
        else:
            sizes = {"input_proj": (2 * D, D), "lambda_proj": (D, D), "gate": (2 * D, D), "out_proj": (D, 2 * D)}
            mixer = {f"{name}.weight": draw(*shape) for name, shape in sizes.items()}
            mixer |= {f"{name}.bias": draw(shape[0]) for name, shape in sizes.items()}
            mixer |= {"norm.weight": draw(2 * D), "norm.bias": draw(2 * D), "theta": draw(1, 1, D)}
        weights |= {f"{at}token_mixer.{name}": tensor for name, tensor in mixer.items()}
        weights |= {
            f"{at}{name}.{kind}": draw(width)
            for name in ("token_norm", "channel_norm")
            for kind, width in norms.items()
        }
        weights |= {f"{at}channel_mixer.{name}.weight": draw(M, D) for name in ("l1", "l2")}
        weights[f"{at}channel_mixer.l3.weight"] = draw(D, M)
    if not values.get("tie_word_embeddings", True):
        weights["lm_head.weight"] = draw(values["vocab_size"], D)
    return weights


def opennlplab_folder(folder: Path, values: dict[str, Any], *, as_pickle: bool = False) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    weights = opennlplab_weights(values)
    if as_pickle:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    return folder


def opennlplab_logits(values: dict[str, Any], w: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What the authors' classes compute, in evaluation mode, token by token and head by head."""
    D, is_hgrn2 = values["decoder_embed_dim"], values["model_type"] == "hgrn2"

    def norm(x, name):
        if values["norm_type"] == "layernorm" or f"{name}.weight" in w:
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    bounds = torch.softmax(w["model.lower_bounds"], 0).cumsum(0)
    bounds = bounds - bounds[0]
    x = w["model.embed_tokens.weight"][ids]
    x = x if values.get("no_scale_embedding", is_hgrn2) else x * math.sqrt(D)
    for i in range(values["decoder_layers"]):
        at = f"model.layers.{i}."
        mixer = _hgru2 if is_hgrn2 else _hgru1
        x = x + mixer(values, norm(x, f"{at}token_norm"), f"{at}token_mixer.", bounds[i], w, linear, norm)
        u = norm(x, f"{at}channel_norm")
        gate = linear(u, f"{at}channel_mixer.l1")
        gate = F.silu(gate) if values["glu_act"] == "silu" else gate
        x = x + linear(gate * linear(u, f"{at}channel_mixer.l2"), f"{at}channel_mixer.l3")
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, "model.final_norm") @ head.t()


def _hgru2(values, x, at, bound, w, linear, norm):
    B, T, D = x.shape
    K = values["expand_ratio"]
    v, q, z = linear(x, f"{at}in_proj").chunk(3, dim=-1)
    activations = {"none": lambda t: t, "silu": F.silu, "sigmoid": torch.sigmoid}
    v, q = activations[values["in_act"]](v), activations[values["out_act"]](q)
    f = bound + (1 - bound) * torch.sigmoid(z)
    v, q, f = (t.reshape(B, T, D // K, K) for t in (v, q, f))
    S, o = torch.zeros(B, D // K, K, K, dtype=x.dtype), []
    for t in range(T):
        S = f[:, t, :, :, None] * S + (1 - f[:, t])[..., None] * v[:, t, :, None]
        o.append((q[:, t, :, :, None] * S).sum(-2).reshape(B, D))
    return linear(norm(torch.stack(o, 1), f"{at}norm"), f"{at}out_proj")


def _hgru1(values, x, at, bound, w, linear, norm):
    B, T, D = x.shape
    c = torch.view_as_complex(F.silu(linear(x, f"{at}input_proj")).reshape(B, T, D, 2).contiguous())
    f = bound + (1 - bound) * torch.sigmoid(linear(x, f"{at}lambda_proj"))
    turn = torch.polar(torch.ones_like(w[f"{at}theta"]), w[f"{at}theta"])[0, 0]
    h, o = torch.zeros(B, D, dtype=c.dtype), []
    for t in range(T):
        h = f[:, t] * turn * h + (1 - f[:, t]) * c[:, t]
        o.append(torch.cat([h.real, h.imag], -1))
    return linear(norm(torch.stack(o, 1), f"{at}norm") * F.silu(linear(x, f"{at}gate")), f"{at}out_proj")


def axon_arrays(name):
    """A golden Edifice model's parameters."""
    return {key: array for key, array in golden.load(name).items() if not key.startswith("__")}


def savez(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def copy_of(folder, target, change=lambda weights: weights, **values):
    """The folder with other weights and other fields, at ``target``."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text()) | values
    (target / "config.json").write_text(json.dumps(config))
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


def refused(says, *args, kind: type[Exception] = ValueError, **options):
    """What convert says in one line, when it leaves nothing behind."""
    with pytest.raises(kind, match=says) as caught:
        convert(*args, **({"to": "longstream"} | options))
    assert "\n" not in str(caught.value)
    assert not Path(args[1]).exists()
    assert not list(Path(args[1]).parent.glob(".writing-*"))
    return str(caught.value)
