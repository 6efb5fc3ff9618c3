"""The library's equations a second time, in plain NumPy, with every gradient derived by hand.

Nothing here is shared with the library: no torch, no autograd, no chunks. A function returns its values and, last, a
``vjp``: the function that takes one cotangent per value and returns the gradients of ``sum(cotangent * value)``.
``test_oracle.py`` holds each ``vjp`` to finite differences, and the whole to numbers made by other people's code.

Arrays are float64; the arithmetic stays in the dtype it is given, so that the same loop in float32 can serve as the
yardstick for what a plain loop loses.

Sizes: B batch, T time, N packed sequences, D channels, H heads, K and V key and value size, W convolution taps.
"""

from itertools import pairwise

import numpy as np

LOWER_BOUND_KINDS = ("inclusive", "exclusive")


# Point by point


def sigmoid(x):
    """1 / (1 + exp(-x)) -> value, vjp(d) -> d_x. Small values keep their relative accuracy."""
    small = np.exp(-np.abs(x))  # in (0, 1], never overflows
    y = np.where(x >= 0, 1, small) / (1 + small)
    slope = small / (1 + small) ** 2  # sigmoid(x) sigmoid(-x), without forming 1 - y
    return y, lambda d_y: d_y * slope


def silu(x):
    """x sigmoid(x) -> value, vjp(d) -> d_x."""
    s, _ = sigmoid(x)
    return x * s, lambda d_y: d_y * s * (1 + x * (1 - s))


def identity(x):
    return x, lambda d_y: d_y


ACTIVATIONS = {"none": identity, None: identity, "silu": silu, "sigmoid": sigmoid}


def linear(x, weight, bias=None):
    """x W^T + b over the last axis -> y, vjp(d_y) -> dict(x, weight, bias)."""
    y = x @ weight.T if bias is None else x @ weight.T + bias

    def vjp(d_y):
        rows, d_rows = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, d_y.shape[-1])
        return {"x": d_y @ weight, "weight": d_rows.T @ rows, "bias": d_rows.sum(0)}

    return y, vjp


def norm(x, kind, weight=None, bias=None, eps=1e-5):
    """RMSNorm ("rms"), RMSNorm without a weight ("rms_no_weight") or LayerNorm ("layer") over the last axis.

    -> y, vjp(d_y) -> dict(x, weight, bias)
    """
    assert kind in ("rms", "rms_no_weight", "layer"), kind
    centered = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    scale = 1 / np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
    unit = centered * scale
    y = unit if kind == "rms_no_weight" else unit * weight
    y = y + bias if kind == "layer" else y

    def vjp(d_y):
        d_unit = d_y if kind == "rms_no_weight" else d_y * weight
        d_x = scale * (d_unit - unit * (d_unit * unit).mean(-1, keepdims=True))
        if kind == "layer":
            d_x = d_x - d_x.mean(-1, keepdims=True)
        others = tuple(range(x.ndim - 1))
        return {"x": d_x, "weight": (d_y * unit).sum(others), "bias": d_y.sum(others)}

    return y, vjp


def swiglu(params, x):
    """down(silu(gate x) * (up x)) -> y, vjp(d_y) -> dict(x, gate_proj.weight, up_proj.weight, down_proj.weight)."""
    gate, gate_vjp = linear(x, params["gate_proj.weight"])
    up, up_vjp = linear(x, params["up_proj.weight"])
    act, act_vjp = silu(gate)
    y, down_vjp = linear(act * up, params["down_proj.weight"])

    def vjp(d_y):
        d_down = down_vjp(d_y)
        d_gate = gate_vjp(act_vjp(d_down["x"] * up))
        d_up = up_vjp(d_down["x"] * act)
        return {
            "x": d_gate["x"] + d_up["x"],
            "gate_proj.weight": d_gate["weight"],
            "up_proj.weight": d_up["weight"],
            "down_proj.weight": d_down["weight"],
        }

    return y, vjp


# Gates


def lower_bounds(gamma, kind="inclusive"):
    """Gamma (L, D) -> bound (L, D), complement = 1 - bound (L, D), vjp(d_bound, d_complement) -> d_gamma.

    P = softmax(Gamma over the layers);  inclusive: bound_l = P_1 + .. + P_l;  exclusive: bound_l = P_0 + .. + P_{l-1}.
    Written as 0/1 matrices: row l says which P_k are in the bound; the complement has all the others.
    """
    row, column = np.indices((len(gamma), len(gamma)))
    in_bound = {"inclusive": (column >= 1) & (column <= row), "exclusive": column < row}[kind]
    to_bound, to_complement = in_bound.astype(gamma.dtype), (~in_bound).astype(gamma.dtype)
    p = np.exp(gamma - gamma.max(0))
    p = p / p.sum(0)

    def vjp(d_bound, d_complement):
        d_p = to_bound.T @ d_bound + to_complement.T @ d_complement
        return p * (d_p - (p * d_p).sum(0))

    return to_bound @ p, to_complement @ p, vjp


def forget_gate(z, bound=None, complement=None):
    """f = bound + (1 - bound) sigmoid(z) -> log f, input gate 1 - f, vjp(d_log_forget, d_input_gate) -> dict(z, bound).

    bound and its complement are (D,), z is (..., D). d bound is the total derivative: the complement moves with it.
    """
    bound = np.zeros(z.shape[-1:], z.dtype) if bound is None else bound
    complement = 1 - bound if complement is None else complement
    s, s_vjp = sigmoid(z)
    s_minus, slope = sigmoid(-z)[0], s_vjp(np.ones_like(z))
    input_gate = complement * s_minus
    f = bound + complement * s
    with np.errstate(divide="ignore"):
        # log1p(-k) keeps a gate next to 1; log f a gate next to 0; log(1-lb) + z a gate that underflows with no bound.
        log_sigmoid = np.minimum(z, 0) - np.log1p(np.exp(-np.abs(z)))
        log_f = np.where(f > 0, np.log(f), np.log(complement) + log_sigmoid)
        log_f = np.where(input_gate < 0.5, np.log1p(-np.where(input_gate < 0.5, input_gate, 0)), log_f)

    def vjp(d_log_forget, d_input_gate):
        # d f/d z = (1 - bound) s(z) s(-z);  d f/d bound = s(-z);  d k = -d f;  d log f = d f / f.
        # Where f underflows (no bound, very negative z) log f is z, and d log f/d z is s(-z).
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope_of_log = np.where(f > 0, complement * slope / np.where(f > 0, f, 1), s_minus)
            d_bound = np.where(d_log_forget == 0, 0, d_log_forget * s_minus / f) - d_input_gate * s_minus
        d_z = d_log_forget * slope_of_log - d_input_gate * complement * slope
        return {"z": d_z, "bound": d_bound.sum(tuple(range(z.ndim - 1)))}

    return log_f, input_gate, vjp


# Operations that look back


def gla(q, k, v, log_forget, initial_state=None, cu_seqlens=None):
    """S_t = diag(exp(log_forget_t)) S_{t-1} + k_t v_t^T;  o_t = S_t^T q_t.

    q, k, log_forget (B, T, H, K); v (B, T, H, V); state (B, H, K, V), or (N, H, K, V) with cu_seqlens.
    -> out (B, T, H, V), final_state, vjp(d_out, d_final) -> dict(q, k, v, log_forget, initial_state)
    """
    if cu_seqlens is not None:
        return _gla_packed(q, k, v, log_forget, initial_state, cu_seqlens)
    (B, T, H, K), V = q.shape, v.shape[-1]
    states = np.zeros((T + 1, B, H, K, V), v.dtype)  # states[t]: after t tokens
    if initial_state is not None:
        states[0] = initial_state
    forget = np.exp(log_forget)
    out = np.zeros_like(v)
    for t in range(T):
        states[t + 1] = forget[:, t, :, :, None] * states[t] + k[:, t, :, :, None] * v[:, t, :, None, :]
        out[:, t] = (q[:, t, :, None, :] @ states[t + 1])[:, :, 0]

    def vjp(d_out, d_final):
        grads = {"q": np.zeros_like(q), "k": np.zeros_like(k), "v": np.zeros_like(v), "log_forget": np.zeros_like(q)}
        d_state = d_final.astype(v.dtype)  # of the loss in S_t, through everything after o_t
        for t in reversed(range(T)):
            grads["q"][:, t] = (states[t + 1] @ d_out[:, t, :, :, None])[..., 0]
            d_state = d_state + q[:, t, :, :, None] * d_out[:, t, :, None, :]
            grads["k"][:, t] = (d_state @ v[:, t, :, :, None])[..., 0]
            grads["v"][:, t] = (k[:, t, :, None, :] @ d_state)[:, :, 0]
            grads["log_forget"][:, t] = forget[:, t] * (d_state * states[t]).sum(-1)
            d_state = forget[:, t, :, :, None] * d_state
        return grads | {"initial_state": d_state}

    return out, states[T].copy(), vjp


def _gla_packed(q, k, v, log_forget, initial_state, cu_seqlens):
    spans = [slice(a, b) for a, b in pairwise(cu_seqlens)]
    runs = [
        gla(q[:, s], k[:, s], v[:, s], log_forget[:, s], None if initial_state is None else initial_state[n : n + 1])
        for n, s in enumerate(spans)
    ]

    def vjp(d_out, d_final):
        grads = [run[2](d_out[:, s], d_final[n : n + 1]) for n, (run, s) in enumerate(zip(runs, spans, strict=True))]
        return {name: np.concatenate([g[name] for g in grads], int(name != "initial_state")) for name in grads[0]}

    return np.concatenate([r[0] for r in runs], 1), np.concatenate([r[1] for r in runs]), vjp


def short_conv(x, weight, bias=None, initial_state=None, activation=None, cu_seqlens=None):
    """y_t = act(bias + sum_j weight[:, j] x_{t-(W-1)+j}), oldest tap first.

    x (B, T, D); weight (D, W); state: the last W-1 inputs, oldest first, (B, W-1, D), or (N, W-1, D) with cu_seqlens.
    -> out, final_state, vjp(d_out, d_final) -> dict(x, weight, bias, initial_state)
    """
    if cu_seqlens is not None:
        return _short_conv_packed(x, weight, bias, initial_state, activation, cu_seqlens)
    (B, T, D), W = x.shape, weight.shape[-1]
    if initial_state is None:
        initial_state = np.zeros((B, W - 1, D), x.dtype)
    past = np.concatenate([initial_state, x], 1)  # past[:, t + j] is x_{t-(W-1)+j}
    pre = np.zeros_like(x) if bias is None else np.zeros_like(x) + bias
    for j in range(W):
        pre = pre + weight[:, j] * past[:, j : j + T]
    out, act_vjp = ACTIVATIONS[activation](pre)

    def vjp(d_out, d_final):
        d_pre = act_vjp(d_out)
        d_past, d_weight = np.zeros_like(past), np.zeros_like(weight)
        d_past[:, T:] += d_final
        for j in range(W):
            d_past[:, j : j + T] += weight[:, j] * d_pre
            d_weight[:, j] = (d_pre * past[:, j : j + T]).sum((0, 1))
        return {
            "x": d_past[:, W - 1 :],
            "weight": d_weight,
            "bias": d_pre.sum((0, 1)),
            "initial_state": d_past[:, : W - 1],
        }

    return out, past[:, T:].copy(), vjp


def _short_conv_packed(x, weight, bias, initial_state, activation, cu_seqlens):
    spans = [slice(a, b) for a, b in pairwise(cu_seqlens)]
    runs = [
        short_conv(x[:, s], weight, bias, None if initial_state is None else initial_state[n : n + 1], activation)
        for n, s in enumerate(spans)
    ]

    def vjp(d_out, d_final):
        grads = [run[2](d_out[:, s], d_final[n : n + 1]) for n, (run, s) in enumerate(zip(runs, spans, strict=True))]
        return {
            "x": np.concatenate([g["x"] for g in grads], 1),
            "weight": sum(g["weight"] for g in grads),
            "bias": sum(g["bias"] for g in grads),
            "initial_state": np.concatenate([g["initial_state"] for g in grads]),
        }

    return np.concatenate([r[0] for r in runs], 1), np.concatenate([r[1] for r in runs]), vjp


# The HGRN2 layer


def _sub(params, prefix):
    """The entries below ``prefix.``, with the prefix removed."""
    return {name[len(prefix) + 1 :]: array for name, array in params.items() if name.startswith(prefix + ".")}


def _add(total, grads, prefix=""):
    for name, array in grads.items():
        total[prefix + name] = total[prefix + name] + array if prefix + name in total else array


def _hgrn2_sequence(
    params,
    x,
    S,
    conv,
    bound,
    complement,
    *,
    expand_ratio,
    query_activation="silu",
    value_activation="none",
    query_scale=1.0,
    norm="rms",
    norm_eps=1e-5,
    bias=False,
    conv_size=0,
    conv_bias=False,
):
    """The layer on one sequence without pads: x (T, D), S (H, K, V), conv (W-1, 3 D)."""
    T, D = x.shape
    heads = (1, T, D // expand_ratio, expand_ratio)  # channels are split "(h e)"; one sequence is a batch of one
    streams, stream_vjps, conv_out = {}, {}, []
    for i, name in enumerate(("q", "forget", "v")):
        p = _sub(params, f"{name}_proj")
        assert bias == ("bias" in p), f"{name}_proj: bias={bias}, parameters {list(p)}"
        pre, proj_vjp = linear(x, p["weight"], p.get("bias"))
        conv_vjp = None
        if conv_size > 0:
            c = _sub(params, f"{name}_conv")
            assert c["weight"].shape == (D, conv_size)
            assert conv_bias == ("bias" in c), f"{name}_conv: bias={conv_bias}, parameters {list(c)}"
            history = conv[None, :, i * D : (i + 1) * D]
            pre, last, conv_vjp = short_conv(pre[None], c["weight"], c.get("bias"), history)
            pre = pre[0]
            conv_out.append(last[0])
        streams[name], stream_vjps[name] = pre, (proj_vjp, conv_vjp)

    act_q, act_q_vjp = ACTIVATIONS[query_activation](streams["q"])
    log_forget, k, gate_vjp = forget_gate(streams["forget"], bound, complement)
    v, act_v_vjp = ACTIVATIONS[value_activation](streams["v"])
    q = act_q * query_scale
    by_head = (a.reshape(heads) for a in (q, k, v, log_forget))
    o, S_out, gla_vjp = gla(*by_head, initial_state=S[None])
    normed, norm_vjp = _norm(o.reshape(T, D), norm, params, norm_eps)
    out = _sub(params, "out_proj")
    y, out_vjp = linear(normed, out["weight"], out.get("bias"))
    conv_last = np.concatenate(conv_out, -1) if conv_size > 0 else conv

    def vjp(d_y, d_S, d_conv):
        grads = {}
        d_out = out_vjp(d_y)
        d_normed = d_out.pop("x")
        _add(grads, {name: d_out[name] for name in out}, "out_proj.")
        d_o = norm_vjp(d_normed)
        _add(grads, {name: d_o[name] for name in _sub(params, "norm")}, "norm.")
        d_gla = {
            name: g if name == "initial_state" else g.reshape(T, D)
            for name, g in gla_vjp(d_o["x"].reshape(heads), d_S[None]).items()
        }
        d_gate = gate_vjp(d_gla["log_forget"], d_gla["k"])
        d_pre = {"q": act_q_vjp(d_gla["q"] * query_scale), "forget": d_gate["z"], "v": act_v_vjp(d_gla["v"])}
        d_x, d_history = np.zeros_like(x), []
        for i, name in enumerate(("q", "forget", "v")):
            proj_vjp, conv_vjp = stream_vjps[name]
            d = d_pre[name]
            if conv_vjp is not None:
                g = conv_vjp(d[None], d_conv[None, :, i * D : (i + 1) * D])
                _add(grads, {key: g[key] for key in _sub(params, f"{name}_conv")}, f"{name}_conv.")
                d_history.append(g["initial_state"][0])
                d = g["x"][0]
            g = proj_vjp(d)
            _add(grads, {key: g[key] for key in _sub(params, f"{name}_proj")}, f"{name}_proj.")
            d_x = d_x + g["x"]
        d_conv_in = np.concatenate(d_history, -1) if conv_size > 0 else d_conv
        return grads, d_x, d_gla["initial_state"][0], d_conv_in, d_gate["bound"]

    return y, S_out[0], conv_last, vjp


def _norm(x, kind, params, eps):
    return norm(x, kind, params.get("norm.weight"), params.get("norm.bias"), eps)


def _sequences(B, T, mask, cu_seqlens):
    """(row, time indices) of every sequence. A pad is as if it were not there: its index is left out."""
    keep = np.ones((B, T), bool) if mask is None else np.asarray(mask).astype(bool)
    if cu_seqlens is None:
        return [(b, np.flatnonzero(keep[b])) for b in range(B)]
    assert B == 1
    return [(0, a + np.flatnonzero(keep[0, a:b])) for a, b in pairwise(cu_seqlens)]


def hgrn2(params, x, state=None, *, bound=None, complement=None, mask=None, cu_seqlens=None, **config):
    """The layer of HGRN2 on x (B, T, D); config: the keyword arguments of ``longstream.layers.HGRN2``.

    state: (S (N, H, K, V), conv (N, W-1, 3 D)), N = B or the number of packed sequences.
    -> y, (S, conv), vjp(d_y, d_S, d_conv) -> dict of gradients: the parameters' names, "x", "S", "conv", "bound"
    """
    (B, T, D), E = x.shape, config["expand_ratio"]
    sequences = _sequences(B, T, mask, cu_seqlens)
    if state is None:
        taps = max(config.get("conv_size", 0) - 1, 0)
        state = np.zeros((len(sequences), D // E, E, E)), np.zeros((len(sequences), taps, 3 * D))
    runs = [
        _hgrn2_sequence(params, x[b, at], S, conv, bound, complement, **config)
        for (b, at), S, conv in zip(sequences, *state, strict=True)
    ]
    y = np.zeros_like(x)
    for (b, at), run in zip(sequences, runs, strict=True):
        y[b, at] = run[0]

    def vjp(d_y, d_S, d_conv):
        total, d_x, d_S_in, d_conv_in = {"bound": np.zeros(D)}, np.zeros_like(x), [], []
        for n, ((b, at), run) in enumerate(zip(sequences, runs, strict=True)):
            grads, d_x[b, at], d_S_n, d_conv_n, d_bound = run[3](d_y[b, at], d_S[n], d_conv[n])
            _add(total, grads | {"bound": d_bound})
            d_S_in.append(d_S_n)
            d_conv_in.append(d_conv_n)
        return total | {"x": d_x, "S": np.stack(d_S_in), "conv": np.stack(d_conv_in)}

    return y, (np.stack([r[1] for r in runs]), np.stack([r[2] for r in runs])), vjp


# The model


def block(params, x, state=None, *, mixer, norm_eps=1e-6, bound=None, complement=None, mask=None, cu_seqlens=None):
    """x + mixer(norm(x)), then x + mlp(norm(x)) -> y, (S, conv), vjp as the layer's. y on pads means nothing."""
    mixer_in, mixer_norm_vjp = norm(x, "rms", params["mixer_norm.weight"], eps=norm_eps)
    gates = {"bound": bound, "complement": complement}
    mixed, state, mixer_vjp = hgrn2(
        _sub(params, "mixer"), mixer_in, state, **gates, mask=mask, cu_seqlens=cu_seqlens, **mixer
    )
    middle = x + mixed
    mlp_in, mlp_norm_vjp = norm(middle, "rms", params["mlp_norm.weight"], eps=norm_eps)
    mlp_out, mlp_vjp = swiglu(_sub(params, "mlp"), mlp_in)

    def vjp(d_y, d_S, d_conv):
        grads = {}
        d_mlp = mlp_vjp(d_y)
        d_norm = mlp_norm_vjp(d_mlp.pop("x"))
        d_middle = d_y + d_norm["x"]
        _add(grads, d_mlp, "mlp.")
        grads["mlp_norm.weight"] = d_norm["weight"]
        d_mixer = mixer_vjp(d_middle, d_S, d_conv)
        d_norm = mixer_norm_vjp(d_mixer.pop("x"))
        grads["mixer_norm.weight"] = d_norm["weight"]
        outer = {name: d_mixer.pop(name) for name in ("S", "conv", "bound")}
        _add(grads, d_mixer, "mixer.")
        return grads | outer | {"x": d_middle + d_norm["x"]}

    return middle + mlp_out, state, vjp


def language_model(
    params, ids, states=None, *, num_layers, mixer, norm_eps=1e-6, lower_bound="inclusive", mask=None, cu_seqlens=None
):
    """Embeddings, blocks, norm, head; the head is the embeddings when there is no ``lm_head.weight``.

    mixer: the layer's config. states: one (S, conv) per layer.
    -> logits, hidden (inputs of the blocks, then the normed output), states,
       vjp(d_logits, [(d_S, d_conv), ..]) -> dict of gradients: the parameters' names, and "states": [(d_S, d_conv), ..]
    """
    tied = "lm_head.weight" not in params
    head = params["embeddings.weight" if tied else "lm_head.weight"]
    bounds, complements, bounds_vjp = [None] * num_layers, [None] * num_layers, None
    if lower_bound is not None:
        bounds, complements, bounds_vjp = lower_bounds(params["backbone.lower_bounds"], lower_bound)
    x, hidden, states_out, vjps = params["embeddings.weight"][ids], [], [], []
    for n in range(num_layers):
        hidden.append(x)
        x, last, layer_vjp = block(
            _sub(params, f"backbone.layers.{n}"),
            x,
            None if states is None else states[n],
            norm_eps=norm_eps,
            bound=bounds[n],
            complement=complements[n],
            mask=mask,
            cu_seqlens=cu_seqlens,
            mixer=mixer,
        )
        states_out.append(last)
        vjps.append(layer_vjp)
    y, norm_vjp = norm(x, "rms", params["backbone.norm.weight"], eps=norm_eps)
    hidden.append(y)
    logits, head_vjp = linear(y, head)

    def vjp(d_logits, d_states=None):
        if d_states is None:
            d_states = [(np.zeros_like(S), np.zeros_like(conv)) for S, conv in states_out]
        grads, d_states_in, d_bounds = {}, [], []
        d_head = head_vjp(d_logits)
        d_norm = norm_vjp(d_head["x"])
        grads["backbone.norm.weight"] = d_norm["weight"]
        d_x = d_norm["x"]
        for n in reversed(range(num_layers)):
            g = vjps[n](d_x, *d_states[n])
            d_x = g.pop("x")
            d_states_in.insert(0, (g.pop("S"), g.pop("conv")))
            d_bounds.insert(0, g.pop("bound"))
            _add(grads, g, f"backbone.layers.{n}.")
        if bounds_vjp is not None:
            d_bound = np.stack(d_bounds)
            grads["backbone.lower_bounds"] = bounds_vjp(d_bound, np.zeros_like(d_bound))
        grads["embeddings.weight"] = np.zeros_like(params["embeddings.weight"])
        np.add.at(grads["embeddings.weight"], ids, d_x)
        _add(grads, {"embeddings.weight" if tied else "lm_head.weight": d_head["weight"]})
        return grads | {"states": d_states_in}

    return logits, hidden, states_out, vjp


def next_token_loss(logits, ids):
    """Mean over b, t of -log softmax(logits[b, t])[ids[b, t+1]] -> loss, vjp(d_loss) -> d_logits."""
    scores, labels = logits[:, :-1], ids[:, 1:]
    shifted = scores - scores.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, labels[..., None], -1)

    def vjp(d_loss=1.0):
        d_scores = np.exp(log_p)
        np.put_along_axis(d_scores, labels[..., None], np.exp(picked) - 1, -1)
        d_logits = np.zeros_like(logits)
        d_logits[:, :-1] = d_scores * d_loss / labels.size
        return d_logits

    return -picked.mean(), vjp
