"""How answers are compared, and the only tolerances of the tests, each with its reason.

Comparisons are written so that a NaN fails them.
"""

import numpy as np
import torch

# Two float64 computations of one number in a different order. Sums here have at most a few thousand terms of size
# one, so rounding stays below 1e-12; a wrong formula is off by far more than 1e-10.
SAME_IN_FLOAT64 = 1e-10

# Golden files were themselves checked to 1.6e-13 against a second implementation; the rest is our own order of sums.
SAME_AS_GOLDEN = 1e-10

# Finite differences of sixth order with step 2.5e-4: rounding of a loss of a few hundred costs 1e-10, and truncation
# less than 1e-8 of the slope on the most curved case (a whole model with heads of two channels).
SAME_AS_FINITE_DIFFERENCES = 1e-8

# A float32 gate is an exp, a log and a handful of products: under 32 roundings of 6e-8, wherever the gate saturates.
FLOAT32_GATE = 2e-6

# A gradient through a float32 gate is a product of a few such numbers.
FLOAT32_GATE_GRADIENT = 4e-6

# A gradient summed over all gates of many layers, judged by its norm: the errors of the terms average out.
FLOAT32_GAMMA_GRADIENT = 2e-6

# A bf16 layer, judged by its norm: inputs, projections, scan output and norm are each rounded to 8 bits (4e-3), and the
# gate's z before it enters a sigmoid; errors of a few such roundings, never of ten.
BFLOAT16_LAYER = 0.03

# Below this, float32 numbers are denormal and have fewer digits.
DENORMAL = torch.finfo(torch.float32).tiny


def tensor(array):
    """A float64 tensor (or, from a bool or int array, a bool or int64 one) with its own memory, from either library."""
    if isinstance(array, torch.Tensor):
        return array.detach().clone().to(torch.float64 if array.is_floating_point() else array.dtype)
    return torch.from_numpy(np.array(array, dtype=np.float64 if np.asarray(array).dtype.kind == "f" else None))


def assert_same(name, got, exact, tolerance=SAME_IN_FLOAT64):
    """Equal up to ``tolerance`` times the largest value, or times 1 where all are smaller."""
    got, exact = tensor(got), tensor(exact)
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    err, size = (got - exact).abs().max(), max(1.0, float(exact.abs().max()))
    assert err <= tolerance * size, f"{name}: off by {err:.1e}, allowed {tolerance:.0e} * {size:.1e}"


def assert_no_worse(name, got, loop, exact, factor=2.0, roundings=1, size=None):
    """The error of ``got`` is at most ``factor`` times what the plain loop loses, plus one rounding or a few.

    loop: the plain loop in float32, rounded once to the dtype of ``got``; exact: the loop in float64. A rounding is a
    share of ``size``, by default of the largest value.
    """
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if got.numel() == 0:
        return
    exact, loop = tensor(exact), torch.as_tensor(loop).to(got.dtype)
    err, loop_err = ((t.double() - exact).abs().max() for t in (got.detach(), loop))
    floor = roundings * torch.finfo(got.dtype).eps * (exact.abs().max() if size is None else size)
    assert err <= factor * loop_err + floor, f"{name}: {err:.1e} > {factor} * {loop_err:.1e} + {floor:.1e}"


def assert_close_each(name, got, exact, relative, absolute=DENORMAL):
    """Every element alone is within ``relative`` of its own size. By default only denormal numbers are let off."""
    got, exact = tensor(got), tensor(exact)
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    good = ((got - exact).abs() <= relative * exact.abs() + absolute) | (got == exact)  # == : both -inf
    if not good.all():
        at = tuple((~good).nonzero()[0].tolist())
        raise AssertionError(f"{name}{list(at)}: {got[at]:.9g}, expected {exact[at]:.9g}; {int((~good).sum())} wrong")
