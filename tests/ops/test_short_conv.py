"""short_conv: every backend against the oracle, in values, final state and every gradient."""

import numpy as np
import pytest
import torch

from longstream.ops import short_conv
from tests import oracle
from tests.cases import CU_SEQLENS, backends, short_conv_case
from tests.numerics import assert_no_worse, assert_same

# B, T, D, W: T below, at and past W - 1; W = 1 has no state; all sizes differ.
SHAPES = [
    (2, 0, 3, 4),
    (1, 1, 5, 4),
    (2, 2, 3, 4),
    (2, 3, 5, 4),
    (3, 4, 2, 5),
    (2, 63, 3, 1),
    (2, 65, 5, 2),
    (3, 257, 4, 7),
]


# Sums of B T terms that nearly cancel: which order loses least is luck, worth up to a factor of 2 over a dozen seeds.
FACTOR = {"d weight": 4.0, "d bias": 4.0}


@pytest.fixture(params=backends("short_conv"))
def backend(request):
    return request.param


def run(tensors, case, **options):
    """out, final_state and the gradients of sum(d_out * out) + sum(d_final * final_state), by name."""
    out, final = short_conv(**tensors, **options)
    d_out, d_final = case.cotangents()
    assert out.shape == d_out.shape
    assert final.shape == d_final.shape
    assert out.dtype == tensors["x"].dtype
    assert final.dtype == d_final.dtype
    loss = (d_out * out).sum(dtype=case.state_dtype) + (d_final * final).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)
    return {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}


def answer(case, dtype, **options):
    """The same from the oracle, in NumPy's float64 (exact) or float32 (the plain loop)."""
    inputs, d_out, d_final = case.arrays(dtype)
    out, final, vjp = oracle.short_conv(**inputs, **options)
    grads = vjp(d_out, d_final)
    return {"out": out, "final_state": final} | {f"d {n}": grads[n] for n in inputs}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64(backend, shape, activation, bias):
    case = short_conv_case(*shape, bias=bias)
    exact = answer(case, np.float64, activation=activation)
    for name, got in run(case.tensors(), case, activation=activation, backend=backend).items():
        assert_same(name, got, exact[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_and_bfloat16(backend, shape, activation, dtype):
    """bf16 in and out; the state, and all arithmetic, in float32."""
    case = short_conv_case(*shape, dtype=dtype)
    exact, loop = (answer(case, kind, activation=activation) for kind in (np.float64, np.float32))
    for name, got in run(case.tensors(), case, activation=activation, backend=backend).items():
        assert_no_worse(name, got, loop[name], exact[name], FACTOR.get(name, 2.0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("W", [1, 2, 4, 8])
def test_packed(backend, W, index, activation, bias):
    """Sequences shorter than the taps, of length 0 and 1 among others: no tap looks past its own sequence."""
    case = short_conv_case(1, CU_SEQLENS[-1], 3, W, bias=bias, num_states=len(CU_SEQLENS) - 1)
    exact = answer(case, np.float64, activation=activation, cu_seqlens=CU_SEQLENS)
    options = {"activation": activation, "cu_seqlens": torch.tensor(CU_SEQLENS, dtype=index), "backend": backend}
    results = run(case.tensors(), case, **options)
    for name, got in results.items():
        assert_same(name, got, exact[name])
    assert torch.equal(results["final_state"][0], case.tensors()["initial_state"][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_float32_and_bfloat16(backend, dtype):
    case = short_conv_case(1, CU_SEQLENS[-1], 3, 4, num_states=len(CU_SEQLENS) - 1, dtype=dtype)
    exact, loop = (answer(case, kind, cu_seqlens=CU_SEQLENS) for kind in (np.float64, np.float32))
    for name, got in run(case.tensors(), case, cu_seqlens=torch.tensor(CU_SEQLENS), backend=backend).items():
        assert_no_worse(name, got, loop[name], exact[name])


def test_packed_with_no_tokens(backend):
    case = short_conv_case(1, 0, 3, 4, num_states=2)
    results = run(case.tensors(), case, cu_seqlens=torch.tensor([0, 0, 0]), backend=backend)
    assert torch.equal(results["final_state"], case.tensors()["initial_state"])
    assert torch.equal(results["d initial_state"], case.cotangents()[1])


@pytest.mark.parametrize("cu_seqlens", [None, CU_SEQLENS], ids=["batch", "packed"])
def test_no_state_means_zeros(backend, cu_seqlens):
    B, N = (2, None) if cu_seqlens is None else (1, len(CU_SEQLENS) - 1)
    case = short_conv_case(B, CU_SEQLENS[-1], 3, 4, num_states=N)
    case.inputs["initial_state"] = np.zeros_like(case.inputs["initial_state"])
    exact, tensors = answer(case, np.float64, cu_seqlens=cu_seqlens), case.tensors()
    del tensors["initial_state"]
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    for name, got in run(tensors, case, cu_seqlens=cu, backend=backend).items():
        assert_same(name, got, exact[name])


@pytest.mark.parametrize("split", [0, 1, 2, 3, 4, 10, 19, 20])
def test_split_equals_whole(backend, split):
    """In two pieces with the state handed over, gradients flowing back through the state."""
    case = short_conv_case(2, 20, 3, 4)
    exact = answer(case, np.float64, activation="silu")
    tensors, (d_out, d_final) = case.tensors(), case.cotangents()
    weights, state, outs = (tensors["weight"], tensors["bias"]), tensors["initial_state"], []
    for part in (slice(0, split), slice(split, 20)):
        out, state = short_conv(tensors["x"][:, part], *weights, state, activation="silu", backend=backend)
        outs.append(out)
    out = torch.cat(outs, 1)
    grads = torch.autograd.grad((d_out * out).sum() + (d_final * state).sum(), list(tensors.values()))
    assert_same("out", out, exact["out"])
    assert_same("final_state", state, exact["final_state"])
    for name, got in zip(tensors, grads, strict=True):
        assert_same(f"d {name}", got, exact[f"d {name}"])


@pytest.mark.parametrize("at", [0, 3, 9])
def test_a_change_never_moves_earlier_outputs(backend, at):
    tensors = {n: t.detach() for n, t in short_conv_case(2, 10, 3, 4).tensors().items()}
    out, _ = short_conv(**tensors, backend=backend)
    x = tensors["x"].clone()
    x[:, at] += 1e3
    moved, _ = short_conv(**(tensors | {"x": x}), backend=backend)
    assert torch.equal(moved[:, :at], out[:, :at])
    assert not torch.isclose(moved[:, at : at + 4], out[:, at : at + 4]).any()
    assert_same("out after the last tap", moved[:, at + 4 :], out[:, at + 4 :])


def test_inputs_are_not_changed(backend):
    case = short_conv_case(1, CU_SEQLENS[-1], 3, 4, num_states=len(CU_SEQLENS) - 1)
    tensors = case.tensors()
    run(tensors, case, activation="silu", cu_seqlens=torch.tensor(CU_SEQLENS), backend=backend)
    for name, t in case.tensors().items():
        assert torch.equal(tensors[name], t), name


@pytest.mark.parametrize("T", [1, 2, 3, 10])
def test_final_state_is_its_own_memory(backend, T):
    """A state that is a view of x would keep x alive, and change with it."""
    tensors = {n: t.detach() for n, t in short_conv_case(2, T, 3, 4).tensors().items()}
    _, final = short_conv(**tensors, backend=backend)
    kept = final.clone()
    tensors["x"].fill_(7.0)
    tensors["initial_state"].fill_(7.0)
    assert torch.equal(final, kept)


@pytest.mark.parametrize("cu_seqlens", [None, [0, 2, 2, 6]], ids=["batch", "packed"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradcheck(backend, activation, cu_seqlens):
    B, N = (2, None) if cu_seqlens is None else (1, 3)
    options = {"activation": activation, "cu_seqlens": None if cu_seqlens is None else torch.tensor(cu_seqlens)}
    inputs = tuple(short_conv_case(B, 6, 2, 3, num_states=N).tensors().values())
    assert torch.autograd.gradcheck(lambda *args: short_conv(*args, **options, backend=backend), inputs)


B, T, D, W = 2, 6, 3, 4


def good():
    return {n: t.detach() for n, t in short_conv_case(B, T, D, W).tensors().items()}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (T, D), "got (6, 3)"),
        ("weight", (D + 1, W), "(D=3, W), got (4, 4)"),
        ("weight", (D, 1, W), "(D=3, W), got (3, 1, 4)"),
        ("bias", (D + 1,), "(D=3), got (4,)"),
        ("bias", (1, D), "(D=3), got (1, 3)"),
        ("initial_state", (B, W, D), "=2, W-1=3, D=3), got (2, 4, 3)"),
        ("initial_state", (B, D, W - 1), None),  # with D = W - 1 this one would pass; here it is made to differ
        ("initial_state", (1, W - 1, D), "=2, W-1=3, D=3), got (1, 3, 3)"),
    ],
)
def test_wrong_shape(backend, name, shape, expected):
    tensors = good()
    if expected is None:
        tensors |= {"weight": torch.zeros(D, W + 1, dtype=torch.float64)}
        shape, expected = (B, D, W), "=2, W-1=4, D=3), got (2, 3, 4)"
    tensors[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        short_conv(**tensors, backend=backend)
    assert str(error.value).startswith(f"short_conv: {name} must have shape")
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_wrong_dtype(backend, name):
    tensors = good()
    tensors[name] = tensors[name].long()
    with pytest.raises((ValueError, TypeError), match=rf"short_conv: {name} .*int64"):
        short_conv(**tensors, backend=backend)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_wrong_device(backend, name):
    tensors = good()
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(ValueError, match=r"short_conv: \w+ .*(cpu.*meta|meta.*cpu)"):
        short_conv(**tensors, backend=backend)


@pytest.mark.parametrize("cu_seqlens", [[1, 6], [0, 4, 3, 6], [0, 5], [0, 7], [0]], ids=str)
def test_wrong_cu_seqlens(backend, cu_seqlens):
    x = torch.zeros(1, 6, 3)
    with pytest.raises(ValueError, match=r"short_conv: cu_seqlens .*from 0 to T=6.* got"):
        short_conv(x, torch.zeros(3, 4), cu_seqlens=torch.tensor(cu_seqlens), backend=backend)


def test_cu_seqlens_wants_one_row(backend):
    with pytest.raises(ValueError, match=r"short_conv: .*cu_seqlens.*2"):
        short_conv(torch.zeros(2, 6, 3), torch.zeros(3, 4), cu_seqlens=torch.tensor([0, 6]), backend=backend)


def test_unknown_activation(backend):
    with pytest.raises(ValueError, match=r"short_conv: .*activation.*'gelu'"):
        short_conv(**good(), activation="gelu", backend=backend)
