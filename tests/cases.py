"""Inputs and cotangents in float64, rounded first to the dtype under test, so that only arithmetic is judged.

All values are signed and all sizes differ: a sum that should cancel does, and a confused stride shows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from longstream.ops import LongConvState, available_backends

# B, T, H, K, V: nothing, one token, two, and both sides of a chunk of 64 and of several.
GLA_SHAPES = [
    (2, 0, 3, 8, 5),
    (1, 1, 1, 3, 5),
    (2, 2, 3, 4, 7),
    (2, 63, 3, 8, 5),
    (1, 64, 2, 5, 9),
    (2, 65, 1, 7, 3),
    (3, 257, 2, 16, 24),
]

# B, T, D, with the same T.
GATED_SCAN_SHAPES = [(2, 0, 5), (1, 1, 3), (2, 2, 7), (2, 63, 15), (1, 64, 19), (2, 65, 13), (3, 257, 24)]

# slow: a bf16 accumulator shows at 0.998 and not at 0.88. wide: from 1e-9 to 1 - 1e-9 side by side.
# exact: gates of exactly 0 and 1, next to 1, and far below what exp can hold in float32.
GATES = ("slow", "fast", "wide", "exact")

# Zero-length sequences first, in the middle and last; length 1; one past a chunk of 64.
CU_SEQLENS = [0, 0, 5, 6, 6, 71, 80, 80]


def backends(op, without=()):
    """An op's backends as parameters of tests; one that cannot run here, such as the kernels where they are not
    compiled, is skipped and says why."""
    return [
        pytest.param(name, marks=[pytest.mark.skip(f"{name}: {refusal}")] if refusal else [])
        for name, refusal in available_backends(op).items()
        if name not in without
    ]


@dataclass
class Case:
    """inputs and cotangents are float64 arrays whose values the tested dtype can hold."""

    inputs: dict
    d_out: np.ndarray
    d_final: np.ndarray
    dtype: torch.dtype
    state_dtype: torch.dtype

    def tensors(self) -> dict[str, Any]:
        """The inputs in their dtypes, as leaves that want a gradient."""
        return {
            name: to_tensor(array, self.state_dtype if name == "initial_state" else self.dtype).requires_grad_()
            for name, array in self.inputs.items()
        }

    def arrays(self, dtype):
        """The inputs and the two cotangents as NumPy arrays: float64 for the oracle, float32 for the plain loop."""
        inputs = {name: array.astype(dtype) for name, array in self.inputs.items()}
        return inputs, self.d_out.astype(dtype), self.d_final.astype(dtype)

    def cotangents(self):
        return to_tensor(self.d_out, self.dtype), to_tensor(self.d_final, self.state_dtype)


def to_tensor(array, dtype):
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def rounded(array, dtype):
    return to_tensor(array, dtype).double().numpy()


def log_forget(rng, gates, shape):
    """Natural logs of forget gates."""
    if gates == "slow":
        return np.log1p(-0.002 * rng.uniform(0.5, 1.5, shape))
    if gates == "fast":
        return np.log(rng.uniform(0.02, 0.7, shape))
    if gates == "wide":
        return -np.logaddexp(0, rng.uniform(-20.7, 20.7, shape))  # log sigmoid: 1e-9 .. 1 - 1e-9
    if gates == "exact":
        return rng.choice([-np.inf, 0.0, 0.0, -1e-9, -1e-9, -1e-3, -0.7, -30.0, -1000.0], shape)
    raise ValueError(gates)


def gla_case(B, T, H, K, V, *, gates="wide", dtype=torch.float64, num_states=None, seed=0):
    """q, k, v, log_forget, initial_state and both cotangents; num_states: of the packed sequences, else B."""
    rng = np.random.default_rng([seed, B, T, H, K, V])
    state_dtype = torch.promote_types(dtype, torch.float32)
    state = (B if num_states is None else num_states, H, K, V)
    inputs = {name: rng.standard_normal((B, T, H, K)) for name in ("q", "k")}
    inputs |= {"v": rng.standard_normal((B, T, H, V)), "log_forget": log_forget(rng, gates, (B, T, H, K))}
    inputs = {name: rounded(array, dtype) for name, array in inputs.items()}
    inputs["initial_state"] = rounded(rng.standard_normal(state), state_dtype)
    d_out = rounded(rng.standard_normal((B, T, H, V)), dtype)
    return Case(inputs, d_out, rounded(rng.standard_normal(state), state_dtype), dtype, state_dtype)


def gated_scan_case(B, T, D, *, unit="real", gates="wide", dtype=torch.float64, num_states=None, seed=0):
    """x, log_forget, initial_state, theta if unit is "complex", and both cotangents."""
    rng = np.random.default_rng([seed, B, T, D, len(unit)])
    state_dtype = torch.promote_types(dtype, torch.float32)
    pair = (2,) if unit == "complex" else ()
    state = (B if num_states is None else num_states, *pair, D)
    inputs = {"x": rng.standard_normal((B, T, *pair, D)), "log_forget": log_forget(rng, gates, (B, T, D))}
    inputs |= {"theta": rng.uniform(-3.2, 3.2, D)} if pair else {}
    inputs = {name: rounded(array, dtype) for name, array in inputs.items()}
    inputs["initial_state"] = rounded(rng.standard_normal(state), state_dtype)
    d_out = rounded(rng.standard_normal((B, T, *pair, D)), dtype)
    return Case(inputs, d_out, rounded(rng.standard_normal(state), state_dtype), dtype, state_dtype)


def short_conv_case(B, T, D, W, *, bias=True, dtype=torch.float64, num_states=None, seed=0):
    """x, weight, bias, initial_state and both cotangents."""
    rng = np.random.default_rng([seed, B, T, D, W])
    state_dtype = torch.promote_types(dtype, torch.float32)
    state = (B if num_states is None else num_states, W - 1, D)
    inputs = {"x": rng.standard_normal((B, T, D)), "weight": rng.standard_normal((D, W))}
    inputs |= {"bias": rng.standard_normal(D)} if bias else {}
    inputs = {name: rounded(array, dtype) for name, array in inputs.items()}
    inputs["initial_state"] = rounded(rng.standard_normal(state), state_dtype)
    d_out = rounded(rng.standard_normal((B, T, D)), dtype)
    return Case(inputs, d_out, rounded(rng.standard_normal(state), state_dtype), dtype, state_dtype)


@dataclass
class LongConvCase:
    """float64 arrays whose values the tested dtype can hold; the state's are leaves of their own, not made by a filter.

    That way a pending that is made again, or not used, shows.
    """

    inputs: dict  # x, filters and, if any, skip
    lengths: list | None  # of each row of the initial state, if there is one
    state: dict  # recent, inputs_m and pending_m by name
    counts: list  # tokens of each row, or of each packed sequence
    d_out: np.ndarray
    seed: int

    def leaves(self, dtype, filter_dtype=None) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """-> the inputs by name, the initial state or None, and all of their tensors by name, which want gradients."""
        dtypes = {"filters": filter_dtype or dtype}
        inputs = {n: to_tensor(a, dtypes.get(n, dtype)).requires_grad_() for n, a in self.inputs.items()}
        if self.lengths is None:
            return inputs, None, dict(inputs)
        state_dtype = torch.promote_types(dtype, torch.float32)
        state = {name: to_tensor(array, state_dtype).requires_grad_() for name, array in self.state.items()}
        named = inputs | {f"initial {name}": tensor for name, tensor in state.items()}
        return inputs, LongConvState(torch.tensor(self.lengths), *state.values()), named

    def measure(self, named, out, final):
        """out, the final state padded with zeros, and the gradients of a sum over both with random factors, by name.

        Of a level that a row of the initial state lacks, the gradient means nothing and is left out.
        """
        after = [n + count for n, count in zip(self.lengths or [0] * len(self.counts), self.counts, strict=True)]
        assert final.length.tolist() == after
        levels = (max(after, default=0) // 64).bit_length()
        loss = (out * to_tensor(self.d_out, out.dtype)).sum(dtype=final.recent.dtype)
        values = {"out": out}
        for i, name in enumerate(("recent", *(f"{n}_{m}" for m in range(levels) for n in ("inputs", "pending")))):
            size = 64 << max(0, (i - 1) // 2)
            tensor = final[i + 1] if i + 1 < len(final) else final.recent[:, :0]
            rng = np.random.default_rng([self.seed, i])
            cotangent = rounded(rng.standard_normal((len(after), size, tensor.shape[2])), torch.bfloat16)
            loss = loss + (tensor * to_tensor(cotangent, tensor.dtype)[:, : tensor.shape[1]]).sum()
            values[f"final {name}"] = torch.nn.functional.pad(tensor, (0, 0, 0, size - tensor.shape[1]))
        assert all(tensor.numel() == 0 or not tensor.any() for tensor in final[2 + 2 * levels :])
        grads = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        for name, grad in zip(named, grads, strict=True):
            m = int(name.rpartition("_")[2]) if name.startswith(("initial inputs", "initial pending")) else None
            lacks = [m is not None and not n // 64 >> m & 1 for n in self.lengths or [0]]
            values[f"d {name}"] = grad.masked_fill(torch.tensor(lacks)[:, None, None], 0) if any(lacks) else grad
        return values


def long_conv_case(B, T, D, L, *, lengths=None, counts=None, skip=True, dtype=torch.float64, seed=0):
    """counts: of packed sequences, which make up T; lengths: of the rows of the initial state, else there is none."""
    rng = np.random.default_rng([seed, B, T, D, L])
    inputs = {"x": rng.standard_normal((B, T, D)), "filters": rng.standard_normal((D, L))}
    inputs |= {"skip": rng.standard_normal(D)} if skip else {}
    inputs = {name: rounded(array, dtype) for name, array in inputs.items()}
    state = {}
    if lengths is not None:
        n = np.array(lengths)

        def rows(size, kept):
            values = rounded(rng.standard_normal((len(n), size, D)), dtype)
            return np.where(kept[:, None, None] if kept.ndim == 1 else kept[:, :, None], values, 0)

        state["recent"] = rows(64, np.arange(64) < (n % 64)[:, None])
        for m in range((max(lengths) // 64).bit_length()):
            held = (n // 64 >> m & 1).astype(bool)
            for name in ("inputs", "pending"):
                state[f"{name}_{m}"] = rows(64 << m if held.any() else 0, held)
    d_out = rounded(rng.standard_normal((B, T, D)), dtype)
    return LongConvCase(inputs, lengths, state, [T] * B if counts is None else counts, d_out, seed)


# Every choice of the HGRN2 layer appears in at least one of these, next to different neighbors.
HGRN2_CONFIGS = {
    "defaults": {"expand_ratio": 4},
    "one_head": {"expand_ratio": 12, "query_scale": 12**-0.5},
    "official": {
        "expand_ratio": 3,
        "query_activation": "sigmoid",
        "value_activation": "silu",
        "norm": "layer",
        "bias": True,
    },
    "no_norm_weight": {"expand_ratio": 6, "norm": "rms_no_weight", "norm_eps": 1e-2, "value_activation": "silu"},
    "scaled_eps": {"expand_ratio": 4, "query_scale": -0.3, "norm_eps": 0.5, "bias": True},
    "conv": {"expand_ratio": 4, "conv_size": 4},
    "conv_bias": {"expand_ratio": 2, "conv_size": 3, "conv_bias": True, "query_activation": "sigmoid", "bias": True},
    "conv_of_one_tap": {"expand_ratio": 4, "conv_size": 1, "conv_bias": True, "norm": "layer"},
}


def hgrn2_params(hidden_size, config, rng):
    """Random parameters by name; norms around 1, everything else around 0 with gates that vary."""
    D, params = hidden_size, {}
    for name in ("q_proj", "forget_proj", "v_proj", "out_proj"):
        params[f"{name}.weight"] = rng.standard_normal((D, D)) * 2 * D**-0.5
        if config.get("bias"):
            params[f"{name}.bias"] = rng.standard_normal(D)
    if config.get("norm", "rms") != "rms_no_weight":
        params["norm.weight"] = 1 + 0.5 * rng.standard_normal(D)
    if config.get("norm") == "layer":
        params["norm.bias"] = rng.standard_normal(D)
    if config.get("conv_size", 0) > 0:
        for name in ("q_conv", "forget_conv", "v_conv"):
            params[f"{name}.weight"] = rng.standard_normal((D, config["conv_size"]))
            if config.get("conv_bias"):
                params[f"{name}.bias"] = rng.standard_normal(D)
    return params


def hgrn2_state(num, hidden_size, config, rng):
    """A random (S, conv)."""
    E, W = config["expand_ratio"], config.get("conv_size", 0)
    S = rng.standard_normal((num, hidden_size // E, E, E))
    return S, rng.standard_normal((num, max(W - 1, 0), 3 * hidden_size))


def language_model_params(vocab, hidden, intermediate, layers, mixer, rng, *, tied, lower_bound="inclusive"):
    """Random parameters of a whole LanguageModel by name."""
    params = {"embeddings.weight": rng.standard_normal((vocab, hidden))}
    params["backbone.norm.weight"] = 1 + 0.5 * rng.standard_normal(hidden)
    if lower_bound is not None:
        params["backbone.lower_bounds"] = rng.standard_normal((layers, hidden))
    if not tied:
        params["lm_head.weight"] = rng.standard_normal((vocab, hidden)) * hidden**-0.5
    for n in range(layers):
        prefix = f"backbone.layers.{n}"
        for name in ("mixer_norm", "mlp_norm"):
            params[f"{prefix}.{name}.weight"] = 1 + 0.5 * rng.standard_normal(hidden)
        params |= {f"{prefix}.mixer.{name}": a for name, a in hgrn2_params(hidden, mixer, rng).items()}
        for name, shape in (("gate", (intermediate, hidden)), ("up", (intermediate, hidden))):
            params[f"{prefix}.mlp.{name}_proj.weight"] = rng.standard_normal(shape) * hidden**-0.5
        params[f"{prefix}.mlp.down_proj.weight"] = rng.standard_normal((hidden, intermediate)) * intermediate**-0.5
    return params


def load_params(module, params):
    """Copies float64 arrays into a module, whose parameters must have exactly these names; returns it in float64."""
    module = module.double()
    own = dict(module.named_parameters())
    assert set(own) == set(params), f"missing {set(own) - set(params)}, unknown {set(params) - set(own)}"
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(to_tensor(params[name], torch.float64))
    return module
