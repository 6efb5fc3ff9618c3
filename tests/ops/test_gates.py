"""forget_gate and lower_bounds: exact in float64, every digit in float32 wherever a gate saturates, never a NaN."""

import numpy as np
import pytest
import torch

from longstream.ops import LowerBound, forget_gate, lower_bounds
from tests import golden, oracle
from tests.cases import rounded, to_tensor
from tests.numerics import (
    FLOAT32_GAMMA_GRADIENT,
    FLOAT32_GATE,
    FLOAT32_GATE_GRADIENT,
    SAME_AS_GOLDEN,
    assert_close_each,
    assert_same,
)

KINDS = oracle.LOWER_BOUND_KINDS
GOLDEN_KINDS = {"inclusive": "inclusive_minus_first", "exclusive": "exclusive"}

# -100 .. 100 in steps without symmetry, then 0 and numbers next to it
Z = np.concatenate([np.linspace(-100, 100, 1601) + 0.013, [0.0, -1e-6, 1e-6, -1e-30, 1e-30]])

# bound and complement as lower_bounds gives them: each with its own digits, also next to 0 and next to 1
BOUNDS = {
    "small": (1e-20, 1.0),
    "tenth": (0.1, 0.9),
    "half": (0.5, 0.5),
    "high": (0.999, 1e-3),
    "one": (1 - 2**-40, 2**-40),
}


def gamma_cases():
    """The settings in which a bound from a plain cumsum breaks, and two in which it does not."""
    rng = np.random.default_rng(0)
    uniform = np.ones((6, 16))
    trained = rng.standard_normal((6, 16))
    first_tiny = rng.standard_normal((24, 64))
    first_tiny[0] = -20.0  # P_0 below one rounding of 1: a cumsum ends above 1, and log(1 - bound) is NaN
    underflow = rng.standard_normal((24, 64))
    underflow[[1, 7]] = -200.0  # exp(-200) is 0 in float32: a bound of exactly 0, or one that does not grow
    one_hot = np.full((5, 8), -300.0)
    one_hot[np.arange(8) % 5, np.arange(8)] = 300.0  # one P is 1, all others 0
    return {
        "uniform": uniform,
        "trained": trained,
        "first_tiny": first_tiny,
        "underflow": underflow,
        "one_hot": one_hot,
    }


GAMMAS = gamma_cases()


# lower_bounds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GAMMAS)
def test_lower_bounds_float64(name, kind):
    gamma, d = GAMMAS[name], np.random.default_rng(1).standard_normal((2, *GAMMAS[name].shape))
    bound, complement, vjp = oracle.lower_bounds(gamma, kind)
    leaf = torch.from_numpy(gamma.copy()).requires_grad_()
    got = lower_bounds(leaf, kind)
    assert isinstance(got, LowerBound)
    assert_same("bound", got.bound, bound)
    assert_same("complement", got.complement, complement)
    (torch.from_numpy(d[0]) * got.bound + torch.from_numpy(d[1]) * got.complement).sum().backward()
    assert_same("d gamma", leaf.grad, vjp(*d))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GAMMAS)
def test_lower_bounds_float32(name, kind):
    """Both the bound and its complement keep all their digits: neither is a difference of the other from 1."""
    gamma = rounded(GAMMAS[name], torch.float32)
    bound, complement, _ = oracle.lower_bounds(gamma, kind)
    got = lower_bounds(to_tensor(gamma, torch.float32), kind)
    assert got.bound.dtype == got.complement.dtype == torch.float32
    assert_close_each("bound", got.bound, bound, FLOAT32_GATE)
    assert_close_each("complement", got.complement, complement, FLOAT32_GATE)
    assert (got.bound[0] == 0).all()
    assert (got.complement[0] == 1).all()
    assert ((got.bound >= 0) & (got.bound <= 1)).all()
    assert ((got.complement >= 0) & (got.complement <= 1)).all()


def test_lower_bounds_of_bfloat16_are_float32():
    """A gate is never rounded to half precision."""
    gamma = GAMMAS["trained"]
    got = lower_bounds(to_tensor(gamma, torch.bfloat16))
    bound, complement, _ = oracle.lower_bounds(rounded(gamma, torch.bfloat16))
    assert got.bound.dtype == got.complement.dtype == torch.float32
    assert_close_each("bound", got.bound, bound, FLOAT32_GATE)
    assert_close_each("complement", got.complement, complement, FLOAT32_GATE)


@pytest.mark.parametrize("kind", KINDS)
def test_lower_bounds_of_one_layer(kind):
    got = lower_bounds(torch.randn(1, 4, dtype=torch.float64), kind)
    assert (got.bound == 0).all()
    assert (got.complement == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_lower_bounds_golden(kind):
    a = golden.load("hgrn_lower_bounds")
    gamma = torch.from_numpy(a["gamma"]).requires_grad_()
    bound, complement = lower_bounds(gamma, kind)
    expected = a[f"lb_{GOLDEN_KINDS[kind]}"]
    assert_same("bound", bound, expected, SAME_AS_GOLDEN)
    assert_same("complement", complement, 1 - expected, SAME_AS_GOLDEN)
    d_gamma = a[f"grad.gamma.{GOLDEN_KINDS[kind]}"]
    d = torch.from_numpy(a["dlb"])
    through_bound, through_complement = (
        torch.autograd.grad((d * t).sum(), gamma, retain_graph=True) for t in (bound, complement)
    )
    assert_same("d gamma", through_bound[0], d_gamma, SAME_AS_GOLDEN)
    assert_same("d gamma through the complement", -through_complement[0], d_gamma, SAME_AS_GOLDEN)


def test_the_default_kind_is_inclusive():
    gamma = torch.randn(4, 3)
    assert torch.equal(lower_bounds(gamma).bound, lower_bounds(gamma, "inclusive").bound)
    assert not torch.allclose(lower_bounds(gamma).bound, lower_bounds(gamma, "exclusive").bound)


def test_lower_bounds_refuses():
    with pytest.raises(ValueError, match=r"lower_bounds: .*kind.*'cumulative'"):
        lower_bounds(torch.zeros(3, 4), "cumulative")
    with pytest.raises(ValueError, match=r"lower_bounds: gamma must have shape .*got \(3,\)"):
        lower_bounds(torch.zeros(3))
    with pytest.raises((ValueError, TypeError), match=r"lower_bounds: gamma .*int64"):
        lower_bounds(torch.zeros(3, 4, dtype=torch.int64))


# forget_gate


def torch_gate(z, bound, complement, dtype):
    """log_forget, input_gate, and for each the gradients in z and (in total) in the bound, element by element.

    bound None: no bound. complement None: the bound is a plain tensor.
    """
    leaves = [to_tensor(a, dtype).requires_grad_() for a in (z, bound, complement) if a is not None]
    lower_bound = None if bound is None else leaves[1] if complement is None else LowerBound(leaves[1], leaves[2])
    values = forget_gate(leaves[0], lower_bound)
    grads = []
    for value in values:
        g = torch.autograd.grad(value.sum(), leaves, retain_graph=True, materialize_grads=True)
        grads.append({"z": g[0]})
        if bound is not None:
            grads[-1]["bound"] = g[1] if complement is None else g[1] - g[2]  # d complement = -d bound
    return values, grads


def oracle_gate(z, bound, complement):
    log_forget, k, vjp = oracle.forget_gate(z, bound, complement)
    one, zero = np.ones_like(z), np.zeros_like(z)
    return (log_forget, k), (vjp(one, zero), vjp(zero, one))


def channels(value):
    return None if value is None else np.full(len(Z), value)


@pytest.mark.parametrize("name", [None, *BOUNDS])
@pytest.mark.parametrize("given_as", ["tensor", "LowerBound"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forget_gate(name, given_as, dtype):
    """log f and 1 - f, element by element: where f is within 1e-38 of 0 or of 1, they still have their digits."""
    z = rounded(Z, dtype)
    bound, complement = (None, None) if name is None else (rounded(channels(v), dtype) for v in BOUNDS[name])
    if given_as == "tensor":
        complement = None
    got, got_grads = torch_gate(z, bound, complement, dtype)
    exact, exact_grads = oracle_gate(z, bound, complement)
    digits = FLOAT32_GATE if dtype == torch.float32 else 1e-14
    slope_digits = FLOAT32_GATE_GRADIENT if dtype == torch.float32 else 1e-13
    one_rounding = torch.finfo(dtype).eps
    for label, a, b in zip(("log_forget", "input_gate"), got, exact, strict=True):
        assert a.dtype == dtype
        # log1p(-k) where f is 1 - 1e-38 or closer may be a denormal, which has fewer digits
        assert_close_each(label, a, b, digits, torch.finfo(dtype).tiny * 4)
    for label, a, b in zip(("log_forget", "input_gate"), got_grads, exact_grads, strict=True):
        # A slow gate (z > 0) learns through slopes of 1e-9 and must have their digits; a closed one (z < 0) has slopes
        # of size one in log f, next to which a lost 1e-9 in 1 - f is one rounding.
        slow = z >= 0
        assert_close_each(f"d {label} / d z", a["z"][slow], b["z"][slow], slope_digits, torch.finfo(dtype).tiny * 4)
        assert_close_each(f"d {label} / d z", a["z"], b["z"], slope_digits, one_rounding)
        if bound is not None:
            assert torch.isfinite(a["bound"]).all()
            # z is one row, so the gradient of the bound is one number per channel
            assert_close_each(f"d {label} / d bound", a["bound"], b["bound"], slope_digits, one_rounding)


@pytest.mark.parametrize("name", [None, *BOUNDS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forget_gate_at_the_ends_of_the_number_line(name, dtype):
    """z of 1e4 and of the largest number there is: the limit, with finite gradients."""
    most = torch.finfo(dtype).max
    z = torch.tensor([-most, -1e4, -200.0, 200.0, 1e4, most], dtype=dtype, requires_grad=True)
    lower_bound, bound, complement = None, 0.0, 1.0
    if name is not None:
        lower_bound = LowerBound(*(torch.full((6,), v, dtype=dtype, requires_grad=True) for v in BOUNDS[name]))
        bound, complement = (t[0].item() for t in lower_bound)
    log_forget, k = forget_gate(z, lower_bound)
    closed = z[:3].tolist() if name is None else [np.log1p(-complement) if complement < 0.5 else np.log(bound)] * 3
    almost_zero = 1e-38 if dtype == torch.float32 else 1e-80  # f or 1 - f at z = 200 is 1e-87
    assert_close_each("log_forget", log_forget, np.array([*closed, 0.0, 0.0, 0.0]), FLOAT32_GATE, almost_zero)
    assert_close_each("input_gate", k, np.array([complement] * 3 + [0.0] * 3), FLOAT32_GATE, almost_zero)
    leaves = [z, *(lower_bound or ())]
    for value in (log_forget, k):
        for g in torch.autograd.grad(value.sum(), leaves, retain_graph=True, materialize_grads=True):
            assert torch.isfinite(g).all()
    if name is None:
        (d_z,) = torch.autograd.grad(log_forget.sum(), z, retain_graph=True)
        assert_same("d log_forget / d z", d_z, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])


def test_forget_gate_of_infinite_z():
    """A mask of -inf or +inf closes or opens the gate; nothing is NaN, neither values nor gradients."""
    z = torch.tensor([-torch.inf, torch.inf, 0.3], requires_grad=True)
    log_forget, k = forget_gate(z, torch.tensor([0.25, 0.25, 0.25]))
    assert_close_each("log_forget", log_forget[:2], [np.log(0.25), 0.0], FLOAT32_GATE)
    assert_close_each("input_gate", k[:2], [0.75, 0.0], FLOAT32_GATE)
    (log_forget.sum() + k.sum()).backward()
    assert z.grad is not None
    assert_same("d z", z.grad[:2], [0.0, 0.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GAMMAS)
def test_gamma_to_gate(name, kind):
    """From Gamma through the bounds of all layers to the gates in float32, and back: right, and never a NaN."""
    rng = np.random.default_rng(2)
    gamma = rounded(GAMMAS[name], torch.float32)
    layers, D = gamma.shape
    z, d = rounded(4 * rng.standard_normal((layers, 50, D)), torch.float32), rng.standard_normal((2, layers, 50, D))
    d = rounded(d, torch.float32)

    bounds, complements, bounds_vjp = oracle.lower_bounds(gamma, kind)
    leaf, z_leaf = to_tensor(gamma, torch.float32).requires_grad_(), to_tensor(z, torch.float32).requires_grad_()
    got = lower_bounds(leaf, kind)
    loss, d_bounds, d_z = torch.zeros(()), np.zeros_like(bounds), np.zeros_like(z)
    for n in range(layers):
        log_forget, k = forget_gate(z_leaf[n], LowerBound(got.bound[n], got.complement[n]))
        exact_log, exact_k, vjp = oracle.forget_gate(z[n], bounds[n], complements[n])
        assert_close_each(f"log_forget of layer {n}", log_forget, exact_log, FLOAT32_GATE)
        assert_close_each(f"input_gate of layer {n}", k, exact_k, FLOAT32_GATE)
        loss = loss + (to_tensor(d[0, n], torch.float32) * log_forget + to_tensor(d[1, n], torch.float32) * k).sum()
        grads = vjp(d[0, n], d[1, n])
        d_bounds[n], d_z[n] = grads["bound"], grads["z"]
    loss.backward()
    d_bounds[0] = 0  # the bound of the first layer is the number 0: it does not depend on Gamma
    exact = bounds_vjp(d_bounds, np.zeros_like(d_bounds))
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    size = np.linalg.norm(exact)
    err = np.linalg.norm(leaf.grad.double().numpy() - exact)
    assert err <= FLOAT32_GAMMA_GRADIENT * size + 1e-30, f"d gamma: {err:.1e} of {size:.1e}"
    assert z_leaf.grad is not None
    assert_close_each("d z", z_leaf.grad, d_z, FLOAT32_GATE_GRADIENT, torch.finfo(torch.float32).eps * 4)


@pytest.mark.parametrize("bounded", [True, False])
def test_forget_gate_gradcheck(bounded):
    z = (3 * torch.randn(4, 5, dtype=torch.float64)).requires_grad_()
    if not bounded:
        assert torch.autograd.gradcheck(forget_gate, z)
        return
    bound = (0.1 + 0.8 * torch.rand(5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(forget_gate, (z, bound))


@pytest.mark.parametrize("kind", KINDS)
def test_lower_bounds_gradcheck(kind):
    gamma = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: tuple(lower_bounds(g, kind)), gamma)


def test_forget_gate_of_bfloat16_is_float32():
    """1 - f of a slow gate is 0 in bf16 arithmetic; the layer depends on it not being so."""
    z = rounded(np.linspace(-30, 30, 301), torch.bfloat16)
    log_forget, k = forget_gate(to_tensor(z, torch.bfloat16), None)
    exact_log, exact_k, _ = oracle.forget_gate(z)
    assert log_forget.dtype == k.dtype == torch.float32
    assert_close_each("log_forget", log_forget, exact_log, FLOAT32_GATE)
    assert_close_each("input_gate", k, exact_k, FLOAT32_GATE)


def test_forget_gate_broadcasts_over_batch_and_time():
    z, bound = torch.randn(2, 3, 4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    log_forget, k = forget_gate(z, bound)
    exact_log, exact_k, _ = oracle.forget_gate(z.numpy(), bound.numpy())
    assert_same("log_forget", log_forget, exact_log)
    assert_same("input_gate", k, exact_k)


def test_forget_gate_refuses():
    with pytest.raises(ValueError, match=r"forget_gate: lower_bound.* must have shape .*D=4.*got \(5,\)"):
        forget_gate(torch.zeros(2, 3, 4), torch.zeros(5))
    with pytest.raises((ValueError, TypeError), match=r"forget_gate: z .*int64"):
        forget_gate(torch.zeros(2, 3, 4, dtype=torch.int64))


def test_a_bound_below_the_smallest_normal_number_still_bounds():
    """f = 1e-38 (denormal in float32) however closed the gate is; its log must not be that of a gate without bound."""
    z = torch.tensor([[-539.0], [-100.0], [-87.0]], requires_grad=True)
    bound = torch.tensor([1e-38], requires_grad=True)
    log_forget, input_gate = forget_gate(z, bound)
    exact = torch.logaddexp(torch.tensor(1e-38, dtype=torch.float64).log(), torch.nn.functional.logsigmoid(z.double()))
    torch.testing.assert_close(log_forget.double(), exact, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(log_forget.sum() + input_gate.sum(), (z, bound))
    assert all(g.isfinite().all() for g in gradients)
    assert abs(float(gradients[0][0])) < 1e-6
