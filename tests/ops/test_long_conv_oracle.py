"""long_conv: every backend against the NumPy oracle: outputs, what the state means, and every gradient."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from longstream.ops import LongConvState, long_conv, long_conv_two_sided
from tests import oracle_scan
from tests.cases import CU_SEQLENS, backends
from tests.numerics import assert_same, tensor

C = oracle_scan.C
D = 3
# T, L: nothing, one token, both sides of a block and of several, more and fewer lags than tokens.
SHAPES = [(0, 4), (1, 1), (1, 9), (2, 300), (63, 64), (64, 65), (65, 3), (130, 1), (130, 200), (257, 100), (260, 300)]
SPLITS = [(0,), (1,), (63,), (64,), (65, 66), (128, 192), (200,), (30, 60, 90, 190)]


@pytest.fixture(params=backends("long_conv"))
def backend(request):
    return request.param


class Problem:
    """Rows of inputs, each with a past of its own, filters, cotangents, and the oracle's answers for each row."""

    def __init__(self, lengths, L, *, pasts=None, skip=True, seed=0):
        rng = np.random.default_rng([seed, *lengths, L])
        self.pasts = pasts or [0] * len(lengths)
        self.past = [rng.standard_normal((P, D)) for P in self.pasts]
        self.x = [rng.standard_normal((T, D)) for T in lengths]
        self.d_out = [rng.standard_normal((T, D)) for T in lengths]
        self.filters, self.skip = rng.standard_normal((D, L)), rng.standard_normal(D) if skip else None
        # the cotangent of a field of the final state, for any row: no field of a test is longer than this
        self.d_state = {f"{f}_{m}": rng.standard_normal((C * 2**m, D)) for f in ("inputs", "pending") for m in range(4)}
        self.d_state["recent"] = rng.standard_normal((C, D))

    def exact(self):
        """out and final fields of each row, and the gradients; d past is that of the tokens before x."""
        grads = {"filters": np.zeros_like(self.filters), "skip": np.zeros(D)}
        rows: dict = {"out": [], "state": [], "d x": [], "d past": []}
        for past, x, d_out in zip(self.past, self.x, self.d_out, strict=True):
            out, vjp = oracle_scan.long_conv(x[None], self.filters, self.skip, past[None])
            g = vjp(d_out[None])
            d_all = np.concatenate([g["history"][0], g["x"][0]])
            fields, state_vjp = oracle_scan.long_conv_state(np.concatenate([past, x]), self.filters)
            of_state = state_vjp({name: self.d_state[name] for name in fields if name != "length"})
            d_all = d_all + of_state["x"]
            grads["filters"] += g["filters"] + of_state["filters"]
            grads["skip"] += g["skip"]
            for name, value in (("out", out[0]), ("state", fields)):
                rows[name].append(value)
            rows["d past"].append(d_all[: len(past)])
            rows["d x"].append(d_all[len(past) :])
        if self.skip is None:
            del grads["skip"]
        return rows | {f"d {name}": g for name, g in grads.items()}

    def parameters(self) -> dict[str, Any]:
        tensors = {"filters": tensor(self.filters)} | ({} if self.skip is None else {"skip": tensor(self.skip)})
        return {name: t.requires_grad_() for name, t in tensors.items()}


def leaves(rows):
    return [tensor(row[None]).requires_grad_() for row in rows]


def state_fields(state, row):
    """The fields of one row by name, as float64 arrays."""
    assert isinstance(state, LongConvState)
    assert state._fields[:2] == ("length", "recent")
    assert state._fields[2:] == tuple(f"{f}_{m}" for m in range((len(state) - 2) // 2) for f in ("inputs", "pending"))
    assert state[0].dtype == torch.int64
    return dict(zip(state._fields, (t[row] for t in state), strict=True))


def check_state(state, row, expected):
    """Each field as documented; what this row does not need is zeros, or of no size."""
    for name, got in state_fields(state, row).items():
        want = expected.get(name, np.zeros(got.shape))
        if name != "length" and len(got) == 0:  # no row needs this
            assert name not in expected, name
        else:
            assert_same(f"state.{name} of row {row}", got, want)
    assert set(expected) <= set(state._fields)


def state_loss(problem, state):
    """sum(cotangent * field) of the final state."""
    loss = torch.zeros(())
    for name, field in list(zip(state._fields, state, strict=True))[1:]:
        if field.shape[1]:
            loss = loss + (tensor(problem.d_state[name]) * field).sum()
    return loss


def check(problem, out, state, wanted):
    """out: one tensor (1, T, D) a row; wanted: the leaves by name, "x" and "past" as one a row."""
    exact, loss = problem.exact(), state_loss(problem, state)
    for r in range(len(problem.x)):
        loss = loss + (tensor(problem.d_out[r][None]) * out[r]).sum()
        assert_same(f"out of row {r}", out[r], exact["out"][r][None])
        check_state(state, r, exact["state"][r])
    expected = {}  # by the leaf and a name for it
    for name, leaf in wanted.items():
        if isinstance(leaf, list):
            expected |= {t: (f"d {name} of row {r}", exact[f"d {name}"][r][None]) for r, t in enumerate(leaf)}
        else:
            expected[leaf] = f"d {name}", exact[f"d {name}"]
    grads = gradients(loss, list(expected))
    for (name, want), got in zip(expected.values(), grads, strict=True):
        assert_same(name, got, want)


def gradients(loss, tensors):
    """Of the loss, which without a token may depend on nothing."""
    loss = loss if loss.requires_grad else loss + 0 * tensors[0].sum()
    return torch.autograd.grad(loss, tensors, materialize_grads=True)


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no_skip"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_from_the_start(backend, shape, skip):
    """A batch of two: outputs, the documented fields of the state, and the gradients of all of them."""
    T, L = shape
    problem = Problem([T, T], L, skip=skip)
    parameters, x = problem.parameters(), leaves(problem.x)
    out, state = long_conv(torch.cat(x), **parameters, backend=backend)
    assert out.shape == (2, T, D)
    check(problem, out.split(1), state, parameters | {"x": x})


@pytest.mark.parametrize("cuts", SPLITS, ids=str)
@pytest.mark.parametrize("L", [70, 333])
def test_in_pieces(backend, cuts, L):
    """The state says the same wherever the pieces ended, and gradients come back through it to earlier pieces."""
    problem = Problem([201, 201], L)
    parameters, x = problem.parameters(), leaves(problem.x)
    outs, state = [], None
    for left, right in pairwise((0, *cuts, 201)):
        out, state = long_conv(torch.cat(x)[:, left:right], **parameters, initial_state=state, backend=backend)
        outs.append(out)
    check(problem, torch.cat(outs, 1).split(1), state, parameters | {"x": x})


def test_token_by_token(backend):
    problem = Problem([140, 140], 150)
    parameters, x = problem.parameters(), leaves(problem.x)
    outs, state = [], None
    for t in range(140):
        out, state = long_conv(torch.cat(x)[:, t : t + 1], **parameters, initial_state=state, backend=backend)
        outs.append(out)
    check(problem, torch.cat(outs, 1).split(1), state, parameters | {"x": x})


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no_skip"])
@pytest.mark.parametrize("L", [1, 50, 400])
def test_packed(backend, L, skip):
    """Sequences of length 0 and 1 among others, from the start; each leaves a state of its own length."""
    lengths = [b - a for a, b in pairwise(CU_SEQLENS)]
    problem = Problem(lengths, L, skip=skip)
    parameters, x = problem.parameters(), leaves(problem.x)
    out, state = long_conv(torch.cat(x, 1), **parameters, cu_seqlens=torch.tensor(CU_SEQLENS), backend=backend)
    check(problem, out.split(lengths, 1), state, parameters | {"x": x})


PASTS, LENGTHS = [0, 200, 64, 130, 63, 1, 255], [70, 0, 64, 62, 1, 130, 1]


@pytest.mark.parametrize("L", [50, 400])
def test_packed_after_pasts_of_different_lengths(backend, L):
    """The rows of the initial state stand at different tokens: each keeps its own count of blocks."""
    problem = Problem(LENGTHS, L, pasts=PASTS)
    parameters, x, past = problem.parameters(), leaves(problem.x), leaves(problem.past)
    bounds = [torch.tensor([0, *lengths]).cumsum(0) for lengths in (PASTS, LENGTHS)]
    _, state = long_conv(torch.cat(past, 1), **parameters, cu_seqlens=bounds[0], backend=backend)
    before = [t.detach().clone() for t in state]
    out, last = long_conv(torch.cat(x, 1), **parameters, initial_state=state, cu_seqlens=bounds[1], backend=backend)
    check(problem, out.split(LENGTHS, 1), last, parameters | {"x": x, "past": past})
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True)), "the given state was changed"


@pytest.mark.parametrize("T", [1, 3, 65])
def test_batched_after_pasts_of_different_lengths(backend, T):
    problem = Problem([T] * len(PASTS), 300, pasts=PASTS)
    parameters, x, past = problem.parameters(), leaves(problem.x), leaves(problem.past)
    bounds = torch.tensor([0, *PASTS]).cumsum(0)
    _, state = long_conv(torch.cat(past, 1), **parameters, cu_seqlens=bounds, backend=backend)
    out, last = long_conv(torch.cat(x), **parameters, initial_state=state, backend=backend)
    check(problem, out.split(1), last, parameters | {"x": x, "past": past})


@pytest.mark.parametrize("room", [0, 1], ids=["just_enough", "room_to_spare"])
def test_a_state_made_by_hand(backend, room):
    """Tensors put together from the documentation alone are a state; so are they with levels of zeros to spare."""
    problem = Problem([5, 70], 280, pasts=[190, 190])
    fields = [oracle_scan.long_conv_state(past, problem.filters)[0] for past in problem.past]
    tensors = [torch.tensor([190, 190]), tensor(np.stack([f["recent"] for f in fields]))]
    for m in range(2 + room):
        size = C * 2**m if room or f"inputs_{m}" in fields[0] else 0
        for name in (f"inputs_{m}", f"pending_{m}"):
            tensors.append(tensor(np.stack([f.get(name, np.zeros((size, D))) for f in fields])))
    state = LongConvState(*tensors)
    for row, T in enumerate((5, 70)):
        one = LongConvState(*(t[row : row + 1] for t in state))
        out, last = long_conv(
            tensor(problem.x[row][None]), tensor(problem.filters), tensor(problem.skip), one, backend=backend
        )
        exact = problem.exact()
        assert_same("out", out, exact["out"][row][None])
        check_state(last, 0, exact["state"][row])
        assert last[0].tolist() == [190 + T]


@pytest.mark.parametrize("T", [0, 1, 65])
def test_old_states_stay_valid(backend, T):
    """Two continuations of one state: neither sees the other, and the state itself is as it was."""
    problem = Problem([200], 150)
    x, filters, skip = tensor(problem.x[0][None]), tensor(problem.filters), tensor(problem.skip)
    _, state = long_conv(x[:, : 200 - T], filters, skip, backend=backend)
    before = [t.clone() for t in state]
    other, _ = long_conv(-x[:, 200 - T :], filters, skip, state, backend=backend)
    out, _ = long_conv(x[:, 200 - T :], filters, skip, state, backend=backend)
    assert_same("out", out, problem.exact()["out"][0][None, 200 - T :])
    assert T == 0 or not torch.allclose(out, other)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True)), "the given state was changed"


# The convolution that looks both ways


def two_sided(problem, cu_seqlens=None):
    """values and gradients from the oracle, and the leaves."""
    exact, vjp = oracle_scan.long_conv_two_sided(**problem["inputs"], cu_seqlens=cu_seqlens)
    return {"out": exact} | {f"d {n}": g for n, g in vjp(problem["d_out"]).items() if n in problem["inputs"]}


def two_sided_problem(B, T, L, *, skip=True):
    rng = np.random.default_rng([B, T, L])
    inputs = {"x": rng.standard_normal((B, T, D)), "filters": rng.standard_normal((D, L))}
    inputs |= {"filters_reverse": rng.standard_normal((D, L))} | ({"skip": rng.standard_normal(D)} if skip else {})
    return {"inputs": inputs, "d_out": rng.standard_normal((B, T, D))}


def check_two_sided(problem, backend, cu_seqlens=None):
    tensors = {name: tensor(a).requires_grad_() for name, a in problem["inputs"].items()}
    packed = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    out = long_conv_two_sided(**tensors, cu_seqlens=packed, backend=backend)
    loss = (tensor(problem["d_out"]) * out).sum()
    grads = gradients(loss, list(tensors.values()))
    got = {"out": out} | {f"d {name}": g for name, g in zip(tensors, grads, strict=True)}
    for name, value in two_sided(problem, cu_seqlens).items():
        assert_same(name, got[name], value)


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no_skip"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_sided(backend, shape, skip):
    check_two_sided(two_sided_problem(2, *shape, skip=skip), backend)


@pytest.mark.parametrize("L", [1, 3, 100])
def test_two_sided_packed(backend, L):
    check_two_sided(two_sided_problem(1, CU_SEQLENS[-1], L), backend, CU_SEQLENS)


# Narrow dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_inputs(backend, dtype):
    """Sums are made in float32, under autocast too: the output is rounded once to the dtype of x."""
    problem = Problem([300], 300)
    x, filters, skip = (tensor(a).to(dtype) for a in (problem.x[0][None], problem.filters, problem.skip))
    exact, _ = oracle_scan.long_conv(*(t.double().numpy() for t in (x, filters, skip)))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out, _ = long_conv(x, filters, skip, backend=backend)
        both = long_conv_two_sided(x, filters, filters, skip, backend=backend)
    exact_both, _ = oracle_scan.long_conv_two_sided(*(t.double().numpy() for t in (x, filters, filters, skip)))
    # an FFT of length 1024 loses a few roundings of the largest value, the output one more in its own dtype
    for got, want in ((out, exact), (both, exact_both)):
        assert got.dtype == dtype
        assert_same("out", got, want, 4e-6 + torch.finfo(dtype).eps)
