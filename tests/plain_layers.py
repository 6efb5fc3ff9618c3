"""HGRN and HGRN2 in every direction as loops over single tokens, straight from the equations; float64 and autograd.

Nothing of the library is called. ``p`` are a module's parameters by name, ``a`` the arguments it was made with.
"""

from typing import Any

import torch
from torch.nn import functional as F

from tests.numerics import assert_same

# Pads left, inside, right, nothing but pads, none, and on both sides of a single token.
MASK = [[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0] * 7, [1] * 7, [0, 0, 0, 1, 0, 0, 0]]


def randomize(module):
    """Random values for all parameters, norms around 1; returns the module."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, dtype=torch.float64) * (1.5 * p.shape[-1] ** -0.5 if p.dim() > 1 else 0.7))
            if name == "norm.weight":
                p.add_(1)
    return module


def assert_same_with_gradients(got, exact, leaves):
    """The tensors agree, and so do gradients of the same random cotangents with respect to the leaves, by name."""
    for i, (one, other) in enumerate(zip(got, exact, strict=True)):
        assert_same(f"result {i}", one, other)
    cotangents, wanted = [torch.randn_like(t) for t in exact], list(leaves.values())
    one, other = (
        torch.autograd.grad(results, wanted, cotangents, retain_graph=True, materialize_grads=True)
        for results in (list(got), list(exact))
    )
    for name, a, b in zip(leaves, one, other, strict=True):
        assert_same(f"d {name}", a, b)


def linear(p, name, x):
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def norm(p, kind, eps, o):
    if kind == "layer":
        o = o - o.mean(-1, keepdim=True)
    o = o / (o.square().mean(-1, keepdim=True) + eps).sqrt()
    o = o * p["norm.weight"] if "norm.weight" in p else o
    return o + p["norm.bias"] if "norm.bias" in p else o


def short_conv(p, name, past, u):
    """(T, D) after the inputs ``past`` (W - 1, D)."""
    taps, stream = p[f"{name}.weight"], torch.cat([past, u])
    W = taps.shape[1]
    y = torch.stack([(taps.T * stream[t : t + W]).sum(0) for t in range(len(u))])
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def scan(f, u, h, reverse=False):
    """Every h_t = f_t h_{t-1} + u_t, or from the last t to the first; (T, ...) and the h computed last."""
    out = {}
    for t in sorted(range(len(u)), reverse=reverse):
        out[t] = h = f[t] * h + u[t]
    return torch.stack([out[t] for t in range(len(u))]), h


def both_ways(f, f_reverse, u):
    zero = torch.zeros_like(u.sum(0))
    return scan(f, u, zero)[0] + scan(f_reverse, u, zero, reverse=True)[0]


def columns_and_rows(run, *images):
    """What ``run`` makes of each column, and of each row, of (height, width, ...) images: two images."""
    height, width = images[0].shape[:2]
    columns = [run(*(image[:, j] for image in images)) for j in range(width)]
    rows = [run(*(image[i] for image in images)) for i in range(height)]
    return torch.stack(columns, dim=1), torch.stack(rows)


def hgrn(p, a, x, *, bound, h=None, past=None) -> tuple[Any, Any, Any]:
    """One sequence (T, D) or image (height, width, D): y, the last h (E,), complex or not, and the last inputs."""
    c, z = linear(p, "candidate_proj", x), linear(p, "forget_proj", x)
    if past is not None and a.get("conv_size"):
        c_past, z_past = past.split([c.shape[-1], z.shape[-1]], dim=-1)
        past = torch.cat([past, torch.cat([c, z], dim=-1)])[len(c) :]
        c, z = short_conv(p, "candidate_conv", c_past, c), short_conv(p, "forget_conv", z_past, z)
    c, f = F.silu(c), bound + (1 - bound) * torch.sigmoid(z)
    is_complex = a.get("unit") == "complex"
    c = torch.complex(c[..., 0::2], c[..., 1::2]) if is_complex else c
    u, f_reverse = (1 - f) * c, f
    if is_complex:
        theta, theta_reverse = p["theta"], p.get("theta_reverse", p["theta"])
        f, f_reverse = f * torch.exp(1j * theta), f * torch.exp(1j * theta_reverse)
    direction = a.get("direction", "causal")
    if direction == "causal":
        o, h = scan(f, u, h)
    elif direction == "bidirectional":
        o = both_ways(f, f_reverse, u)
    else:
        o = torch.add(*columns_and_rows(both_ways, f, f_reverse, u))
    if is_complex:
        o = torch.cat([o.real, o.imag], dim=-1)
    gate = linear(p, "out_gate_proj", x)
    gate = torch.sigmoid(gate) if a.get("gate_activation") == "sigmoid" else F.silu(gate)
    kind, eps = a.get("norm", "rms"), a.get("norm_eps", 1e-5)
    o = norm(p, kind, eps, o) * gate if a.get("norm_first", True) else norm(p, kind, eps, o * gate)
    return linear(p, "out_proj", o), h, past


def hgrn2(p, a, x, *, bound):
    """One sequence (T, D), or image (height, width, D), in a direction other than causal."""

    def roles(x):
        """q, f, k and v (..., H, K)."""
        q, z, v = (linear(p, f"{name}_proj", x) for name in ("q", "forget", "v"))
        q = (torch.sigmoid(q) if a.get("query_activation") == "sigmoid" else F.silu(q)) * a.get("query_scale", 1.0)
        v = F.silu(v) if a.get("value_activation") == "silu" else v
        f = bound + (1 - bound) * torch.sigmoid(z)
        return (u.unflatten(-1, (-1, a["expand_ratio"])) for u in (q, f, 1 - f, v))

    def read(q, f, k, v):
        f = f[..., None]
        return torch.einsum("thkv,thk->thv", both_ways(f, f, k[..., None] * v[..., None, :]), q)

    def output(o):
        return linear(p, "out_proj", norm(p, a.get("norm", "rms"), a.get("norm_eps", 1e-5), o.flatten(-2)))

    def whole(x):
        return output(read(*roles(x)))

    if a["direction"] == "bidirectional":
        return whole(x)
    if a["direction"] == "2d_parallel":
        return output(torch.add(*columns_and_rows(read, *roles(x))))
    along_height, _ = columns_and_rows(whole, x)
    _, along_width = columns_and_rows(whole, along_height)
    return along_width
