"""gated_scan and long_conv a second time, in plain NumPy loops over time or lags, with every gradient derived by hand.

In the manner of `tests.oracle`: nothing is shared with the library, arrays are float64, and a function returns its
values and, last, a ``vjp`` from cotangents to gradients. ``test_oracle_scan.py`` holds all of it to finite differences
and to numbers made by other people's code.

Sizes: B batch, T time, N packed sequences, D channels, L lags of a filter.
"""

from itertools import pairwise

import numpy as np

C = 64  # tokens of a block of LongConvState


def concatenated(grads, cu_seqlens, batched):
    """Gradients of packed sequences put together: the ``batched`` by row, of parameters summed, the rest in time."""
    spans = [slice(a, b) for a, b in pairwise(cu_seqlens)]
    assert len(grads) == len(spans)
    total = {}
    for name in grads[0]:
        parts = [g[name] for g in grads]
        if name in batched:
            total[name] = np.concatenate(parts)
        elif name in ("theta", "filters", "filters_reverse", "skip"):
            total[name] = sum(parts)
        else:
            total[name] = np.concatenate(parts, 1)
    return total


# The recurrence of HGRN


def to_complex(pairs):
    """(..., 2, D) -> complex (..., D)."""
    return pairs[..., 0, :] + 1j * pairs[..., 1, :]


def to_pairs(values):
    """complex (..., D) -> (..., 2, D)."""
    return np.stack([values.real, values.imag], -2)


def gated_scan(x, log_forget, initial_state=None, *, theta=None, reverse=False, cu_seqlens=None):
    """h_t = a_t h_{t-1} + x_t, a_t = exp(log_forget_t), or exp(log_forget_t + i theta); reverse: from the last t down.

    x, log_forget (B, T, D), state (B, D); with theta (D,): x (B, T, 2, D), state (B, 2, D), real part first. With
    cu_seqlens one state for each sequence.
    -> out, final_state, vjp(d_out, d_final) -> dict(x, log_forget, initial_state[, theta])
    """
    rows = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
    if initial_state is None:
        initial_state = np.zeros((rows, *x.shape[2:]), x.dtype)
    if cu_seqlens is not None:
        spans = [slice(a, b) for a, b in pairwise(cu_seqlens)]
        runs = [
            gated_scan(x[:, s], log_forget[:, s], initial_state[n : n + 1], theta=theta, reverse=reverse)
            for n, s in enumerate(spans)
        ]

        def packed_vjp(d_out, d_final):
            grads = [r[2](d_out[:, s], d_final[n : n + 1]) for n, (r, s) in enumerate(zip(runs, spans, strict=True))]
            return concatenated(grads, cu_seqlens, ("initial_state",))

        return np.concatenate([r[0] for r in runs], 1), np.concatenate([r[1] for r in runs]), packed_vjp

    T = x.shape[1]
    order = range(T)[::-1] if reverse else range(T)
    if theta is None:
        inputs, h, a = x, initial_state, np.exp(log_forget)
    else:
        inputs, h, a = to_complex(x), to_complex(initial_state), np.exp(log_forget) * np.exp(1j * theta)
    out, before = np.zeros_like(inputs), np.zeros_like(inputs)
    for t in order:
        before[:, t] = h
        h = a[:, t] * h + inputs[:, t]
        out[:, t] = h

    def vjp(d_out, d_final):
        # For a complex h the cotangent is d/d Re h + i d/d Im h, and the loss moves by Re(conj(cotangent) * change).
        d_o, d_h = (d_out, d_final) if theta is None else (to_complex(d_out), to_complex(d_final))
        d_x, moved = np.zeros_like(inputs), np.zeros_like(inputs)  # moved: conj(cotangent) times a_t h_{t-1}
        for t in order[::-1]:
            d_h = d_h + d_o[:, t]
            d_x[:, t] = d_h
            moved[:, t] = np.conj(d_h) * a[:, t] * before[:, t]
            d_h = np.conj(a[:, t]) * d_h
        if theta is None:
            return {"x": d_x, "log_forget": moved, "initial_state": d_h}
        return {
            "x": to_pairs(d_x),
            "log_forget": moved.real,  # a moves by a d log_forget
            "theta": -moved.imag.sum((0, 1)),  # a moves by i a d theta
            "initial_state": to_pairs(d_h),
        }

    if theta is None:
        return out, h.copy(), vjp
    return to_pairs(out), to_pairs(h), vjp


# The long convolution of Hyena


def long_conv(x, filters, skip=None, history=None, *, cu_seqlens=None):
    """y_t = sum_{k < L} filters[:, k] x_{t-k} + skip x_t.

    x (B, T, D); filters (D, L), lag k at [:, k]; skip (D,); history (B, P, D): the P inputs before x, or None.
    -> out, vjp(d_out) -> dict(x, filters, skip, history)
    """
    if cu_seqlens is not None:
        assert history is None
        return _packed(lambda part: long_conv(part, filters, skip), x, cu_seqlens)
    (B, T, D), L = x.shape, filters.shape[1]
    history = np.zeros((B, 0, D), x.dtype) if history is None else history
    P = history.shape[1]
    past = np.concatenate([history, x], 1)
    out = np.zeros_like(x) if skip is None else skip * x
    # lag k, the outputs from its first one on, and the inputs these outputs meet
    lags = [(k, slice(max(0, k - P), T), slice(max(P - k, 0), P + T - k)) for k in range(min(L, P + T))]
    for k, outputs, inputs in lags:
        out[:, outputs] += filters[:, k] * past[:, inputs]

    def vjp(d_out):
        d_past, d_filters = np.zeros_like(past), np.zeros_like(filters)
        for k, outputs, inputs in lags:
            d_past[:, inputs] += filters[:, k] * d_out[:, outputs]
            d_filters[:, k] = (past[:, inputs] * d_out[:, outputs]).sum((0, 1))
        d_x = d_past[:, P:] if skip is None else d_past[:, P:] + skip * d_out
        return {"x": d_x, "filters": d_filters, "skip": (d_out * x).sum((0, 1)), "history": d_past[:, :P]}

    return out, vjp


def long_conv_two_sided(x, filters, filters_reverse, skip=None, *, cu_seqlens=None):
    """y_t = skip x_t + sum_{s <= t} filters[:, t-s] x_s + sum_{s >= t} filters_reverse[:, s-t] x_s.

    Each filter may have its own number of lags. -> out, vjp(d_out) -> dict(x, filters, filters_reverse, skip)
    """
    if cu_seqlens is not None:
        return _packed(lambda part: long_conv_two_sided(part, filters, filters_reverse, skip), x, cu_seqlens)
    T, out = x.shape[1], np.zeros_like(x) if skip is None else skip * x
    lags, lags_reverse = range(min(filters.shape[1], T)), range(min(filters_reverse.shape[1], T))
    for k in lags:
        out[:, k:] += filters[:, k] * x[:, : T - k]
    for k in lags_reverse:
        out[:, : T - k] += filters_reverse[:, k] * x[:, k:]

    def vjp(d_out):
        d_x = np.zeros_like(x) if skip is None else skip * d_out
        d_filters, d_reverse = np.zeros_like(filters), np.zeros_like(filters_reverse)
        for k in lags:
            d_x[:, : T - k] += filters[:, k] * d_out[:, k:]
            d_filters[:, k] = (x[:, : T - k] * d_out[:, k:]).sum((0, 1))
        for k in lags_reverse:
            d_x[:, k:] += filters_reverse[:, k] * d_out[:, : T - k]
            d_reverse[:, k] = (x[:, k:] * d_out[:, : T - k]).sum((0, 1))
        return {"x": d_x, "filters": d_filters, "filters_reverse": d_reverse, "skip": (d_out * x).sum((0, 1))}

    return out, vjp


def _packed(run, x, cu_seqlens):
    spans = [slice(a, b) for a, b in pairwise(cu_seqlens)]
    runs = [run(x[:, s]) for s in spans]

    def vjp(d_out):
        grads = [r[1](d_out[:, s]) for r, s in zip(runs, spans, strict=True)]
        for g in grads:
            g.pop("history", None)
        return concatenated(grads, cu_seqlens, ())

    return np.concatenate([r[0] for r in runs], 1), vjp


def long_conv_runs(length):
    """The runs of inputs that LongConvState keeps after ``length`` tokens: [(level, first token, end)], oldest first.

    n = length // C full blocks; each set bit m of n is a run of 2^m blocks, the largest level first in time.
    """
    runs, at, blocks = [], 0, length // C
    for level in reversed(range(blocks.bit_length())):
        if blocks >> level & 1:
            runs.append((level, at, at + C * 2**level))
            at += C * 2**level
    assert at == blocks * C
    return runs


def long_conv_state(x, filters):
    """What LongConvState means: the fields by name, after the inputs x (T, D) of one row since the start.

    recent (C, D): the inputs since the last full block, zeros after. inputs_m (C 2^m, D): the inputs of level m's run;
    pending_m (C 2^m, D): what they alone contribute to the C 2^m outputs right after the run's end.
    Levels that the row does not need are left out.
    -> fields, vjp(cotangents by name) -> dict(x, filters)
    """
    (T, D), runs = x.shape, long_conv_runs(len(x))
    last = T // C * C
    fields = {"length": np.array(T), "recent": np.zeros((C, D))}
    fields["recent"][: T - last] = x[last:]
    for level, start, end in runs:
        fields[f"inputs_{level}"] = x[start:end].copy()
        fields[f"pending_{level}"] = np.zeros((end - start, D))
        for k, outputs, inputs in _pending_lags(start, end, filters):
            fields[f"pending_{level}"][outputs] += filters[:, k] * x[inputs]

    def vjp(d):
        d_x, d_filters = np.zeros_like(x), np.zeros_like(filters)
        d_x[last:] += d["recent"][: T - last]
        for level, start, end in runs:
            d_x[start:end] += d[f"inputs_{level}"]
            for k, outputs, inputs in _pending_lags(start, end, filters):
                d_x[inputs] += filters[:, k] * d[f"pending_{level}"][outputs]
                d_filters[:, k] += (x[inputs] * d[f"pending_{level}"][outputs]).sum(0)
        return {"x": d_x, "filters": d_filters}

    return fields, vjp


def _pending_lags(start, end, filters):
    """Lag k, and the j for which output end + j meets at lag k an input of start .. end - 1, with these inputs."""
    size = end - start
    for k in range(1, min(filters.shape[1], 2 * size)):
        first, stop = max(0, k - size), min(size, k)
        yield k, slice(first, stop), slice(end + first - k, end + stop - k)
