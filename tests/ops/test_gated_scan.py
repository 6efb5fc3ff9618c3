"""gated_scan: the reference against numbers worked out by hand, every other backend against the reference in float64.

In values, final state and every gradient, real and complex, forward and in reverse. The yardstick of a lower precision
is what the reference itself loses in float32.
"""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from math import inf, pi
from typing import Any

import numpy as np
import pytest
import torch

from longstream.ops import gated_scan
from tests.cases import CU_SEQLENS, GATED_SCAN_SHAPES, GATES, backends, gated_scan_case
from tests.numerics import assert_close_each, assert_no_worse, assert_same

UNITS = ("real", "complex")
TOKENS = ("x", "log_forget")
LEFT_OVER = 67  # no chunk near the usual length divides it


@pytest.fixture(params=backends("gated_scan"))
def backend(request):
    return request.param


@pytest.fixture(params=backends("gated_scan", without=["reference"]))
def fast(request):
    """A backend that the reference can judge."""
    return request.param


@pytest.fixture(params=UNITS)
def unit(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["forward", "reverse"])
def reverse(request):
    return request.param


def run(case, backend, tensors=None, **options):
    """out, final_state and the gradients of sum(d_out * out) + sum(d_final * final_state), by name."""
    tensors = case.tensors() if tensors is None else tensors
    out, final = gated_scan(**tensors, backend=backend, **options)
    d_out, d_final = case.cotangents()
    assert (out.shape, out.dtype) == (d_out.shape, tensors["x"].dtype)
    assert (final.shape, final.dtype) == (d_final.shape, d_final.dtype)
    loss = (d_out * out).sum(dtype=case.state_dtype) + (d_final * final).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)  # zeros where there is no token
    return {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}


def answer(case, dtype=torch.float64, **options):
    """The same from the reference in float64 (exact) or float32 (the plain loop)."""
    tensors = {name: t.detach().to(dtype).requires_grad_() for name, t in case.tensors().items()}
    out, final = gated_scan(**tensors, backend="reference", **options)
    d_out, d_final = (t.to(dtype) for t in case.cotangents())
    grads = torch.autograd.grad(
        (d_out * out).sum() + (d_final * final).sum(), list(tensors.values()), materialize_grads=True
    )
    return {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}


def check(case, backend, tensors=None, **options):
    exact = answer(case, **options)
    results = run(case, backend, tensors, **options)
    if case.dtype == torch.float64:
        for name, got in results.items():
            assert_same(name, got, exact[name])
    else:
        loop = answer(case, torch.float32, **options)
        for name, got in results.items():
            assert_no_worse(name, got, loop[name], exact[name])
    return results


def column(*values):
    """(1, T, 1), or (1, T, 2, 1) from pairs."""
    return torch.tensor(values, dtype=torch.float64)[None, ..., None].requires_grad_()


def test_real_by_hand(backend):
    """Gates of 1/2 from h_0 = 4: 3, 7/2, 19/4. The weight of each token in the last state is a power of 1/2."""
    x, log_forget = column(1.0, 2.0, 3.0), column(0.5, 0.5, 0.5).log()
    state = torch.tensor([[4.0]], dtype=torch.float64, requires_grad=True)
    out, final = gated_scan(x, log_forget, state, backend=backend)
    assert_same("out", out, column(3.0, 3.5, 4.75))
    assert_same("final_state", final, [[4.75]])
    dx, dlog_forget, dstate = torch.autograd.grad(final.sum(), (x, log_forget, state))
    assert_same("d x", dx, column(0.25, 0.5, 1.0))
    assert_same("d log_forget", dlog_forget, column(0.125 * 4, 0.25 * 3, 0.5 * 3.5))
    assert_same("d initial_state", dstate, [[0.125]])


def test_reverse_by_hand(backend):
    out, final = gated_scan(
        column(1.0, 2.0, 3.0), column(0.5, 0.25, 0.125).log(), torch.full((1, 1), 8.0), reverse=True, backend=backend
    )
    assert_same("out", out, column(2.5, 3.0, 4.0))
    assert_same("final_state", final, [[2.5]])


def test_complex_by_hand(backend):
    """a = i / 2 from h_0 = 1: 1 + i/2, -1/4 + 5i/2, 7/4 - i/8. With h_3 = a^3 + a^2 + 2i a + 3, da/dtheta = i a."""
    x, log_forget = column((1.0, 0.0), (0.0, 2.0), (3.0, 0.0)), column(0.5, 0.5, 0.5).log()
    theta = torch.tensor([pi / 2], dtype=torch.float64, requires_grad=True)
    state = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64, requires_grad=True)
    out, final = gated_scan(x, log_forget, state, theta=theta, backend=backend)
    assert_same("out", out, column((1.0, 0.5), (-0.25, 2.5), (1.75, -0.125)))
    assert_same("final_state", final, [[[1.75], [-0.125]]])
    for part, dtheta, dstate in ((0, 0.375, (0.0, 0.125)), (1, -1.5, (-0.125, 0.0))):
        got = torch.autograd.grad(final[0, part, 0], (theta, state), retain_graph=True)
        assert_same("d theta", got[0], [dtheta])
        assert_same("d initial_state", got[1][0, :, 0], dstate)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", GATED_SCAN_SHAPES, ids=str)
def test_float64(fast, unit, reverse, shape, gates):
    check(gated_scan_case(*shape, unit=unit, gates=gates), fast, reverse=reverse)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", GATED_SCAN_SHAPES, ids=str)
def test_float32(fast, unit, shape, gates):
    check(gated_scan_case(*shape, unit=unit, gates=gates, dtype=torch.float32), fast)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gates", ["slow", "exact"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 257, 24)], ids=str)
def test_half_precision(fast, unit, shape, gates, dtype):
    """Half precision in and out; the state, and all arithmetic, in float32. A bf16 accumulator fails at slow gates."""
    case = gated_scan_case(*shape, unit=unit, gates=gates, dtype=dtype)
    assert check(case, fast)["final_state"].dtype == torch.float32


def test_bfloat16_with_float32_gates(fast, unit, reverse):
    """What a layer in bf16 passes: gates and angles stay float32."""
    case = gated_scan_case(2, LEFT_OVER, 8, unit=unit, gates="slow", dtype=torch.bfloat16)
    tensors = case.tensors()
    for name in {"log_forget", "theta"} & set(tensors):
        tensors[name] = tensors[name].detach().float().requires_grad_()
    check(case, fast, tensors, reverse=reverse)


@pytest.mark.parametrize("name", ["x", "log_forget", "theta", "initial_state"])
def test_one_float64_argument_makes_everything_float64(backend, name):
    case = gated_scan_case(2, LEFT_OVER, 5, unit="complex", gates="slow", dtype=torch.float32)
    tensors = {n: t.detach().to(torch.float64 if n == name else torch.float32) for n, t in case.tensors().items()}
    out, final = gated_scan(**tensors, backend=backend)
    assert (out.dtype, final.dtype) == (tensors["x"].dtype, torch.float64)
    exact = gated_scan(**{n: t.double() for n, t in tensors.items()}, backend="reference")
    assert_same("final_state", final, exact[1])


def test_slow_gates_keep_their_digits_over_20_000_steps(fast, unit):
    """Every gate the same and near 1, every angle the same: the worst case for a rounded factor.

    The plain loop in float32 is off by 1e-4 here.
    """
    case = gated_scan_case(1, 20_000, 3, unit=unit, gates="slow", dtype=torch.float32)
    case.inputs["log_forget"][:] = np.log([0.9999, 0.99985, 0.99995]).astype(np.float32)
    case.inputs["x"][..., 0] = 1
    if unit == "complex":
        case.inputs["theta"][:] = np.array([1e-4, 0.5, 3.0], dtype=np.float32)
    # Gradients from the same backend in float64, which other tests hold against the reference: its autograd takes long.
    exact = run(replace(case, dtype=torch.float64, state_dtype=torch.float64), fast)
    tensors = {name: t.detach().double() for name, t in case.tensors().items()}
    exact["out"], exact["final_state"] = gated_scan(**tensors, backend="reference")
    for name, got in run(case, fast).items():
        size = exact[name].abs().max()
        assert_same(f"{name} in parts of its largest value", got / size, exact[name] / size, 1e-5)


def test_slow_gates_keep_their_digits_step_by_step(fast, unit):
    """The same gates and angles token by token: a rounded sine would be off by 3e-5 at the end."""
    torch.manual_seed(0)
    T, D = 10_000, 3
    x = torch.randn(1, T, *([2, D] if unit == "complex" else [D]))
    log_forget = torch.tensor([0.9999, 0.99985, 0.99995]).log().expand(1, T, D)
    theta = torch.tensor([1e-4, 0.5, 3.0]) if unit == "complex" else None
    _, last = gated_scan(x, log_forget, theta=theta, backend=fast)
    state = None
    for t in range(T):
        at = slice(t, t + 1)
        _, state = gated_scan(x[:, at], log_forget[:, at], state, theta=theta, backend=fast)
    assert_same("final_state", state, last, 1e-5)


def test_blocks_of_gradients_join(unit, reverse, monkeypatch):
    """The sizes of these tests fit into one block."""
    monkeypatch.setattr(import_module("longstream.ops.gated_scan.torch"), "BLOCK", 64)
    check(gated_scan_case(2, LEFT_OVER, 5, unit=unit), "torch", reverse=reverse)


@pytest.mark.parametrize("gates", ["slow", "exact"])
def test_long(fast, unit, reverse, gates):
    check(gated_scan_case(1, 1201, 4, unit=unit, gates=gates, dtype=torch.float32), fast, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gates", ["slow", "exact"])
def test_packed(fast, unit, reverse, gates, dtype):
    """Sequences of length 0 and 1 among others, each with its own state; a zero-length one hands its state on."""
    N = len(CU_SEQLENS) - 1
    case = gated_scan_case(1, CU_SEQLENS[-1], 5, unit=unit, gates=gates, dtype=dtype, num_states=N)
    results = check(case, fast, reverse=reverse, cu_seqlens=torch.tensor(CU_SEQLENS, dtype=torch.int32))
    for n, (left, right) in enumerate(pairwise(CU_SEQLENS)):
        if left == right:
            assert torch.equal(results["final_state"][n], case.tensors()["initial_state"][n])
            assert torch.equal(results["d initial_state"][n], case.cotangents()[1][n])


@pytest.mark.parametrize("cu_seqlens", [[0, 0], [0, 0, 0, 0]], ids=str)
def test_packed_with_no_tokens(backend, unit, reverse, cu_seqlens):
    case = gated_scan_case(1, 0, 5, unit=unit, num_states=len(cu_seqlens) - 1)
    results = run(case, backend, cu_seqlens=cu_seqlens, reverse=reverse)
    assert torch.equal(results["final_state"], case.tensors()["initial_state"])
    assert torch.equal(results["d initial_state"], case.cotangents()[1])


def test_packed_equals_each_alone(backend, unit, reverse):
    """With gates of 1 too, through which nothing of a neighbor may come."""
    case = gated_scan_case(1, CU_SEQLENS[-1], 7, unit=unit, gates="exact", num_states=len(CU_SEQLENS) - 1)
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    out, final = gated_scan(**tensors, cu_seqlens=CU_SEQLENS, reverse=reverse, backend=backend)
    for n, (a, b) in enumerate(pairwise(CU_SEQLENS)):
        alone = tensors | {name: tensors[name][:, a:b] for name in TOKENS}
        alone["initial_state"] = tensors["initial_state"][n : n + 1]
        alone_out, alone_final = gated_scan(**alone, reverse=reverse, backend=backend)
        assert_same(f"out of {n}", out[:, a:b], alone_out)
        assert_same(f"final_state of {n}", final[n : n + 1], alone_final)


def test_reverse_equals_flipping(backend, unit):
    case = gated_scan_case(2, LEFT_OVER, 5, unit=unit, gates="wide")
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    out, final = gated_scan(**tensors, reverse=True, backend=backend)
    flipped = tensors | {name: tensors[name].flip(1) for name in TOKENS}
    flipped_out, flipped_final = gated_scan(**flipped, backend=backend)
    assert_same("out", out, flipped_out.flip(1))
    assert_same("final_state", final, flipped_final)


@pytest.mark.parametrize("cu_seqlens", [None, CU_SEQLENS], ids=["batch", "packed"])
def test_no_state_means_zeros(backend, unit, reverse, cu_seqlens):
    """All of out, final state and gradients."""
    B, N = (2, None) if cu_seqlens is None else (1, len(CU_SEQLENS) - 1)
    case = gated_scan_case(B, CU_SEQLENS[-1], 5, unit=unit, gates="slow", num_states=N)
    case.inputs["initial_state"] = np.zeros_like(case.inputs["initial_state"])
    exact = answer(case, cu_seqlens=cu_seqlens, reverse=reverse)
    tensors = case.tensors()
    del tensors["initial_state"]
    for name, got in run(case, backend, tensors, cu_seqlens=cu_seqlens, reverse=reverse).items():
        assert_same(name, got, exact[name])


@pytest.mark.parametrize("split", [0, 1, 32, 33, 64, 65, 100, 129, 130])
def test_split_equals_whole(backend, unit, reverse, split):
    """In two pieces with the state handed over, gradients flowing back through the state."""
    case = gated_scan_case(2, 130, 5, unit=unit, gates="slow")
    whole = run(case, backend, reverse=reverse)
    tensors, (d_out, d_final) = case.tensors(), case.cotangents()
    pieces = [slice(0, split), slice(split, 130)]
    state, outs = tensors["initial_state"], []
    for piece in pieces[::-1] if reverse else pieces:
        part = tensors | {name: tensors[name][:, piece] for name in TOKENS} | {"initial_state": state}
        out, state = gated_scan(**part, reverse=reverse, backend=backend)
        outs.append(out)
    out = torch.cat(outs[::-1] if reverse else outs, 1)
    grads = torch.autograd.grad((d_out * out).sum() + (d_final * state).sum(), list(tensors.values()))
    assert_same("out", out, whole["out"])
    assert_same("final_state", state, whole["final_state"])
    for name, got in zip(tensors, grads, strict=True):
        assert_same(f"d {name}", got, whole[f"d {name}"])


def test_token_by_token_equals_whole(backend, unit):
    case = gated_scan_case(2, 70, 5, unit=unit, gates="exact")
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    out, final = gated_scan(**tensors, backend=backend)
    state = tensors["initial_state"]
    for t in range(70):
        token: dict[str, Any] = {name: tensors[name][:, t : t + 1] for name in TOKENS}
        token = tensors | token | {"initial_state": state}
        out_t, state = gated_scan(**token, backend=backend)
        assert_same(f"out at {t}", out_t, out[:, t : t + 1])
    assert_same("final_state", state, final)


@pytest.mark.parametrize("T", [1, 20, LEFT_OVER, 128])
def test_a_gate_of_0_is_a_reset_and_its_log_has_no_gradient(backend, unit, reverse, T):
    case = gated_scan_case(2, T, 5, unit=unit, dtype=torch.float32)
    case.inputs["log_forget"][:] = -inf
    case.inputs["initial_state"][:] = 1e30
    results = run(case, backend, reverse=reverse)
    assert torch.equal(results["out"], case.tensors()["x"])
    for name in {"d log_forget", "d theta"} & set(results):
        assert torch.equal(results[name], torch.zeros_like(results[name]))


@pytest.mark.parametrize("T", [1, 20, LEFT_OVER, 128])
def test_a_gate_of_1_keeps_everything(backend, T):
    """Sums of whole numbers, exact in float32 whatever their order."""
    x = torch.randint(-100, 100, (2, T, 5)).float()
    state = torch.randint(-100, 100, (2, 5)).float()
    out, final = gated_scan(x, torch.zeros_like(x), state, backend=backend)
    assert torch.equal(out, state[:, None] + x.cumsum(1))
    assert torch.equal(final, out[:, -1])


@pytest.mark.parametrize("gates", ["slow", "exact"])
def test_angles_a_turn_apart_are_the_same(backend, gates):
    case = gated_scan_case(1, LEFT_OVER, 5, unit="complex", gates=gates)
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    for turns in (-1, 3):
        other = tensors | {"theta": tensors["theta"] + turns * 2 * pi}
        for name, a, b in zip(
            ("out", "final_state"),
            gated_scan(**tensors, backend=backend),
            gated_scan(**other, backend=backend),
            strict=True,
        ):
            assert_same(name, a, b)


def test_an_angle_of_0_is_the_real_scan(backend, reverse):
    case = gated_scan_case(2, LEFT_OVER, 5, unit="complex", gates="wide")
    case.inputs["theta"][:] = 0
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    out, final = gated_scan(**tensors, reverse=reverse, backend=backend)
    for part in (0, 1):
        real_out, real_final = gated_scan(
            tensors["x"][:, :, part],
            tensors["log_forget"],
            tensors["initial_state"][:, part],
            reverse=reverse,
            backend=backend,
        )
        assert_close_each("out", out[:, :, part], real_out, 1e-12)
        assert_close_each("final_state", final[:, part], real_final, 1e-12)


def test_rows_and_channels_do_not_mix(backend, unit):
    """A NaN stays in its channel of its row, and never goes back in time."""
    case = gated_scan_case(3, LEFT_OVER, 5, unit=unit)
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    tensors["x"][1, 40, ..., 2] = torch.nan
    out, final = gated_scan(**tensors, backend=backend)
    spoiled = torch.zeros_like(out, dtype=torch.bool)
    spoiled[1, 40:, ..., 2] = True
    assert not (out.isnan() & ~spoiled).any()
    assert out[1, 40, ..., 2].isnan().any()
    assert not final[0].isnan().any()


@pytest.mark.parametrize("layout", ["strided", "expanded"])
def test_layouts_in_memory(fast, unit, layout):
    """Every other channel of something wider, or one gate for all channels and rows."""
    case = gated_scan_case(2, LEFT_OVER, 5, unit=unit)
    if layout == "expanded":
        case.inputs["log_forget"][:] = case.inputs["log_forget"][:1, :, :1]
    tensors = {}
    for name, t in case.tensors().items():
        if layout == "expanded" and name == "log_forget":
            view = t.detach()[:1, :, :1].expand(t.shape)
        else:
            wider = torch.full((*t.shape[:-1], 3 * t.shape[-1]), torch.nan, dtype=t.dtype)
            view = wider.transpose(0, -1).contiguous().transpose(0, -1)[..., ::3]
            view.copy_(t.detach())
        assert not view.is_contiguous() or t.dim() == 1
        tensors[name] = view.requires_grad_()
    check(case, fast, tensors)


def check_derivatives(case, backend, fast_mode=False, **options):
    """First and second ones against finite differences; native refuses the second, which test_native.py looks at."""
    names, leaves = list(case.inputs), list(case.tensors().values())

    def scan(*args):
        return gated_scan(**dict(zip(names, args, strict=True)), backend=backend, **options)

    assert torch.autograd.gradcheck(scan, leaves, fast_mode=fast_mode)
    if backend != "native":
        assert torch.autograd.gradgradcheck(scan, leaves, fast_mode=fast_mode)


@pytest.mark.parametrize("T", [1, 3])
def test_first_and_second_derivatives(backend, unit, reverse, T):
    check_derivatives(gated_scan_case(1, T, 2, unit=unit, gates="fast"), backend, reverse=reverse)


def test_first_and_second_derivatives_past_a_chunk(fast, unit, reverse):
    case = gated_scan_case(1, LEFT_OVER, 2, unit=unit, gates="slow")  # so that much is carried from chunk to chunk
    check_derivatives(case, fast, fast_mode=True, reverse=reverse)


def test_first_and_second_derivatives_packed(backend, unit, reverse):
    case = gated_scan_case(1, 4, 1, unit=unit, gates="fast", num_states=3)
    check_derivatives(case, backend, cu_seqlens=[0, 1, 1, 4], reverse=reverse)


@pytest.mark.parametrize("wanted", ["out", "final_state"])
def test_gradient_of_one_output_alone(fast, unit, reverse, wanted):
    """A loss that uses only the outputs, or only the final state."""
    case = gated_scan_case(2, LEFT_OVER, 5, unit=unit, gates="fast")
    if wanted == "out":
        case.d_final = np.zeros_like(case.d_final)
    else:
        case.d_out = np.zeros_like(case.d_out)
    exact, tensors = answer(case, reverse=reverse), case.tensors()
    results = dict(zip(("out", "final_state"), gated_scan(**tensors, reverse=reverse, backend=fast), strict=True))
    cotangents = dict(zip(("out", "final_state"), case.cotangents(), strict=True))
    grads = torch.autograd.grad((cotangents[wanted] * results[wanted]).sum(), list(tensors.values()))
    for name, got in zip(tensors, grads, strict=True):
        assert_same(f"d {name}", got, exact[f"d {name}"])


@pytest.mark.parametrize("leaf", ["x", "log_forget", "theta", "initial_state"])
def test_gradient_of_one_input_alone(fast, leaf):
    """With every other input frozen."""
    case = gated_scan_case(2, LEFT_OVER, 5, unit="complex", gates="wide")
    exact = answer(case)
    tensors = {n: t.detach().requires_grad_(n == leaf) for n, t in case.tensors().items()}
    out, final = gated_scan(**tensors, backend=fast)
    d_out, d_final = case.cotangents()
    ((d_out * out).sum() + (d_final * final).sum()).backward()
    assert_same(f"d {leaf}", tensors[leaf].grad, exact[f"d {leaf}"])


def test_auto_gives_the_same(unit):
    check(gated_scan_case(2, LEFT_OVER, 5, unit=unit), "auto")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("T", [1, LEFT_OVER])
def test_compile_equals_eager(unit, T):
    """Forward and backward, in one graph."""
    case = gated_scan_case(2, T, 4, unit=unit, gates="exact", dtype=torch.float32)
    exact, loop = answer(case), answer(case, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda **tensors: gated_scan(**tensors, backend="torch"), fullgraph=True)
    tensors = case.tensors()
    out, final = compiled(**tensors)
    d_out, d_final = case.cotangents()
    grads = torch.autograd.grad((d_out * out).sum() + (d_final * final).sum(), list(tensors.values()))
    results = {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}
    for name, got in results.items():
        assert_no_worse(name, got, loop[name], exact[name])
