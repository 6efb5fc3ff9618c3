"""A hybrid computes what fla's configuration and tensors say, read here from the file without longstream."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.hf.conftest import ATTN, random_ids, tiny_model
from tests.numerics import assert_same


def rms_norm(x, weight, eps):
    return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotate(x, theta):
    """x (T, H, K): the first half of the channels and the second are real and imaginary parts."""
    T, _, K = x.shape
    angle = torch.arange(T).double()[:, None] * theta ** (-torch.arange(0, K, 2).double() / K)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def attention(x, w, attn, window):
    T, D = x.shape
    q, k, v = (
        F.linear(x, w[f"{n}_proj.weight"], w.get(f"{n}_proj.bias")).view(T, -1, D // attn["num_heads"]) for n in "qkv"
    )
    q, k = rotate(q, attn["rope_theta"]), rotate(k, attn["rope_theta"])
    k, v = (t.repeat_interleave(attn["num_heads"] // attn["num_kv_heads"], 1) for t in (k, v))
    ages = torch.arange(T)[:, None] - torch.arange(T)
    seen = (ages >= 0) & (ages < window)
    o = F.scaled_dot_product_attention(*(t.transpose(0, 1)[None] for t in (q, k, v)), attn_mask=seen)
    return F.linear(o[0].transpose(0, 1).reshape(T, D), w["o_proj.weight"])


def hgrn(x, w, bound, eps):
    f = bound + (1 - bound) * torch.sigmoid(F.linear(x, w["f_proj.weight"]))
    i = F.silu(F.linear(x, w["i_proj.weight"])) * (1 - f)
    h, states = torch.zeros_like(f[0]), []
    for t in range(len(x)):
        h = f[t] * h + i[t]
        states.append(h)
    gate = F.silu(F.linear(x, w["g_proj.weight"]))
    return F.linear(rms_norm(torch.stack(states), w["g_norm.weight"], eps) * gate, w["o_proj.weight"])


def logits(directory, ids):
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    eps, attn = config["norm_eps"], config["attn"]
    window = config["max_position_embeddings"] if attn["window_size"] is None else attn["window_size"]
    shares = tensors["model.lower_bounds"].softmax(0).cumsum(0)
    x = tensors["model.embeddings.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        layer = {name.removeprefix(f"model.layers.{n}."): t for name, t in tensors.items() if f".layers.{n}." in name}
        w = {name.removeprefix("attn."): t for name, t in layer.items() if name.startswith("attn.")}
        y = rms_norm(x, layer["attn_norm.weight"], eps)
        x = x + (attention(y, w, attn, window) if n in attn["layers"] else hgrn(y, w, shares[n] - shares[0], eps))
        y = rms_norm(x, layer["mlp_norm.weight"], eps)
        gate, up = F.linear(y, layer["mlp.gate_proj.weight"]), F.linear(y, layer["mlp.up_proj.weight"])
        x = x + F.linear(F.silu(gate) * up, layer["mlp.down_proj.weight"])
    return F.linear(rms_norm(x, tensors["model.norm.weight"], eps), tensors["lm_head.weight"])


@pytest.mark.parametrize(
    "attn",
    [
        ATTN | {"layers": [1], "rope_theta": 50.0},
        ATTN | {"layers": [0, 2], "num_kv_heads": 4, "qkv_bias": False, "window_size": 9},
        {"layers": [2], "num_heads": 2, "window_size": None},
    ],
)
def test_logits_are_what_the_file_says(attn, tmp_path):
    model = tiny_model("hgrn hybrid", unit="real", expand_ratio=2, num_hidden_layers=4, attn=attn, norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    ids = random_ids(2, 23)
    for row in range(2):
        assert_same("logits", model(ids).logits[row], logits(tmp_path, ids[row]))
