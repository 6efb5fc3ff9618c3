"""Edifice's two models as loops in NumPy, written from its Elixir code, on parameters by their Axon names."""

import numpy as np
import torch

from longstream.models import FeatureModel


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def dense(p, name, x):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def layer_norm(p, name, x, eps=1e-5):
    v = x.var(axis=-1, keepdims=True)
    s = np.where(v >= eps, 1 / np.sqrt(v + eps), 1 / np.sqrt(eps))
    return p[f"{name}/gamma"] * s * (x - x.mean(axis=-1, keepdims=True)) + p[f"{name}/beta"]


def hgrn_layer(p, name, x):
    u = layer_norm(p, f"{name}_norm", x)
    v = silu(dense(p, f"{name}_value_proj", u))
    f, i = (sigmoid(dense(p, f"{name}_{gate}_proj", u)) for gate in ("forget", "input"))
    f, i = (np.repeat(g, v.shape[-1] // g.shape[-1], axis=-1) for g in (f, i))
    h, out = np.zeros_like(v[:, 0]), np.zeros_like(v)
    for t in range(x.shape[1]):
        h = out[:, t] = f[:, t] * h + i[:, t] * v[:, t]
    return x + dense(p, f"{name}_contract", out)


def hgrn_block(p, name, x):
    x = hgrn_layer(p, f"{name}_rnn", x)
    up = dense(p, f"{name}_ffn_up", layer_norm(p, f"{name}_ffn_norm", x))
    return x + dense(p, f"{name}_ffn_down", silu(up))


def hyena_filter(p, name, seq_len):
    t = np.arange(seq_len)[:, None] / max(seq_len - 1, 1)
    h = np.sin(dense(p, f"{name}_dense1", t))
    return dense(p, f"{name}_dense3", np.sin(dense(p, f"{name}_dense2", h)))  # (seq_len, D)


def hyena_block(p, name, x, seq_len):
    u = layer_norm(p, f"{name}_norm", x)
    taps, late = p[f"{name}_short_dw_conv/kernel"], np.pad(u, ((0, 0), (2, 0), (0, 0)))
    u = p[f"{name}_short_dw_conv/bias"] + sum(taps[j, 0] * late[:, j : j + x.shape[1]] for j in range(3))
    projected = dense(p, f"{name}_proj", u)
    y, *gates = np.split(projected, projected.shape[-1] // x.shape[-1], axis=-1)
    for j, gate in enumerate(gates):
        h, out = hyena_filter(p, f"{name}_filter{j}", seq_len), np.zeros_like(y)
        for t in range(x.shape[1]):
            out[:, t] = sum(h[s] * y[:, t - s] for s in range(t + 1))
        y = gate * out
    x = x + dense(p, f"{name}_out_proj", y)
    q = layer_norm(p, f"{name}_ffn_norm", x)
    return x + dense(p, f"{name}_ffn_down", silu(dense(p, f"{name}_ffn_gate", q)) * dense(p, f"{name}_ffn_up", q))


def model(p, blocks, x):
    """All positions; ``blocks``: functions of x alone."""
    x = dense(p, "input_projection", x) if "input_projection/kernel" in p else x
    for run in blocks:
        x = run(x)
    return layer_norm(p, "final_norm", x)


def parameters(module):
    """A module's parameters by their Axon names, float64, told from ours by rules of this file's own."""
    backbone = module.backbone if isinstance(module, FeatureModel) else module
    layers = backbone.axon_layers()
    if isinstance(module, FeatureModel) and module.input_projection is not None:
        layers["input_projection"] = module.input_projection
    found = {}
    for name, layer in layers.items():
        weight, bias = (t.detach().double().numpy() for t in (layer.weight, layer.bias))
        if weight.ndim == 1:
            found |= {f"{name}/gamma": weight, f"{name}/beta": bias}
        elif isinstance(layer, torch.nn.Linear):
            found |= {f"{name}/kernel": weight.T, f"{name}/bias": bias}
        else:
            found |= {f"{name}/kernel": weight.T[:, None], f"{name}/bias": bias}
    return found


def shake(module, seed=0):
    """Every parameter moved at random, in float64, so that none is 0, or 1, or as another."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module
