"""The kernels' numbers against the reference in float64: no worse than twice what the plain loop in float32 loses.

Outputs, final states and every gradient, of initial states too; sizes on both sides of every vector, tile and block.
"""

import numpy as np
import pytest
import torch

from longstream.ops import _native, gated_scan, gla, long_conv, short_conv
from tests import oracle, oracle_scan
from tests.cases import GATES, gated_scan_case, gla_case, rounded, short_conv_case, to_tensor
from tests.every_op import (
    FACTORS,
    KINDS,
    LONG_CONV_FACTOR,
    ROUNDINGS,
    check,
    cotangent,
    gated_scan_sample,
    gla_sample,
    long_conv_sample,
    results,
    samples,
    short_conv_sample,
    two_sided_sample,
)
from tests.numerics import assert_no_worse, assert_same

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason=f"native: {_native.MISSING}")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LENGTHS = [0, 1, 2, 63, 64, 65, 129]
SIZES = [1, 2, 3, 5, 15, 16, 17, 31, 33, 127, 129, 255, 513]
FORGETS = [0.998, 0.9999]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "packed" not in kind])
def test_lengths(kind, T, dtype):
    check(samples(T=T, dtype=dtype)[kind]())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("g")])
def test_gates(kind, gates, dtype):
    """Slow and fast ones, ones of exactly 0 and 1, and ones from 1e-9 to 1 - 1e-9 side by side."""
    check(samples(gates=gates, dtype=dtype)[kind]())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "packed" in kind])
def test_packed(kind, dtype):
    """Sequences of no token first, in the middle and last, of one token, and past a block."""
    check(samples(dtype=dtype)[kind]())


def gla_loop(sample):
    """gla and its gradients in float32 as C would have them, every sum from first to last, which torch's are not."""
    q, k, v, log_forget, S = (tensor.float().numpy() for tensor in sample.tensors.values())
    d_out, d_S = (cotangent(name, torch.empty(array.shape)).numpy() for name, array in (("out", v), ("final_state", S)))
    f, T = np.exp(log_forget), q.shape[1]

    def total(terms, axis):
        return np.add.accumulate(terms, axis=axis).take(-1, axis=axis)

    states, out = [S], np.zeros_like(v)
    for t in range(T):
        states.append(f[:, t, :, :, None] * states[-1] + k[:, t, :, :, None] * v[:, t, :, None, :])
        out[:, t] = total(q[:, t, :, :, None] * states[-1], -2)
    grads = {f"d {name}": np.zeros_like(array) for name, array in (("q", q), ("k", k), ("v", v), ("log_forget", q))}
    for t in reversed(range(T)):
        grads["d q"][:, t] = total(states[t + 1] * d_out[:, t, :, None, :], -1)
        d_S = d_S + q[:, t, :, :, None] * d_out[:, t, :, None, :]
        grads["d k"][:, t] = total(d_S * v[:, t, :, None, :], -1)
        grads["d v"][:, t] = total(d_S * k[:, t, :, :, None], -2)
        grads["d log_forget"][:, t] = f[:, t] * total(d_S * states[t], -1)
        d_S = f[:, t, :, :, None] * d_S
    results = {"out": out, "final_state": states[-1], **grads, "d initial_state": d_S}
    return {name: torch.from_numpy(array) for name, array in results.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("K", "V"), [*zip(SIZES, SIZES[5:] + SIZES[:5], strict=True), (1, 1), (128, 128), (64, 32)])
def test_key_and_value_sizes_of_gla(K, V, dtype):
    sample = gla_sample(1 if K * V > 9000 else 2, 66, 1 if K * V > 9000 else 3, K, V, gates="slow", dtype=dtype)
    check(sample, loop=gla_loop(sample))


@pytest.mark.parametrize(("K", "V"), [(513, 3), (2, 513)])
def test_the_largest_sizes_token_by_token(K, V):
    """The step of a decoder, T = 1 from a state, in float32 and from bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        sample = gla_sample(3, 1, 2, K, V, gates="wide", dtype=dtype)
        check(sample, loop=gla_loop(sample))


def test_the_plain_loop_of_gla_is_gla():
    sample = gla_sample(2, 5, 3, 4, 7, dtype=torch.float32)
    exact = results(widen(sample), "reference")
    for name, value in gla_loop(sample).items():
        assert_same(name, value, exact[name], 1e-5)


@pytest.mark.parametrize("D", SIZES)
def test_channels(D):
    for dtype in (torch.float32, torch.float64):
        check(gated_scan_sample(2, 65, D, dtype=dtype))
        check(gated_scan_sample(2, 65, D, unit="complex", reverse=True, gates="exact", dtype=dtype))
        check(short_conv_sample(2, 65, D, 4, dtype=dtype))
        check(long_conv_sample(2, 65, D, 80, dtype=dtype))
        check(two_sided_sample(1, 65, D, 80, dtype=dtype))


@pytest.mark.parametrize("W", [1, 2, 3, 4, 5, 8, 17, 33])
def test_taps_of_short_conv(W):
    for T in (1, W - 1, 35):
        check(short_conv_sample(2, T, 19, W, dtype=torch.float32))
        check(short_conv_sample(2, T, 5, W, activation=None, bias=False, dtype=torch.float64))


@pytest.mark.parametrize("L", [1, 2, 63, 64, 65, 127, 128, 129, 513])
def test_taps_of_long_conv(L):
    for T in (1, 64, 130):
        check(long_conv_sample(2, T, 3, L, dtype=torch.float32))
        check(long_conv_sample(1, T, 2, L, lengths=[T], dtype=torch.float64))
    check(two_sided_sample(1, 130, 3, L, dtype=torch.float64))


@pytest.mark.parametrize("starts", [[0, 5], [63, 320], [64, 448], [191, 0], [1000, 130]], ids=str)
@pytest.mark.parametrize("T", [1, 3, 64, 200])
def test_rows_of_a_long_convolution_at_different_tokens(starts, T):
    sample = long_conv_sample(2, T, 6, 700, lengths=starts, dtype=torch.float64)
    exact, got = (results(sample, backend) for backend in ("reference", "native"))
    for name, value in got.items():
        if not name.startswith(("d inputs", "d pending")):  # they mean nothing for a row without the level
            assert_same(name, value, exact[name])


@pytest.mark.parametrize("forget", FORGETS)
@pytest.mark.parametrize("kind", ["gla", "gated_scan", "gated_scan complex"])
def test_slow_gates_for_10_001_tokens(kind, forget):
    """Every gate the same and near 1, signed data: what a narrow accumulator or a rounded product of gates loses."""
    T = 10_001
    if kind == "gla":
        case = gla_case(1, T, 2, 4, 3, dtype=torch.float32)
        case.inputs["log_forget"][:] = rounded(np.full((), np.log(forget)), torch.float32)
        tensors = case.tensors()
        check_against(oracle.gla, case, tensors, gla(**tensors, backend="native"))
        return
    unit = "complex" if "complex" in kind else "real"
    case = gated_scan_case(1, T, 5, unit=unit, dtype=torch.float32)
    case.inputs["log_forget"][:] = rounded(np.full((), np.log(forget)), torch.float32)
    tensors = case.tensors()
    out = gated_scan(**tensors, backend="native")
    check_against(oracle_scan.gated_scan, case, tensors, out)


def check_against(plain, case, tensors, outputs, **options):
    """Outputs and gradients of one of the cases against an op of the NumPy oracle."""
    grads = torch.autograd.grad(outputs, list(tensors.values()), case.cotangents())
    got = dict(zip(("out", "final_state", *(f"d {name}" for name in tensors)), (*outputs, *grads), strict=True))
    answers = []
    for dtype in (np.float64, np.float32):
        inputs, *d_outputs = case.arrays(dtype)
        out, final, vjp = plain(**inputs, **options)
        answers.append({"out": out, "final_state": final} | {f"d {n}": g for n, g in vjp(*d_outputs).items()})
    for name, value in got.items():
        exact, loop = (answer[name] for answer in answers)
        assert_no_worse(name, value, loop, exact, FACTORS.get(name, 2.0), ROUNDINGS)


def test_short_conv_over_10_001_tokens():
    case = short_conv_case(1, 10_001, 3, 4, dtype=torch.float32)
    tensors = case.tensors()
    out = short_conv(**tensors, activation="silu", backend="native")
    check_against(oracle.short_conv, case, tensors, out, activation="silu")


def plain_long_conv(x, filters, d_out, dtype):
    """out and both gradients, in the order of the plain loop over taps and over tokens, one channel."""
    x, h, d = (array.astype(dtype) for array in (x, filters, d_out))
    out, d_x, d_h = np.zeros_like(x), np.zeros_like(x), np.zeros_like(h)
    for k in range(min(len(h), len(x))):
        out[k:] += h[k] * x[: len(x) - k]
        d_x[: len(x) - k] += h[k] * d[k:]
    for t in range(len(x)):
        newest = min(t + 1, len(h))
        d_h[:newest] += d[t] * x[t - newest + 1 : t + 1][::-1]
    return {"out": out, "d x": d_x, "d filters": d_h}


@pytest.mark.parametrize(("T", "L"), [(10_001, 10_001), (10_001, 3000), (4096, 4096)])
def test_long_convolutions(T, L):
    rng = np.random.default_rng([T, L])
    x, d_out = (rounded(rng.standard_normal((1, T, 2)), torch.float32) for _ in range(2))
    h = rounded(rng.standard_normal((2, L)) * np.exp(-np.arange(L) / 500), torch.float32)
    x_leaf, h_leaf = (to_tensor(array, torch.float32).requires_grad_() for array in (x, h))
    out, _ = long_conv(x_leaf, h_leaf, backend="native")
    d_x, d_h = torch.autograd.grad(out, [x_leaf, h_leaf], to_tensor(d_out, torch.float32))
    for channel in range(2):
        column = x[0, :, channel], h[channel], d_out[0, :, channel]
        exact, loop = plain_long_conv(*column, np.float64), plain_long_conv(*column, np.float32)
        got = {"out": out[0, :, channel], "d x": d_x[0, :, channel], "d filters": d_h[channel]}
        for name, value in got.items():
            assert_no_worse(name, value, loop[name], exact[name], LONG_CONV_FACTOR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_states_of_half_precision_inputs_stay_wide(dtype):
    """Thousands of steps with a slow gate, of half precision in and out: a narrow accumulator would stand still."""
    T = 4000
    x = torch.full((1, T, 3), 1.0, dtype=dtype)
    log_forget = torch.full((1, T, 3), -1e-4)
    _, final = gated_scan(x, log_forget, backend="native")
    assert final.dtype == torch.float32
    exact = -np.expm1(-1e-4 * T) / -np.expm1(-1e-4)
    assert torch.allclose(final.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-4)
    k = torch.ones(1, T, 1, 3, dtype=dtype)
    _, final = gla(k, k, k, log_forget[:, :, None], backend="native")
    assert final.dtype == torch.float32
    assert torch.allclose(final.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-4)


def test_large_numbers_do_not_meet_small_ones():
    """A column of 1e30, a row of 1e-30 beside them, and resets: nothing is scaled by its neighbors."""
    sample = gla_sample(1, 70, 2, 9, 11, gates="exact", dtype=torch.float32)
    sample.tensors["v"][..., 3] *= 1e30
    sample.tensors["v"][..., 5] *= 1e-30
    got, exact = results(sample, "native"), results(widen(sample), "reference")
    for column in range(11):
        for name in ("out", "final_state", "d v"):
            a, b = got[name][..., column].double(), exact[name][..., column]
            assert (a - b).abs().max() <= 1e-5 * b.abs().max(), f"{name} of column {column}"


def widen(sample):
    return sample._replace(tensors={name: tensor.double() for name, tensor in sample.tensors.items()})


@pytest.mark.parametrize("kind", ["gla", "gated_scan", "gated_scan complex", "short_conv"])
def test_token_by_token_and_in_pieces(kind):
    """In bits or not, no worse than the plain loop: pieces of 1, 2, 3, ... tokens give what the whole gives."""
    sample = samples(T=78, dtype=torch.float64)[kind]()
    whole = sample.call(sample.tensors, "native")
    tokens = [name for name in sample.tensors if name in ("q", "k", "v", "x", "log_forget")]
    state, outs, at = sample.tensors["initial_state"], [], 0
    for size in range(1, 13):
        piece = {name: sample.tensors[name][:, at : at + size] for name in tokens}
        result = sample.call(sample.tensors | piece | {"initial_state": state}, "native")
        outs.append(result["out"])
        state, at = result["final_state"], at + size
    assert_same("out", torch.cat(outs, 1), whole["out"])
    assert_same("final_state", state, whole["final_state"])


def test_the_gradients_of_random_factors_differ_everywhere():
    """The cotangents of these tests are no zeros and no ones."""
    numbers = cotangent("out", torch.zeros(7, 9))
    assert numbers.unique().numel() > 50
    assert (numbers < 0).any()
