"""gla: every backend against the oracle, in values, final state and every gradient."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from longstream.ops import gla
from tests import cases, oracle
from tests.cases import CU_SEQLENS, GATES, GLA_SHAPES, backends, gla_case
from tests.numerics import assert_no_worse, assert_same

TOKENS = ("q", "k", "v", "log_forget")
NAMES = (*TOKENS, "initial_state")


@pytest.fixture(params=backends("gla"))
def backend(request):
    return request.param


def run(tensors, case, backend, cu_seqlens=None):
    """out, final_state and the gradients of sum(d_out * out) + sum(d_final * final_state), by name."""
    out, final = gla(**tensors, cu_seqlens=cu_seqlens, backend=backend)
    d_out, d_final = case.cotangents()
    assert out.shape == d_out.shape
    assert final.shape == d_final.shape
    assert out.dtype == tensors["v"].dtype
    assert final.dtype == d_final.dtype
    loss = (d_out * out).sum(dtype=case.state_dtype) + (d_final * final).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)  # zeros where there is no token
    return {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}


def answer(case, dtype, cu_seqlens=None):
    """The same from the oracle, in NumPy's float64 (exact) or float32 (the plain loop)."""
    inputs, d_out, d_final = case.arrays(dtype)
    out, final, vjp = oracle.gla(**inputs, cu_seqlens=cu_seqlens)
    grads = vjp(d_out, d_final)
    return {"out": out, "final_state": final} | {f"d {n}": grads[n] for n in inputs}


def packed(dtype=torch.int64):
    return torch.tensor(CU_SEQLENS, dtype=dtype)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", GLA_SHAPES, ids=str)
def test_float64(backend, shape, gates):
    case = gla_case(*shape, gates=gates)
    exact = answer(case, np.float64)
    for name, got in run(case.tensors(), case, backend).items():
        assert_same(name, got, exact[name])


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", GLA_SHAPES, ids=str)
def test_float32(backend, shape, gates):
    case = gla_case(*shape, gates=gates, dtype=torch.float32)
    exact, loop = answer(case, np.float64), answer(case, np.float32)
    for name, got in run(case.tensors(), case, backend).items():
        assert_no_worse(name, got, loop[name], exact[name])


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 3, 5), (2, 65, 1, 7, 3), (3, 257, 2, 16, 24)], ids=str)
def test_bfloat16(backend, shape, gates):
    """bf16 in and out; the state, and all arithmetic, in float32. A bf16 accumulator fails at slow gates."""
    case = gla_case(*shape, gates=gates, dtype=torch.bfloat16)
    exact, loop = answer(case, np.float64), answer(case, np.float32)
    results = run(case.tensors(), case, backend)
    assert results["final_state"].dtype == torch.float32
    for name, got in results.items():
        assert_no_worse(name, got, loop[name], exact[name])


def test_bfloat16_with_float32_gates(backend):
    """What a layer in bf16 passes: the gate and its complement stay float32."""
    case = gla_case(2, 65, 3, 8, 5, gates="slow", dtype=torch.bfloat16)
    tensors = case.tensors()
    for name in ("k", "log_forget"):
        tensors[name] = tensors[name].detach().float().requires_grad_()
    exact, loop = answer(case, np.float64), answer(case, np.float32)
    for name, got in run(tensors, case, backend).items():
        assert_no_worse(name, got, loop[name], exact[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gates", ["slow", "exact"])
def test_long(backend, gates, dtype):
    check_long(backend, 1500 if backend == "reference" else 5000, gates, dtype)


@pytest.mark.slow
def test_very_long(backend):
    if backend == "reference":
        pytest.skip("reference: autograd through 100 000 steps of a loop")
    check_long(backend, 100_000, "slow", torch.float32)


def check_long(backend, T, gates, dtype):
    case = gla_case(1, T, 2, 4, 3, gates=gates, dtype=dtype)
    exact, loop = answer(case, np.float64), answer(case, np.float32)
    for name, got in run(case.tensors(), case, backend).items():
        if dtype == torch.float64:
            assert_same(name, got, exact[name])
        else:
            assert_no_worse(name, got, loop[name], exact[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("gates", ["slow", "exact"])
def test_packed(backend, gates, index, dtype):
    """Sequences of length 0 and 1 among others, each with its own state; a zero-length one hands its state on."""
    case = gla_case(1, CU_SEQLENS[-1], 3, 8, 5, gates=gates, dtype=dtype, num_states=len(CU_SEQLENS) - 1)
    exact, loop = answer(case, np.float64, CU_SEQLENS), answer(case, np.float32, CU_SEQLENS)
    results = run(case.tensors(), case, backend, packed(index))
    for name, got in results.items():
        if dtype == torch.float64:
            assert_same(name, got, exact[name])
        else:
            assert_no_worse(name, got, loop[name], exact[name])
    assert torch.equal(results["final_state"][0], case.tensors()["initial_state"][0])
    assert torch.equal(results["d initial_state"][0], case.cotangents()[1][0])


@pytest.mark.parametrize("cu_seqlens", [[0, 0], [0, 0, 0, 0]], ids=str)
def test_packed_with_no_tokens(backend, cu_seqlens):
    case = gla_case(1, 0, 3, 8, 5, num_states=len(cu_seqlens) - 1)
    results = run(case.tensors(), case, backend, torch.tensor(cu_seqlens))
    assert torch.equal(results["final_state"], case.tensors()["initial_state"])
    assert torch.equal(results["d initial_state"], case.cotangents()[1])


def test_packed_equals_each_alone(backend):
    case = gla_case(1, CU_SEQLENS[-1], 2, 4, 7, gates="wide", num_states=len(CU_SEQLENS) - 1)
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    out, final = gla(**tensors, cu_seqlens=packed(), backend=backend)
    for n, (a, b) in enumerate(pairwise(CU_SEQLENS)):
        alone = {name: t[n : n + 1] if name == "initial_state" else t[:, a:b] for name, t in tensors.items()}
        alone_out, alone_final = gla(**alone, backend=backend)
        assert_same(f"out of {n}", out[:, a:b], alone_out)
        assert_same(f"final_state of {n}", final[n : n + 1], alone_final)


@pytest.mark.parametrize("cu_seqlens", [None, CU_SEQLENS], ids=["batch", "packed"])
def test_no_state_means_zeros(backend, cu_seqlens):
    """All of out, final state and gradients, with fast and slow gates alike."""
    B, N = (2, None) if cu_seqlens is None else (1, len(CU_SEQLENS) - 1)
    case = gla_case(B, CU_SEQLENS[-1], 3, 4, 5, gates="slow", num_states=N)
    case.inputs["initial_state"] = np.zeros_like(case.inputs["initial_state"])
    exact = answer(case, np.float64, cu_seqlens)
    tensors = case.tensors()
    del tensors["initial_state"]
    for name, got in run(tensors, case, backend, None if cu_seqlens is None else packed()).items():
        assert_same(name, got, exact[name])


@pytest.mark.parametrize("split", [0, 1, 62, 63, 64, 65, 100, 129, 130])
def test_split_equals_whole(backend, split):
    """In two pieces with the state handed over, gradients flowing back through the state."""
    case = gla_case(2, 130, 2, 5, 3, gates="slow")
    whole = run(case.tensors(), case, backend)
    tensors, (d_out, d_final) = case.tensors(), case.cotangents()
    state, outs = tensors["initial_state"], []
    for part in (slice(0, split), slice(split, 130)):
        out, state = gla(**{n: tensors[n][:, part] for n in TOKENS}, initial_state=state, backend=backend)
        outs.append(out)
    out = torch.cat(outs, 1)
    grads = torch.autograd.grad((d_out * out).sum() + (d_final * state).sum(), list(tensors.values()))
    assert_same("out", out, whole["out"])
    assert_same("final_state", state, whole["final_state"])
    for name, got in zip(tensors, grads, strict=True):
        assert_same(f"d {name}", got, whole[f"d {name}"])


def test_token_by_token_equals_whole(backend):
    case = gla_case(2, 70, 2, 5, 3, gates="exact")
    tensors = {name: t.detach() for name, t in case.tensors().items()}
    out, final = gla(**tensors, backend=backend)
    state = tensors["initial_state"]
    for t in range(70):
        out_t, state = gla(**{n: tensors[n][:, t : t + 1] for n in TOKENS}, initial_state=state, backend=backend)
        assert_same(f"out at {t}", out_t, out[:, t : t + 1])
    assert_same("final_state", state, final)


@pytest.mark.parametrize("at", [0, 1, 40, 64, 69])
@pytest.mark.parametrize("name", ["q", "k", "v", "log_forget"])
def test_a_change_never_moves_earlier_outputs(backend, name, at):
    tensors = {n: t.detach() for n, t in gla_case(2, 70, 2, 5, 3, gates="slow").tensors().items()}
    out, final = gla(**tensors, backend=backend)
    changed = {n: t.clone() for n, t in tensors.items()}
    changed[name][:, at] = -3.0 if name == "log_forget" else 1e3
    moved, moved_final = gla(**changed, backend=backend)
    assert torch.equal(moved[:, :at], out[:, :at])
    assert not torch.isclose(moved[:, at], out[:, at]).any()
    assert torch.isclose(moved_final, final).all() == (name == "q")


@pytest.mark.parametrize("row", [0, 1])
def test_rows_and_heads_do_not_mix(backend, row):
    """One row of the batch alone, and one head alone, give what they gave among others."""
    tensors = {n: t.detach() for n, t in gla_case(2, 70, 3, 5, 4, gates="wide").tensors().items()}
    out, final = gla(**tensors, backend=backend)
    row_out, row_final = gla(**{n: t[row : row + 1] for n, t in tensors.items()}, backend=backend)
    assert_same("out", row_out, out[row : row + 1])
    assert_same("final_state", row_final, final[row : row + 1])
    head = {n: t[:, 1:2] if n == "initial_state" else t[:, :, 1:2] for n, t in tensors.items()}
    head_out, head_final = gla(**head, backend=backend)
    assert_same("out", head_out, out[:, :, 1:2])
    assert_same("final_state", head_final, final[:, 1:2])


def test_inputs_are_not_changed(backend):
    case = gla_case(1, CU_SEQLENS[-1], 2, 5, 3, gates="exact", num_states=len(CU_SEQLENS) - 1)
    tensors = case.tensors()
    run(tensors, case, backend, packed())
    for name, t in case.tensors().items():
        assert torch.equal(tensors[name], t), name


@pytest.mark.parametrize("T", [1, 70])
def test_final_state_is_its_own_memory(backend, T):
    """Writing into the state that came back changes neither the one that went in nor the next call's answer."""
    tensors = {n: t.detach() for n, t in gla_case(2, T, 2, 5, 3).tensors().items()}
    before = {n: t.clone() for n, t in tensors.items()}
    out, final = gla(**tensors, backend=backend)
    kept = out.clone()
    final.fill_(7.0)
    assert torch.equal(out, kept)
    for name, t in before.items():
        assert torch.equal(tensors[name], t), name


def test_strided_inputs(backend):
    """Views of one projection, heads split from channels, are as good as contiguous tensors."""
    case = gla_case(2, 66, 3, 4, 5, gates="fast")
    exact = answer(case, np.float64)
    tensors = {}
    for name, t in case.tensors().items():
        wide = torch.full((*t.shape[:-1], 3 * t.shape[-1]), torch.nan, dtype=t.dtype)
        view = wide.transpose(0, 1).contiguous().transpose(0, 1)[..., ::3]
        view.copy_(t.detach())
        assert not view.is_contiguous()
        tensors[name] = view.requires_grad_()
    for name, got in run(tensors, case, backend).items():
        assert_same(name, got, exact[name])


@pytest.mark.parametrize("cu_seqlens", [None, [0, 2, 2, 5]], ids=["batch", "packed"])
def test_gradcheck(backend, cu_seqlens):
    B, N = (2, None) if cu_seqlens is None else (1, 3)
    case = gla_case(B, 5, 2, 3, 2, gates="fast", num_states=N)
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    assert torch.autograd.gradcheck(
        lambda *args: gla(*args, cu_seqlens=cu, backend=backend), tuple(case.tensors().values())
    )


def test_gradcheck_past_a_chunk(backend):
    case = gla_case(1, 67, 1, 2, 3, gates="fast")
    fast = {"fast_mode": True, "atol": 1e-6}
    assert torch.autograd.gradcheck(lambda *args: gla(*args, backend=backend), tuple(case.tensors().values()), **fast)


@pytest.mark.parametrize("wanted", ["out", "final_state"])
def test_gradient_of_one_output_alone(backend, wanted):
    """A loss that uses only the outputs, or only the final state."""
    case = gla_case(2, 66, 2, 3, 5, gates="fast")
    if wanted == "out":
        case.d_final = np.zeros_like(case.d_final)
    else:
        case.d_out = np.zeros_like(case.d_out)
    exact, tensors = answer(case, np.float64), case.tensors()
    out, final = gla(**tensors, backend=backend)
    d_out, d_final = case.cotangents()
    loss = (d_out * out).sum() if wanted == "out" else (d_final * final).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)
    for name, got in zip(tensors, grads, strict=True):
        assert_same(f"d {name}", got, exact[f"d {name}"])


@pytest.mark.parametrize("leaf", NAMES)
def test_gradient_of_one_input_alone(backend, leaf):
    """With every other input frozen."""
    case = gla_case(2, 66, 2, 3, 5, gates="wide")
    exact = answer(case, np.float64)
    tensors = {n: t.detach().requires_grad_(n == leaf) for n, t in case.tensors().items()}
    out, final = gla(**tensors, backend=backend)
    d_out, d_final = case.cotangents()
    ((d_out * out).sum() + (d_final * final).sum()).backward()
    assert_same(f"d {leaf}", tensors[leaf].grad, exact[f"d {leaf}"])


def test_auto_gives_the_same():
    case = gla_case(2, 66, 2, 3, 5, gates="wide")
    exact = answer(case, np.float64)
    for name, got in run(case.tensors(), case, "auto").items():
        assert_same(name, got, exact[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("fullgraph", [False, True], ids=["graph_breaks_allowed", "fullgraph"])
@pytest.mark.parametrize("T", [1, 70])
def test_compile_equals_eager(T, fullgraph):
    """Forward and backward, also where the caller wants the whole model in one graph."""
    case = gla_case(2, T, 2, 4, 3, gates="exact", dtype=torch.float32)
    exact, loop = answer(case, np.float64), answer(case, np.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda **tensors: gla(**tensors, backend="torch"), fullgraph=fullgraph)
    tensors = case.tensors()
    out, final = compiled(**tensors)
    d_out, d_final = case.cotangents()
    grads = torch.autograd.grad((d_out * out).sum() + (d_final * final).sum(), list(tensors.values()))
    results = {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}
    for name, got in results.items():
        assert_no_worse(name, got, loop[name], exact[name])


B, T, H, K, V = 2, 6, 3, 4, 5


def good():
    return {n: t.detach() for n, t in gla_case(B, T, H, K, V).tensors().items()}


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("k", (B, H, T, K), "k must have shape (B=2, T=6, H=3, K=4), got (2, 3, 6, 4)"),
        ("k", (B, T, H, V), "k must have shape (B=2, T=6, H=3, K=4), got (2, 6, 3, 5)"),
        ("v", (B, T, H + 1, V), "v must have shape (B=2, T=6, H=3, V), got (2, 6, 4, 5)"),
        ("v", (B, T, H * V), "v must have shape"),
        ("q", (T, H, K), "q must have shape"),
        ("log_forget", (B, T, H, 1), "log_forget must have shape (B=2, T=6, H=3, K=4), got (2, 6, 3, 1)"),
        ("log_forget", (B, T + 1, H, K), "log_forget must have shape (B=2, T=6, H=3, K=4), got (2, 7, 3, 4)"),
        ("initial_state", (B, H, V, K), "=2, H=3, K=4, V=5), got (2, 3, 5, 4)"),
        ("initial_state", (1, H, K, V), "=2, H=3, K=4, V=5), got (1, 3, 4, 5)"),
        ("initial_state", (H, K, V), "initial_state must have shape"),
    ],
)
def test_wrong_shape(backend, name, shape, expected):
    tensors = good() | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        gla(**tensors, backend=backend)
    assert str(error.value).startswith(f"gla: {name} must have shape")
    assert expected in str(error.value)
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128], ids=str)
def test_wrong_dtype(backend, name, dtype):
    tensors = good()
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises((ValueError, TypeError), match=rf"gla: {name} .*{str(dtype).removeprefix('torch.')}"):
        gla(**tensors, backend=backend)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_device(backend, name):
    tensors = good()
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(ValueError, match=r"gla: \w+ .*(cpu.*meta|meta.*cpu)"):
        gla(**tensors, backend=backend)


@pytest.mark.parametrize(
    ("cu_seqlens", "expected"),
    [
        (torch.tensor([1, 6]), "from 0 to T=6.* got .*1, 6"),
        (torch.tensor([0, 4, 3, 6]), "from 0 to T=6.* got .*0, 4, 3, 6"),
        (torch.tensor([0, 5]), "from 0 to T=6.* got .*0, 5"),
        (torch.tensor([0, 7]), "from 0 to T=6.* got .*0, 7"),
        (torch.tensor([0]), "from 0 to T=6.* got .*0"),
        (torch.tensor([], dtype=torch.int64), "from 0 to T=6.* got"),
        (torch.tensor([[0, 6]]), "1-D.* got"),
        (torch.tensor([0.0, 6.0]), "float"),
    ],
    ids=lambda value: str(value.tolist()) if isinstance(value, torch.Tensor) else "",
)
def test_wrong_cu_seqlens(backend, cu_seqlens, expected):
    tensors = {n: t[:1] for n, t in good().items() if n != "initial_state"}
    with pytest.raises((ValueError, TypeError), match=rf"gla: cu_seqlens .*{expected}"):
        gla(**tensors, cu_seqlens=cu_seqlens, backend=backend)


def test_cu_seqlens_wants_one_row(backend):
    tensors = good()
    del tensors["initial_state"]
    with pytest.raises(ValueError, match=r"gla: .*cu_seqlens.*(B=1|B == 1|batch).*2"):
        gla(**tensors, cu_seqlens=torch.tensor([0, 6]), backend=backend)


def test_cu_seqlens_wants_one_state_per_sequence(backend):
    tensors = {n: t[:1] for n, t in good().items()}
    with pytest.raises(
        ValueError, match=r"gla: initial_state must have shape \(N=2, H=3, K=4, V=5\), got \(1, 3, 4, 5\)"
    ):
        gla(**tensors, cu_seqlens=torch.tensor([0, 2, 6]), backend=backend)


def test_cases_reach_what_they_promise():
    """The gates of the cases: 0, 1, next to either, and slow ones."""
    exact = cases.log_forget(np.random.default_rng(0), "exact", 500)
    assert {-np.inf, 0.0, -1e-9} <= set(exact)
    forget = np.exp(cases.log_forget(np.random.default_rng(0), "wide", 500))
    assert forget.min() < 1e-8
    assert 1 - 1e-8 < forget.max() < 1
    assert np.exp(cases.log_forget(np.random.default_rng(0), "slow", 500)).min() > 0.996
