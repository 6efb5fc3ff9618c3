"""RMSNorm and SwiGLU against the oracle, in values and every gradient."""

import numpy as np
import pytest
import torch

from longstream.layers import BilinearMLP, RMSNorm, SwiGLU, make_mlp
from tests import oracle
from tests.cases import load_params, rounded, to_tensor
from tests.numerics import assert_no_worse, assert_same, tensor

SHAPES = [(5,), (2, 5), (2, 3, 5), (0, 3, 5)]


def check(module, params, x, d_y, exact, exact_vjp):
    """y and the gradients of x and of every parameter."""
    module, x = load_params(module, params), tensor(x).requires_grad_()
    y = module(x)
    assert_same("y", y, exact)
    wanted = {"x": x} | dict(module.named_parameters())
    grads = torch.autograd.grad((tensor(d_y) * y).sum(), list(wanted.values()))
    exact_grads = exact_vjp(d_y)
    for name, got in zip(wanted, grads, strict=True):
        assert_same(f"d {name}", got, exact_grads[name])


@pytest.mark.parametrize("eps", [None, 1e-5, 0.5])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(shape, weight, eps):
    rng = np.random.default_rng(0)
    x, d_y = rng.standard_normal((2, *shape)) + 0.3
    params = {"weight": rng.standard_normal(5)} if weight else {}
    module = RMSNorm(5, weight=weight) if eps is None else RMSNorm(5, eps, weight=weight)
    y, vjp = oracle.norm(x, "rms" if weight else "rms_no_weight", params.get("weight"), eps=eps or 1e-6)
    check(module, params, x, d_y, y, vjp)


def test_the_default_eps_is_1e_minus_6():
    """A vector so small that eps decides its length: off by a factor of 3 were it 1e-5."""
    x = torch.full((4,), 1e-4, dtype=torch.float64)
    assert_same("y", RMSNorm(4).double()(x), np.full(4, 1e-4 / np.sqrt(1e-8 + 1e-6)))


def test_rms_norm_starts_as_ones():
    assert torch.equal(RMSNorm(5).weight, torch.ones(5))
    assert not list(RMSNorm(5, weight=False).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_in_half_precision(dtype):
    """The mean of squares is taken in float32: in float16 the square of 300 is infinite."""
    x = rounded(np.random.default_rng(0).standard_normal((3, 257)) * 300, dtype)
    weight = rounded(np.random.default_rng(1).standard_normal(257), dtype)
    module = RMSNorm(257).to(dtype)
    module.weight.data.copy_(to_tensor(weight, dtype))
    y = module(to_tensor(x, dtype))
    assert y.dtype == dtype
    exact, loop = (oracle.norm(x.astype(t), "rms", weight.astype(t), eps=1e-6)[0] for t in (np.float64, np.float32))
    assert_no_worse("y", y, loop, exact)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_swiglu(shape):
    rng = np.random.default_rng(0)
    x, d_y = rng.standard_normal((2, *shape))
    shapes = {"gate_proj.weight": (7, 5), "up_proj.weight": (7, 5), "down_proj.weight": (5, 7)}
    params = {name: rng.standard_normal(s) for name, s in shapes.items()}
    check(SwiGLU(5, 7), params, x, d_y, *oracle.swiglu(params, x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bilinear(shape):
    rng = np.random.default_rng(0)
    x, d_y = rng.standard_normal((2, *shape))
    shapes = {"gate_proj": (7, 5), "up_proj": (7, 5), "down_proj": (5, 7)}
    gate, up, down = (rng.standard_normal(s) for s in shapes.values())
    params = {f"{name}.weight": weight for name, weight in zip(shapes, (gate, up, down), strict=True)}
    a, b = x @ gate.T, x @ up.T

    def vjp(d_y):
        d_h = d_y @ down
        rows = [t.reshape(-1, t.shape[-1]) for t in (d_h * b, d_h * a, d_y, a * b, x)]
        d_a, d_b, d_out, h, u = rows
        return {
            "x": (d_h * b) @ gate + (d_h * a) @ up,
            "gate_proj.weight": d_a.T @ u,
            "up_proj.weight": d_b.T @ u,
            "down_proj.weight": d_out.T @ h,
        }

    check(BilinearMLP(5, 7), params, x, d_y, (a * b) @ down.T, vjp)


def test_mlps_by_name():
    assert isinstance(make_mlp("bilinear", 5, 7), BilinearMLP)
    with pytest.raises(ValueError, match="kind must be one of"):
        make_mlp("relu", 5, 7)
