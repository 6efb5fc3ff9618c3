"""gated_scan: every backend against the NumPy oracle, in values, final state and every gradient."""

from typing import Any

import numpy as np
import pytest
import torch

from longstream.ops import gated_scan
from tests.cases import CU_SEQLENS, GATES, backends, log_forget, rounded, to_tensor
from tests.numerics import assert_no_worse, assert_same, tensor
from tests.oracle_scan import gated_scan as oracle

# B, T, D: no token, one, two, no row, both sides of 64 and of several chunks of any likely size.
SHAPES = [(2, 0, 3), (1, 1, 5), (3, 2, 1), (0, 3, 2), (2, 63, 5), (1, 64, 2), (2, 65, 3), (2, 129, 4), (3, 300, 7)]
UNITS = {"real": False, "complex": True}
DIRECTIONS = {"forward": False, "reverse": True}


@pytest.fixture(params=backends("gated_scan"))
def backend(request):
    return request.param


@pytest.fixture(params=UNITS)
def pair(request):
    return UNITS[request.param]


@pytest.fixture(params=DIRECTIONS)
def reverse(request):
    return DIRECTIONS[request.param]


class Problem:
    """Inputs and cotangents, rounded to the tested dtype, and what the oracle and the library make of them."""

    def __init__(
        self, B, T, D, *, pair, gates="wide", with_state=True, cu_seqlens=None, reverse=False, dtype=torch.float64
    ):
        rng = np.random.default_rng([B, T, D, pair])
        N, two = B if cu_seqlens is None else len(cu_seqlens) - 1, (2,) if pair else ()
        self.options, self.dtype = {"reverse": reverse, "cu_seqlens": cu_seqlens}, dtype
        self.state_dtype = torch.promote_types(dtype, torch.float32)
        arrays = {"x": rng.standard_normal((B, T, *two, D)), "log_forget": log_forget(rng, gates, (B, T, D))}
        arrays |= {"theta": rng.uniform(-4, 4, D)} if pair else {}
        self.inputs = {name: rounded(array, dtype) for name, array in arrays.items()}
        if with_state:
            self.inputs["initial_state"] = rounded(rng.standard_normal((N, *two, D)), self.state_dtype)
        self.d_out = rounded(rng.standard_normal((B, T, *two, D)), dtype)
        self.d_final = rng.standard_normal((N, *two, D)).astype(np.float32).astype(np.float64)

    def exact(self, dtype: Any = np.float64):
        inputs = {name: array.astype(dtype) for name, array in self.inputs.items()}
        out, final, vjp = oracle(**inputs, **self.options)
        grads = vjp(self.d_out.astype(dtype), self.d_final.astype(dtype))
        return {"out": out, "final_state": final} | {f"d {name}": grads[name] for name in inputs}

    def tensors(self):
        return {
            name: to_tensor(a, self.state_dtype if name == "initial_state" else self.dtype).requires_grad_()
            for name, a in self.inputs.items()
        }

    def got(self, backend):
        tensors = self.tensors()
        out, final = gated_scan(**tensors, **self.options, backend=backend)
        assert out.dtype == self.dtype
        assert final.dtype == self.state_dtype
        return self.results(tensors, out, final)

    def results(self, tensors, out, final):
        d_out, d_final = to_tensor(self.d_out, self.dtype), to_tensor(self.d_final, self.state_dtype)
        loss = (d_out * out).sum(dtype=self.state_dtype) + (d_final * final).sum()
        if not loss.requires_grad:  # neither token nor state
            loss = loss + 0 * tensors["x"].sum()
        grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)
        return {"out": out, "final_state": final} | {f"d {n}": g for n, g in zip(tensors, grads, strict=True)}


def check(problem, got):
    exact = problem.exact()
    assert set(got) == set(exact)
    for name, value in got.items():
        assert_same(name, value, exact[name])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch(backend, shape, pair, reverse):
    problem = Problem(*shape, pair=pair, reverse=reverse)
    check(problem, problem.got(backend))


@pytest.mark.parametrize("gates", [gates for gates in GATES if gates != "wide"])
def test_gates(backend, gates, pair, reverse):
    """Of 0 and 1 exactly, slow ones, fast ones."""
    problem = Problem(2, 150, 4, pair=pair, gates=gates, reverse=reverse)
    check(problem, problem.got(backend))


@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize("gates", ["slow", "exact"])
def test_packed(backend, gates, with_state, pair, reverse):
    """Sequences of length 0 and 1 among others, each with its own state."""
    options = {"gates": gates, "with_state": with_state, "reverse": reverse, "cu_seqlens": CU_SEQLENS}
    problem = Problem(1, CU_SEQLENS[-1], 3, pair=pair, **options)
    check(problem, problem.got(backend))


@pytest.mark.parametrize("shape", [(2, 0, 3), (1, 1, 5), (2, 70, 3)], ids=str)
def test_no_state(backend, shape, pair, reverse):
    problem = Problem(*shape, pair=pair, with_state=False, reverse=reverse)
    check(problem, problem.got(backend))


@pytest.mark.parametrize("split", [0, 1, 63, 64, 65, 130])
def test_in_two_pieces(backend, split, pair, reverse):
    """The piece that the direction meets first hands its state to the other, and gradients come back through it."""
    problem = Problem(2, 130, 3, pair=pair, gates="slow", reverse=reverse)
    tensors = problem.tensors()
    theta = {"theta": tensors["theta"]} if pair else {}
    pieces, state, outs = [slice(0, split), slice(split, 130)], tensors["initial_state"], []
    for piece in pieces[::-1] if reverse else pieces:
        part = {"x": tensors["x"][:, piece], "log_forget": tensors["log_forget"][:, piece]}
        out, state = gated_scan(**part, initial_state=state, **theta, reverse=reverse, backend=backend)
        outs.append(out)
    out = torch.cat(outs[::-1] if reverse else outs, 1)
    check(problem, problem.results(tensors, out, state))


@pytest.mark.parametrize("gates", GATES)
def test_float32(backend, gates, pair, reverse):
    """Not worse than the plain loop in float32."""
    problem = Problem(2, 200, 3, pair=pair, gates=gates, reverse=reverse, dtype=torch.float32)
    exact, loop = problem.exact(), problem.exact(np.float32)
    for name, value in problem.got(backend).items():
        # the gradient of theta is one sum over all tokens, which another order of them may round several times worse
        assert_no_worse(name, value, loop[name], exact[name], factor=16 if name == "d theta" else 2)


def test_a_quarter_turn_is_a_change_of_parts(backend):
    """theta = pi / 2 with no decay: four tokens later an impulse is itself again, and each part has been the other."""
    x, log_forget = np.zeros((1, 9, 2, 1)), np.zeros((1, 9, 1))
    x[0, 0, 0] = 1
    out, final = gated_scan(tensor(x), tensor(log_forget), theta=tensor([np.pi / 2]), backend=backend)
    real = [1, 0, -1, 0, 1, 0, -1, 0, 1]
    assert_same("real", out[0, :, 0, 0], tensor(np.array(real, float)))
    assert_same("imaginary", out[0, :, 1, 0], tensor(np.array([0.0, *real[:-1]])))
    assert_same("final_state", final, out[:, -1])


def test_a_long_sequence(backend, pair):
    problem = Problem(1, 400 if backend == "reference" else 3000, 2, pair=pair, gates="slow")
    check(problem, problem.got(backend))
