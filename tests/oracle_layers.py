"""HGRN, Hyena and sliding-window attention a second time, in plain NumPy, sequence by sequence.

In the manner of `tests.oracle`. HGRN has hand-derived gradients; Hyena and attention are forward functions, whose
gradients are judged by finite differences. A pad is as if it were not there: every sequence is taken out of its row,
run alone, and its outputs are put back. One file for the three, which share this and the lists of configurations.

Sizes: B batch, T time, N sequences, D hidden_size, E state channels of HGRN, W taps of a short convolution.
"""

import math
from typing import Any

import numpy as np

from tests.oracle import ACTIVATIONS, _add, _norm, _sequences, _sub, forget_gate, linear, short_conv
from tests.oracle_scan import gated_scan, long_conv, long_conv_two_sided, to_pairs

# HGRN


def interleaved(c):
    """(.., 2 E) with Re and Im side by side -> pairs (.., 2, E)."""
    return to_pairs(c[..., 0::2] + 1j * c[..., 1::2])


def uninterleaved(pairs):
    """The way back, which is also the transpose."""
    c = np.zeros((*pairs.shape[:-2], 2 * pairs.shape[-1]), pairs.dtype)
    c[..., 0::2], c[..., 1::2] = pairs[..., 0, :], pairs[..., 1, :]
    return c


def _scans(params, gated_input, log_forget, h, unit, direction):
    """The sum of the scans of one direction -> out, final state (causal only), vjp(d_out, d_final).

    Arrays are (1, T, ..), or (height, width, ..) for "2d": there a row is a sequence, and a column is one too.
    """
    forward = params["theta"] if unit == "complex" else None
    backward = params.get("theta_reverse", forward)
    by_row, by_column = (lambda a: a), (lambda a: a.swapaxes(0, 1))
    plan = {
        "causal": [(by_row, False)],
        "bidirectional": [(by_row, False), (by_row, True)],
        "2d": [(by_row, False), (by_row, True), (by_column, False), (by_column, True)],
    }[direction]
    runs = []
    for along, reverse in plan:
        theta = backward if reverse else forward
        start = h if direction == "causal" else None
        runs.append(gated_scan(along(gated_input), along(log_forget), start, theta=theta, reverse=reverse))
    out = np.sum([along(run[0]) for (along, _), run in zip(plan, runs, strict=True)], axis=0)

    def vjp(d_out, d_final):
        total = {}
        for (along, reverse), run in zip(plan, runs, strict=True):
            g = run[2](along(d_out), d_final if direction == "causal" else np.zeros_like(run[1]))
            if "theta" in g:
                own = "theta_reverse" if reverse and "theta_reverse" in params else "theta"
                _add(total, {own: g["theta"]})
            _add(total, {"x": along(g["x"]), "log_forget": along(g["log_forget"])})
            if direction == "causal":
                total["initial_state"] = g["initial_state"]
        return total

    return out, runs[0][1], vjp


def _hgrn_sequence(
    params,
    x,
    h,
    conv,
    bound,
    complement,
    *,
    expand_ratio=1,
    unit="real",
    direction="causal",
    shared_theta=True,
    norm="rms",
    norm_eps=1e-5,
    norm_first=True,
    gate_activation="silu",
    bias=False,
    conv_size=0,
    conv_bias=False,
):
    """The layer on one sequence (1, T, D), or on one picture (height, width, D); h (E,) or (2, E), conv (W-1, ..)."""
    D = x.shape[-1]
    E = D * expand_ratio
    widths = {"candidate": 2 * E if unit == "complex" else E, "forget": E}
    assert ("theta" in params) == (unit == "complex")
    assert ("theta_reverse" in params) == (unit == "complex" and not shared_theta)
    streams, stream_vjps, conv_out, at = {}, {}, [], 0
    for name, width in widths.items():
        p = _sub(params, f"{name}_proj")
        assert p["weight"].shape == (width, D)
        assert bias == ("bias" in p), f"{name}_proj: bias={bias}, parameters {list(p)}"
        pre, proj_vjp = linear(x, p["weight"], p.get("bias"))
        conv_vjp = None
        if conv_size > 0:
            c = _sub(params, f"{name}_conv")
            assert c["weight"].shape == (width, conv_size)
            assert conv_bias == ("bias" in c), f"{name}_conv: bias={conv_bias}, parameters {list(c)}"
            pre, last, conv_vjp = short_conv(pre, c["weight"], c.get("bias"), conv[None, :, at : at + width])
            conv_out.append(last[0])
        streams[name], stream_vjps[name] = pre, (proj_vjp, conv_vjp, slice(at, at + width))
        at += width

    c, act_vjp = ACTIVATIONS["silu"](streams["candidate"])
    log_forget, input_gate, gate_vjp = forget_gate(streams["forget"], bound, complement)
    if unit == "complex":
        c = interleaved(c)
    k = input_gate[..., None, :] if unit == "complex" else input_gate
    hidden, last, scan_vjp = _scans(params, k * c, log_forget, None if h is None else h[None], unit, direction)
    o = hidden.reshape(*x.shape[:-1], widths["candidate"])  # complex: all real parts, then all imaginary ones
    g = _sub(params, "out_gate_proj")
    z, gate_proj_vjp = linear(x, g["weight"], g.get("bias"))
    gate, act_gate_vjp = ACTIVATIONS[gate_activation](z)
    normed, norm_vjp = _norm(o if norm_first else o * gate, norm, params, norm_eps)
    w = _sub(params, "out_proj")
    y, out_vjp = linear(normed * gate if norm_first else normed, w["weight"], w.get("bias"))

    def vjp(d_y, d_h, d_conv):
        grads = {}
        d = out_vjp(d_y)
        d_mixed = d.pop("x")
        _add(grads, {name: d[name] for name in w}, "out_proj.")
        d_norm = norm_vjp(d_mixed * gate if norm_first else d_mixed)
        d_o, d_gate = (d_norm["x"], d_mixed * normed) if norm_first else (d_norm["x"] * gate, d_norm["x"] * o)
        _add(grads, {name: d_norm[name] for name in _sub(params, "norm")}, "norm.")
        d = gate_proj_vjp(act_gate_vjp(d_gate))
        d_x = d.pop("x")
        _add(grads, {name: d[name] for name in g}, "out_gate_proj.")
        d_scan = scan_vjp(d_o.reshape(hidden.shape), d_h)
        _add(grads, {name: d_scan[name] for name in ("theta", "theta_reverse") if name in d_scan})
        d_k, d_c = d_scan["x"] * c, d_scan["x"] * k
        if unit == "complex":
            d_k, d_c = d_k.sum(-2), uninterleaved(d_c)
        d_gates = gate_vjp(d_scan["log_forget"], d_k)
        d_conv_in = []
        for name, d_pre in (("candidate", act_vjp(d_c)), ("forget", d_gates["z"])):
            proj_vjp, conv_vjp, channels = stream_vjps[name]
            if conv_vjp is not None:
                d = conv_vjp(d_pre, d_conv[None, :, channels])
                _add(grads, {key: d[key] for key in _sub(params, f"{name}_conv")}, f"{name}_conv.")
                d_conv_in.append(d["initial_state"][0])
                d_pre = d["x"]
            d = proj_vjp(d_pre)
            _add(grads, {key: d[key] for key in _sub(params, f"{name}_proj")}, f"{name}_proj.")
            d_x = d_x + d["x"]
        grads |= {"x": d_x, "bound": d_gates["bound"]}
        if direction == "causal":
            grads |= {"h": d_scan["initial_state"][0], "conv": np.concatenate(d_conv_in, -1) if d_conv_in else d_conv}
        return grads

    return y, last[0] if direction == "causal" else None, np.concatenate(conv_out, -1) if conv_out else conv, vjp


def hgrn_state_shapes(num, hidden_size, config):
    """Shapes of (h, conv) of ``num`` sequences."""
    E, pair = hidden_size * config.get("expand_ratio", 1), config.get("unit", "real") == "complex"
    h = (num, 2, E) if pair else (num, E)
    return h, (num, max(config.get("conv_size", 0) - 1, 0), (3 if pair else 2) * E)


def hgrn(params, x, state=None, *, bound=None, complement=None, mask=None, cu_seqlens=None, **config) -> Any:
    """The layer of HGRN on x (B, T, D), or (B, height, width, D); config: the arguments of ``longstream.layers.HGRN``.

    state: (h (N, E) or (N, 2, E), conv (N, W-1, channels of candidate and forget)), only if causal.
    -> y, (h, conv) or None, vjp(d_y[, d_h, d_conv]) -> dict of gradients: the parameters' names, "x", "bound", and, if
       causal, "h" and "conv"
    """
    D, causal = x.shape[-1], config.get("direction", "causal") == "causal"
    if config.get("direction") == "2d":
        assert state is None
        assert mask is None
        assert cu_seqlens is None
        sequences = [(b, slice(None)) for b in range(len(x))]
    else:
        sequences = [(slice(b, b + 1), at) for b, at in _sequences(len(x), x.shape[1], mask, cu_seqlens)]
    shapes = hgrn_state_shapes(len(sequences), D, config)
    assert causal or state is None
    if state is None:
        state = tuple(np.zeros(shape) for shape in shapes)
    runs: list[Any] = [
        _hgrn_sequence(params, x[b, at], h if causal else None, conv, bound, complement, **config)
        for (b, at), h, conv in zip(sequences, *state, strict=True)
    ]
    y = np.zeros_like(x)
    for (b, at), run in zip(sequences, runs, strict=True):
        y[b, at] = run[0]

    def vjp(d_y, d_h=None, d_conv=None):
        total, d_x, d_states = {}, np.zeros_like(x), []
        zero_h, zero_conv = (np.zeros(shape) for shape in shapes)
        d_h, d_conv = zero_h if d_h is None else d_h, zero_conv if d_conv is None else d_conv
        for n, ((b, at), run) in enumerate(zip(sequences, runs, strict=True)):
            grads = run[3](d_y[b, at], d_h[n : n + 1], d_conv[n])
            d_x[b, at] = grads.pop("x")
            if causal:
                d_states.append((grads.pop("h"), grads.pop("conv")))
            _add(total, grads)
        if causal:
            total |= {"h": np.stack([d[0] for d in d_states]), "conv": np.stack([d[1] for d in d_states])}
        return total | {"x": d_x}

    if not causal:
        return y, None, vjp
    return y, (np.stack([r[1] for r in runs]), np.stack([r[2] for r in runs])), vjp


# Every choice of the HGRN layer appears in at least one of these, next to different neighbors.
HGRN_CONFIGS = {
    "defaults": {},
    "gate_first": {"norm_first": False, "gate_activation": "sigmoid", "expand_ratio": 2, "norm": "layer", "bias": True},
    "no_norm_weight": {"norm": "rms_no_weight", "norm_eps": 0.3, "norm_first": False},
    "conv": {"conv_size": 3, "conv_bias": True, "expand_ratio": 2},
    "conv_of_one_tap": {"conv_size": 1, "gate_activation": "sigmoid"},
    "complex": {"unit": "complex", "norm": "layer", "bias": True},
    "complex_gate_first": {"unit": "complex", "norm_first": False, "expand_ratio": 2, "norm_eps": 0.1},
    "complex_conv": {"unit": "complex", "conv_size": 4, "norm": "rms_no_weight", "gate_activation": "sigmoid"},
    "both_ways": {"direction": "bidirectional", "norm_first": False, "expand_ratio": 2},
    "both_ways_complex": {"direction": "bidirectional", "unit": "complex", "norm": "layer", "bias": True},
    "both_ways_two_thetas": {"direction": "bidirectional", "unit": "complex", "shared_theta": False, "expand_ratio": 2},
    "2d": {"direction": "2d", "norm": "layer", "gate_activation": "sigmoid", "bias": True},
    "2d_complex": {"direction": "2d", "unit": "complex", "norm_first": False, "expand_ratio": 2},
    "2d_two_thetas": {"direction": "2d", "unit": "complex", "shared_theta": False, "norm": "rms_no_weight"},
}


def hgrn_params(hidden_size, config, rng):
    """Random parameters by name; norms around 1, everything else around 0 with gates that vary."""
    D, E, pair = hidden_size, hidden_size * config.get("expand_ratio", 1), config.get("unit", "real") == "complex"
    wide, params = 2 * E if pair else E, {}
    shapes = {"candidate": (wide, D), "forget": (E, D), "out_gate": (wide, D), "out": (D, wide)}
    for name, shape in shapes.items():
        params[f"{name}_proj.weight"] = rng.standard_normal(shape) * 2 * shape[1] ** -0.5
        if config.get("bias"):
            params[f"{name}_proj.bias"] = rng.standard_normal(shape[0])
    if config.get("norm", "rms") != "rms_no_weight":
        params["norm.weight"] = 1 + 0.5 * rng.standard_normal(wide)
    if config.get("norm") == "layer":
        params["norm.bias"] = rng.standard_normal(wide)
    if pair:
        params["theta"] = rng.uniform(-np.pi, np.pi, E)
        if not config.get("shared_theta", True):
            params["theta_reverse"] = rng.uniform(-np.pi, np.pi, E)
    if config.get("conv_size", 0) > 0:
        for name, width in (("candidate", wide), ("forget", E)):
            params[f"{name}_conv.weight"] = rng.standard_normal((width, config["conv_size"]))
            if config.get("conv_bias"):
                params[f"{name}_conv.bias"] = rng.standard_normal(width)
    return params


# Hyena


def positional_features(max_seq_len, width):
    """z (max_seq_len, width): t from 0 to 1, then cos(f w) and -sin(f w) for each of the (width - 1) / 2 bands f."""
    n, bands = np.arange(max_seq_len), (width - 1) // 2
    f = np.linspace(1e-4, bands - 1, bands)
    angle = f * (2 * np.pi * n / max_seq_len)[:, None]
    return np.concatenate([np.linspace(0, 1, max_seq_len)[:, None], np.cos(angle), -np.sin(angle)], -1)


def decay_rates(channels, target=1e-2, fast=0.3, slow=1.5):
    """The window's rates of the flat channels, slow ones first: exp(-t |rate|) is ``target`` at t = slow .. fast."""
    return np.linspace(np.log(target) / slow, np.log(target) / fast, channels)


def sine_mlp(layers, freq, z):
    """Linear and sin(freq *) in turn, the last one without a sine; layers: (weight, bias or None) pairs."""
    for weight, bias in layers[:-1]:
        z = np.sin(freq * linear(z, weight, bias)[0])
    return linear(z, *layers[-1])[0]


def hyena_filters(layers, freq, z, rates=None, *, t=None, shift=0.0, normalize=False):
    """(time, flat channels): the MLP of the features, times the window exp(-t |rate|) + shift if there are rates.

    t is 0 .. 1 over the whole of z. normalize: by the sum of absolute values over the flat channels, at each time.
    """
    h, t = sine_mlp(layers, freq, z), np.linspace(0, 1, len(z)) if t is None else t
    if rates is not None:
        h = h * (np.exp(-t[:, None] * np.abs(rates)) + shift)
    return h / np.abs(h).sum(-1, keepdims=True) if normalize else h


def by_stage(flat, stages, layout):
    """(.., stages * channels) -> (stages, .., channels).

    The flat index of stage s and channel c is s * channels + c ("stage") or c * stages + s ("channel").
    """
    channels = flat.shape[-1] // stages
    index = np.arange(stages)[:, None] * channels + np.arange(channels)
    if layout == "channel":
        index = np.arange(channels) * stages + np.arange(stages)[:, None]
    return np.stack([flat[..., i] for i in index])


def gelu(x):
    """x times the normal distribution function."""
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2)))


OUTPUT_ACTIVATIONS = {"none": lambda x: x, "gelu": gelu, "silu": lambda x: ACTIVATIONS["silu"](x)[0]}


def hyena_operator(
    u,
    in_proj,
    short_filter,
    filters,
    skip,
    out_proj,
    *,
    num_heads=1,
    filters_reverse=None,
    activation="none",
):
    """The operator on one sequence u (T, D); in_proj, out_proj: (weight, bias); short_filter: (weight (C, W), bias).

    filters (stages, D, L) and skip (stages, D) of the N-1 long convolutions. The projected channels are, head by head,
    the D / heads channels of x_0, then those of x_1, .. x_{N-1} and v; with all heads side by side:
    for i = 0 .. N-2: g = v x_{N-1-i}; v = h_i (*) g + skip_i g;  then y = W_out act(v x_0).
    filters_reverse (stages, D, L): makes every long convolution two-sided.
    """
    projected, D = linear(u, *in_proj)[0], u.shape[-1]
    c = short_conv(projected[None], *short_filter)[0]
    by_head = c.reshape(*c.shape[:2], num_heads, len(filters) + 2, D // num_heads)
    *x, v = (by_head[..., i, :].reshape(*c.shape[:2], D) for i in range(len(filters) + 2))
    for i in range(len(filters)):
        g = v * x[len(x) - 1 - i]
        if filters_reverse is None:
            v = long_conv(g, filters[i], skip[i])[0]
        else:
            v = long_conv_two_sided(g, filters[i], filters_reverse[i], skip[i])[0]
    return linear(OUTPUT_ACTIVATIONS[activation](v * x[0]), *out_proj)[0][0]


def each_sequence(run, x, mask=None, cu_seqlens=None):
    """run (T, D) -> (T, D) on every sequence of x (B, T, D) alone; zeros on pads."""
    y = np.zeros_like(x)
    for b, at in _sequences(len(x), x.shape[1], mask, cu_seqlens):
        y[b, at] = run(x[b, at])
    return y


# Every choice of the Hyena layer appears in at least one of these, next to different neighbors.
HYENA_CONFIGS = {
    "defaults": {"positional_width": 9},
    "order_3": {"order": 3, "positional_width": 3, "filter_layers": 1, "frequency": 3.0},
    "order_3_by_channel": {"order": 3, "filter_layout": "channel", "positional_width": 5, "bias": False},
    "order_4_heads": {"order": 4, "num_heads": 3, "filter_layout": "channel", "positional_width": 7},
    "heads": {"num_heads": 2, "positional_width": 5, "window_shift": 0.05, "short_conv_size": 1, "activation": "silu"},
    "no_window": {"window": False, "positional_width": 5, "short_conv_size": 5, "activation": "gelu"},
    "other_window": {"window_target": 0.2, "window_fast": 0.1, "window_slow": 0.8, "positional_width": 5},
    "normalized": {"normalize_filter": True, "positional_width": 5, "filter_layers": 0, "order": 3},
    "learned_window": {"window_lr": 1e-3, "positions_lr": 0.0, "positional_width": 5, "window_shift": 0.3},
    "two_sided": {"causal": False, "positional_width": 5},
    "two_sided_heads": {"causal": False, "order": 3, "num_heads": 2, "positional_width": 5, "short_conv_size": 2},
    "two_sided_by_channel": {"causal": False, "order": 3, "filter_layout": "channel", "window": False, "bias": False},
}


def hyena_filter(arrays, hidden_size, config):
    """filters (stages, D, L) and skip (stages, D) or None of a filter's parameters and buffers by the layer's names."""
    heads, stages = config.get("num_heads", 1), config.get("order", 2) - 1
    count = config.get("filter_layers", 2) + 1
    layers = [(arrays[f"hidden.{i}.weight"], arrays[f"hidden.{i}.bias"]) for i in range(count)]
    layers.append((arrays["out_proj.weight"], None))
    assert len(layers[-1][0]) == stages * hidden_size // heads
    rates = arrays["delta"] if config.get("window", True) else None
    window = {"shift": config.get("window_shift", 0.0), "normalize": config.get("normalize_filter", False)}
    flat = hyena_filters(layers, arrays["frequency"], arrays["positions"], rates, t=arrays["time"], **window)
    split = lambda a: by_stage(a, stages, config.get("filter_layout", "stage"))  # noqa: E731
    # every head has the same filters, one for each of its channels
    skip = np.tile(split(arrays["skip"]), (1, heads)) if "skip" in arrays else None
    return np.tile(split(flat).swapaxes(1, 2), (1, heads, 1)), skip


def hyena(arrays, x, *, mask=None, cu_seqlens=None, **config):
    """The layer of Hyena on x (B, T, D); arrays: the layer's parameters and buffers by name -> y (B, T, D)."""
    pair = lambda name: (arrays[f"{name}.weight"], arrays.get(f"{name}.bias"))  # noqa: E731
    filters, skip = hyena_filter(_sub(arrays, "filter"), x.shape[-1], config)
    assert skip is not None
    reverse = None
    if not config.get("causal", True):
        reverse, no_skip = hyena_filter(_sub(arrays, "filter_reverse"), x.shape[-1], config)
        assert no_skip is None
    options = {"num_heads": config.get("num_heads", 1), "activation": config.get("activation", "none")}
    options |= {"filters_reverse": reverse}
    run = lambda u: hyena_operator(  # noqa: E731
        u, pair("in_proj"), pair("short_conv"), filters, skip, pair("out_proj"), **options
    )
    return each_sequence(run, x, mask, cu_seqlens)


# Sliding-window attention


def rotary(x, base):
    """x (T, H, K): the pair (x_j, x_{j + K/2}) of the token at t is turned by the angle t base^(-2 j / K)."""
    T, _, K = x.shape
    z = x[..., : K // 2] + 1j * x[..., K // 2 :]
    z = z * np.exp(1j * np.arange(T)[:, None, None] * base ** (-2 * np.arange(K // 2) / K))
    return np.concatenate([z.real, z.imag], -1)


def _attention_sequence(params, x, num_heads, num_kv_heads, window_size, rope_theta):
    q, k, v = (linear(x, params[f"{n}_proj.weight"], params.get(f"{n}_proj.bias"))[0] for n in "qkv")
    (T, D), G = x.shape, num_heads // num_kv_heads
    K = D // num_heads
    q, k, v = q.reshape(T, num_heads, K), k.reshape(T, num_kv_heads, K), v.reshape(T, num_kv_heads, K)
    q, k, o = rotary(q, rope_theta), rotary(k, rope_theta), np.zeros_like(q)
    back = np.arange(T)[:, None] - np.arange(T)  # how far key s is behind query t
    seen = (back >= 0) & (back < window_size)
    for head in range(num_heads):
        scores = np.where(seen, q[:, head] @ k[:, head // G].T / np.sqrt(K), -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
        o[:, head] = p / p.sum(-1, keepdims=True) @ v[:, head // G]
    return linear(o.reshape(T, D), params["out_proj.weight"], params.get("out_proj.bias"))[0]


def attention(params, x, *, num_heads, num_kv_heads=None, window_size, rope_theta=10000.0, mask=None, cu_seqlens=None):
    """Every token sees itself and the window_size - 1 tokens before it. x (B, T, D) -> y.

    num_kv_heads: groups of num_heads / num_kv_heads neighboring query heads share a head of keys and values.
    """
    heads = num_heads, num_kv_heads or num_heads, window_size, rope_theta
    return each_sequence(lambda row: _attention_sequence(params, row, *heads), x, mask, cu_seqlens)
