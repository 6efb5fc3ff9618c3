"""Modal filters: the recurrence in every way of feeding it, and how well other filters are met, as measured outside."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from longstream.layers import DistillReport, ModalFilter
from longstream.layers.modal import distill_filters, modal_conv, modal_taps
from tests.numerics import assert_same

D, M = 5, 3
LEAVES = ("x", "poles", "residues", "direct", "state")

# A distillation of an exactly modal filter: poles near 1 and L taps cost a few hundred float64 roundings.
RECOVERED = 1e-8
# The errors in a report, against the same measured here from the filter's taps in float64: rounding of sums.
SAME_ERROR = 1e-9
# A float32 step rounds the state to 6e-8 of its size; 1500 of them add up like a random walk, to 2e-6 at |pole| next to
# 1. With powers of poles taken in float32 it would be 2e-5.
FLOAT32_STREAM = 6e-6


def random_modal(rng, S, D, M, *, slowest=0.9):
    """Stable poles, one of each conjugate pair: every third is real, of either sign, and one decays slowly."""
    size, angle = rng.uniform(0.2, 0.9, (S, D, M)), rng.uniform(0, math.pi, (S, D, M))
    angle[..., 1::3] = rng.choice([0.0, math.pi], angle[..., 1::3].shape)
    size[..., 0] = slowest
    poles = size * np.exp(1j * angle)
    residues = rng.standard_normal((S, D, M)) + 1j * rng.standard_normal((S, D, M))
    return poles, residues, rng.standard_normal((S, D))


def pairs(numbers):
    return torch.from_numpy(np.stack([numbers.real, numbers.imag], -1))


def as_modal(poles, residues, direct):
    return ModalFilter(pairs(poles), pairs(residues), torch.from_numpy(direct))


def taps_of(poles, residues, direct, L):
    """h_t = Re sum R p^t by repeated multiplication."""
    taps = []
    for _ in range(L):
        taps.append(residues.sum(-1).real)
        residues = residues * poles
    taps[0] = taps[0] + direct
    return np.stack(taps, -1)


def measured(modal, filters):
    """Relative l2 errors of modal filters in their own numbers, without the library."""
    poles, residues = (torch.view_as_complex(t.double().contiguous()).numpy() for t in modal[:2])
    filters = filters.double().numpy()
    rest = np.linalg.norm(taps_of(poles, residues, modal.direct.double().numpy(), filters.shape[-1]) - filters, axis=-1)
    size = np.linalg.norm(filters, axis=-1)
    return rest / np.where(size > 0, size, 1)


def problem(B=2, T=9, *, num_states=None, dtype=torch.float64, slowest=0.999) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng([B, T])
    poles, residues, direct = random_modal(rng, 1, D, M, slowest=slowest)
    leaves = {
        "x": torch.from_numpy(rng.standard_normal((B, T, D))),
        "poles": pairs(poles[0]),
        "residues": pairs(residues[0]),
        "direct": torch.from_numpy(direct[0]),
        "state": torch.from_numpy(rng.standard_normal((num_states or B, D, M, 2))),
    }
    cotangents = torch.from_numpy(rng.standard_normal((B, T, D))), torch.randn_like(leaves["state"])
    return {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}, cotangents


def results(leaves, cotangents, y, state):
    loss = (y * cotangents[0]).sum() + (state * cotangents[1]).sum()
    grads = torch.autograd.grad(loss, [leaves[name] for name in LEAVES], materialize_grads=True)
    return {"y": y, "state": state} | {f"d {name}": grad for name, grad in zip(LEAVES, grads, strict=True)}


def by_sum(x, poles, residues, direct, state):
    """The sum over all pairs of tokens, and the state by the sum of its definition."""
    poles, residues, state = (torch.view_as_complex(t) for t in (poles, residues, state))
    T = x.shape[1]
    y = []
    for t in range(T):
        total = direct * x[:, t] + (residues * poles ** (t + 1) * state).sum(-1).real
        for s in range(t + 1):
            total = total + (residues * poles ** (t - s)).sum(-1).real * x[:, s]
        y.append(total)
    state = poles**T * state
    for t in range(T):
        state = state + poles ** (T - 1 - t) * x[:, t, :, None]
    return torch.stack(y, 1) if y else x, torch.view_as_real(state)


def check(got, exact):
    for name, value in exact.items():
        assert_same(name, got[name], value)


@pytest.mark.parametrize("T", [0, 1, 2, 31, 32, 33, 70])
def test_conv_is_the_sum(T):
    """Nothing, one step, and both sides of a block and of several."""
    leaves, cotangents = problem(T=T)
    exact = results(leaves, cotangents, *by_sum(**leaves))
    check(results(leaves, cotangents, *modal_conv(**leaves)), exact)


@pytest.mark.parametrize("cut", [0, 1, 32, 40, 69, 70])
def test_split_anywhere(cut):
    leaves, cotangents = problem(T=70)
    x, poles, residues, direct, state = leaves.values()
    left, state = modal_conv(x[:, :cut], poles, residues, direct, state)
    right, state = modal_conv(x[:, cut:], poles, residues, direct, state)
    exact = results(leaves, cotangents, *modal_conv(**leaves))
    check(results(leaves, cotangents, torch.cat([left, right], 1), state), exact)


def test_token_by_token():
    leaves, cotangents = problem(T=40)
    x, poles, residues, direct, state = leaves.values()
    outs, given = [], state.detach().clone()
    for t in range(x.shape[1]):
        y, state = modal_conv(x[:, t : t + 1], poles, residues, direct, state)
        outs.append(y)
    check(results(leaves, cotangents, torch.cat(outs, 1), state), results(leaves, cotangents, *modal_conv(**leaves)))
    assert torch.equal(leaves["state"], given)


@pytest.mark.parametrize("bounds", [[0, 0, 5, 6, 6, 71, 80, 112, 112], [0, 3], [0, 0, 1, 1], [0, 0]], ids=str)
def test_packed(bounds):
    """Each sequence from its own state: empty ones, one token, whole blocks, blocks and a rest."""
    leaves, cotangents = problem(B=1, T=bounds[-1], num_states=len(bounds) - 1)
    x, poles, residues, direct, state = leaves.values()
    parts = [
        modal_conv(x[:, a:b], poles, residues, direct, state[n : n + 1]) for n, (a, b) in enumerate(pairwise(bounds))
    ]
    exact = results(leaves, cotangents, torch.cat([y for y, _ in parts], 1), torch.cat([s for _, s in parts]))
    for cu_seqlens in (bounds, torch.tensor(bounds)):
        check(results(leaves, cotangents, *modal_conv(**leaves, cu_seqlens=cu_seqlens)), exact)


def test_groups_of_blocks(monkeypatch):
    """Long sequences are worked on some blocks at a time."""
    leaves, cotangents = problem(B=1, T=200, num_states=4)
    bounds = [0, 150, 150, 160, 200]
    exact = results(leaves, cotangents, *modal_conv(**leaves, cu_seqlens=bounds))
    monkeypatch.setattr("longstream.layers._modal_conv.GROUP_ELEMENTS", 1)
    check(results(leaves, cotangents, *modal_conv(**leaves, cu_seqlens=bounds)), exact)


def test_no_state_is_zeros():
    leaves, _ = problem(T=40)
    leaves["state"] = torch.zeros_like(leaves["state"])
    for got, exact in zip(modal_conv(**(leaves | {"state": None})), modal_conv(**leaves), strict=True):  # type: ignore[arg-type]
        assert torch.equal(got, exact)


def test_float32_stream():
    leaves, _ = problem(T=1500, dtype=torch.float32, slowest=0.99999)
    wide = {name: leaf.detach().double() for name, leaf in leaves.items()}
    exact_y, exact_state = modal_conv(**wide)
    with torch.no_grad():
        y, state = modal_conv(**leaves)
        assert y.dtype == state.dtype == torch.float32
        assert_same("y at once", y, exact_y, FLOAT32_STREAM)
        assert_same("state at once", state, exact_state, FLOAT32_STREAM)
        outs, (x, poles, residues, direct, state) = [], leaves.values()
        for x_t in x.split(1, 1):
            out, state = modal_conv(x_t, poles, residues, direct, state)
            outs.append(out)
    assert_same("y by steps", torch.cat(outs, 1), exact_y, FLOAT32_STREAM)
    assert_same("state by steps", state, exact_state, FLOAT32_STREAM)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("T", [1, 70])
def test_half_precision_keeps_wide_states(T, autocast):
    leaves, _ = problem(T=T, dtype=torch.float32)
    leaves["x"] = leaves["x"].bfloat16()
    exact_y, exact_state = modal_conv(**leaves | {"x": leaves["x"].float()})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, state = modal_conv(**leaves)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, exact_y.bfloat16())
    assert torch.equal(state, exact_state)


@pytest.mark.parametrize("T", [0, 1, 2, 3, 4, 5, 16, 17, 100])
def test_taps(T):
    modal = random_modal(np.random.default_rng(T), 2, D, M, slowest=0.999)
    assert_same("taps", modal_taps(as_modal(*modal), T), taps_of(*modal, T) if T else np.zeros((2, D, 0)))


def test_conv_of_an_impulse_gives_the_taps():
    modal = as_modal(*random_modal(np.random.default_rng(0), 1, D, M))
    impulse = torch.zeros(1, 50, D, dtype=torch.float64)
    impulse[:, 0] = 1
    y, _ = modal_conv(impulse, *(t[0] for t in modal))
    assert_same("taps", y[0].T, modal_taps(modal, 50)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 6)}, r"modal_conv: poles must have shape \(D=6, M, pair=2\), got \(5, 3, 2\)"),
        ({"poles": torch.zeros(5, 3, 3)}, r"poles must have shape \(D=5, M, pair=2\), got \(5, 3, 3\)"),
        ({"residues": torch.zeros(5, 4, 2)}, r"residues must have shape \(D=5, M=3, pair=2\), got \(5, 4, 2\)"),
        ({"direct": torch.zeros(4)}, r"direct must have shape \(D=5\), got \(4,\)"),
        ({"state": torch.zeros(1, 5, 3, 2)}, r"state must have shape \(N=2, D=5, M=3, pair=2\), got \(1, 5, 3, 2\)"),
        ({"cu_seqlens": [0, 4]}, "cu_seqlens needs one packed row, batch size 1, got batch size 2"),
    ],
)
def test_conv_refuses(change, message):
    leaves, _ = problem(T=4, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        modal_conv(**leaves | change)


@pytest.mark.parametrize("L", [60, 200, 2500])
@pytest.mark.parametrize("order", [1, 2, 3, 8])
def test_modal_filters_are_recovered(order, L):
    """Real poles of both signs, complex ones, one next to the circle; short, and too long for all taps to be used."""
    modal = random_modal(np.random.default_rng([order, L]), 2, 3, order, slowest=0.999)
    filters = torch.from_numpy(taps_of(*modal, L))
    fitted, report = distill_filters(filters, order)
    assert fitted.poles.shape == fitted.residues.shape == (2, 3, order, 2)
    assert fitted.direct.shape == (2, 3)
    assert measured(fitted, filters).max() < RECOVERED
    assert report.error < RECOVERED
    assert report.next_singular_value < RECOVERED
    if order > 1:
        assert distill_filters(filters, order - 1)[1].error > 100 * RECOVERED  # so that the rest had something to do


def test_more_modes_than_there_are():
    modal = random_modal(np.random.default_rng(0), 1, 4, 2)
    filters = torch.from_numpy(taps_of(*modal, 200))
    fitted, report = distill_filters(filters, 6)
    assert report.error < RECOVERED
    assert fitted.residues.abs().max() < 100


def hyena_like(rng, D, L, bands, decay=4.0):
    """Smooth filters: a few cosines under a decaying window."""
    t = np.arange(L) / L
    waves = np.cos(2 * np.pi * np.arange(bands)[:, None] * t + rng.uniform(0, 6, (bands, 1)))
    return torch.from_numpy(np.exp(-decay * t) * (rng.standard_normal((D, bands)) @ waves))[None]


def noise(D, L, S=1):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((S, D, L)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 3, 16, 40])
def test_report_is_what_the_filters_do(order, dtype):
    """Errors, the largest pole and the dtype, for filters that cannot be met."""
    smooth = hyena_like(np.random.default_rng(0), 3, 150, 30)
    filters = torch.cat([noise(3, 150), 1e3 * noise(3, 150) + 1e3, 1e-6 * smooth]).to(dtype)
    fitted, report = distill_filters(filters, order)
    errors = torch.from_numpy(measured(fitted, filters))
    assert_same("errors", report.errors, errors, SAME_ERROR)
    assert report.error == report.errors.max()
    size = fitted.poles.double().norm(dim=-1)
    assert size.max() <= 1
    assert report.largest_pole == size.max()
    assert all(part.dtype == dtype for part in fitted)
    taps, norm = modal_taps(ModalFilter(*(part.double() for part in fitted)), 150), filters.double().norm(dim=-1)
    assert_same("errors", (taps - filters.double()).norm(dim=-1) / norm, errors, SAME_ERROR)
    assert_same("h_0", taps[..., 0] / norm, filters[..., 0].double() / norm, 1e-4)


def test_growing_filters_get_stable_poles():
    filters = torch.exp(0.02 * torch.arange(200, dtype=torch.float64)) * torch.tensor([[[1.0], [-2.0]]])
    fitted, _ = distill_filters(filters, 4)
    assert fitted.poles.norm(dim=-1).max() <= 1


def test_better_than_nothing_and_better_with_more_modes():
    filters = hyena_like(np.random.default_rng(1), 4, 300, 12)
    errors = [distill_filters(filters, order)[1].error for order in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1
    assert errors[-1] < 1e-3


def test_next_singular_value():
    """sigma_{2M+1} of a Hankel matrix bounds from below how far any filter of M modes stays from it."""
    filters = hyena_like(np.random.default_rng(2), 1, 101, 10)
    h = filters[0, 0].numpy()
    hankel = np.array([[h[1 + i + j] for j in range(50)] for i in range(50)])
    sigma = np.linalg.svd(hankel, compute_uv=False)
    for order in (1, 2, 5):
        fitted, report = distill_filters(filters, order)
        assert_same("sigma", report.next_singular_value, sigma[2 * order] / sigma[0])
        rest = h - modal_taps(fitted, 101)[0, 0].numpy()
        distance = np.linalg.norm([[rest[1 + i + j] for j in range(50)] for i in range(50)], 2)
        assert distance >= sigma[2 * order] * (1 - 1e-9)
        assert report.next_singular_value > 1e-3  # or the bound says nothing


def test_tolerance_takes_the_smallest_order():
    filters = hyena_like(np.random.default_rng(3), 6, 300, 12)
    chosen = []
    for tol in (0.5, 0.1, 1e-2, 1e-3, 1e-6):
        fitted, report = distill_filters(filters, tol=tol)
        assert measured(fitted, filters).max() <= tol
        assert report.order == fitted.poles.shape[2]
        assert report.order in (1, 2, 4, 8, 16, 32, 64, 128)
        if report.order > 1:
            assert distill_filters(filters, report.order // 2)[1].error > tol
        chosen.append(report.order)
    assert chosen == sorted(chosen)
    assert len(set(chosen)) > 2


def test_tolerance_looks_at_every_channel(monkeypatch):
    """One hard channel among many easy ones decides, whatever the channels that are fitted at a time."""
    easy = torch.from_numpy(taps_of(*random_modal(np.random.default_rng(4), 1, 7, 1), 200))
    hard = torch.from_numpy(taps_of(*random_modal(np.random.default_rng(5), 1, 1, 8, slowest=0.99), 200))
    filters = torch.cat([easy[:, :5], hard, easy[:, 5:]], 1)
    assert distill_filters(easy, tol=1e-4)[1].order == 1
    orders = []
    for size in (1 << 28, 1):
        monkeypatch.setattr("longstream.layers.modal.GROUP_BYTES", size)
        fitted, report = distill_filters(filters, tol=1e-4)
        assert measured(fitted, filters).max() <= 1e-4
        orders.append(report.order)
    assert orders == [8, 8]


def test_rough_filters_are_refused():
    filters = noise(3, 600, S=2)
    with pytest.raises(
        ValueError, match=r"order 8 can meet, got 0.01: it reaches 0\.\d+, \d+ times that, in stage"
    ) as e:
        distill_filters(filters, tol=0.01, max_order=8)
    error = distill_filters(filters, 8)[1].errors
    stage, channel = divmod(int(error.argmax()), 3)
    assert f"it reaches {float(error.max()):.2g}, " in str(e.value)
    assert f"in stage {stage}, channel {channel};" in str(e.value)
    bound = float(str(e.value).split("has less than ")[1].removesuffix(" there"))
    assert 0.1 < bound <= float(error.max())


def test_order_and_tolerance():
    filters = hyena_like(np.random.default_rng(3), 4, 200, 12)
    error = distill_filters(filters, 4)[1].error
    assert distill_filters(filters, 4, tol=error * 1.01)[1].order == 4
    with pytest.raises(ValueError, match=f"order 4 can meet, got {error / 2}: it reaches {error:.2g}, 2 times that"):
        distill_filters(filters, 4, tol=error / 2)


@pytest.mark.parametrize("L", [1, 2, 3, 4, 7, 20])
def test_short_filters(L):
    """With about as many numbers as taps, anything is met."""
    for filters in (noise(4, L).float(), torch.zeros(1, 4, L), torch.ones(1, 4, L)):
        for fitted, report in (distill_filters(filters, tol=1e-5), distill_filters(filters, L // 2 + 1)):
            assert measured(fitted, filters).max() <= 1e-5
            assert report.error <= 1e-5
            assert fitted.poles.double().norm(dim=-1).max() <= 1
            assert fitted.residues.abs().max() < 100
        for order in (1, 5):
            fitted, _ = distill_filters(filters, order)
            assert torch.stack([part.isfinite().all() for part in fitted]).all()


def test_as_many_numbers_as_taps():
    filters = noise(2, 100)
    fitted, report = distill_filters(filters, 50)
    assert report.error < 1e-6
    assert fitted.residues.abs().max() < 10 * filters.abs().max()


def test_slow_modes_of_long_filters():
    """Decays and waves over the whole filter, of which no short stretch knows more than a few."""
    L, rng = 6000, np.random.default_rng(1)
    waves = np.arange(4) + rng.uniform(0, 0.5, 4)
    poles = np.exp((2j * np.pi * waves - rng.uniform(0.5, 3, (1, 3, 4))) / L)
    residues = rng.standard_normal((1, 3, 4)) + 1j * rng.standard_normal((1, 3, 4))
    filters = torch.from_numpy(taps_of(poles, residues, np.zeros((1, 3)), L))
    fitted, _ = distill_filters(filters, 4)
    assert measured(fitted, filters).max() < RECOVERED


def test_smooth_filters_need_few_modes():
    """Measured: 1.0e-3 at worst and 1.1e-4 in the median; without refinement 3.5e-3, without fewer vectors 3.1e-4."""
    report = distill_filters(hyena_like(np.random.default_rng(3), 6, 300, 12), 8)[1]
    assert report.error < 2e-3
    assert report.errors.median() < 2e-4


def test_a_silent_channel_among_others():
    filters = noise(3, 64)
    filters[:, 1] = 0
    fitted, report = distill_filters(filters, 4)
    assert report.errors[0, 1] == 0
    assert not fitted.residues[0, 1].any()
    assert fitted.direct[0, 1] == 0


def test_direct_only():
    filters = torch.zeros(1, 2, 30)
    filters[..., 0] = torch.tensor([2.0, -3.0])
    fitted, report = distill_filters(filters, tol=1e-6)
    assert (report.order, report.error) == (1, 0)
    assert_same("direct", fitted.direct, [[2.0, -3.0]])


def test_residues_stay_moderate():
    """Nearly equal poles with huge residues of opposite sign would lose everything in float32."""
    filters = hyena_like(np.random.default_rng(6), 4, 400, 25, decay=1.0).float()
    for order in (4, 8, 16):
        fitted, _ = distill_filters(filters, order)
        assert fitted.residues.abs().max() < 1e4 * filters.abs().max()


def test_gradients_are_not_taken():
    filters = noise(2, 30).requires_grad_()
    fitted, report = distill_filters(filters, 2)
    assert not any(part.requires_grad for part in (*fitted, report.errors))


def test_report_in_words():
    report = DistillReport(4, 0.0123, torch.tensor([[0.0123, 0.001, 0.002]]), 0.5, 0.99)
    assert str(report) == (
        "order 4: relative l2 error 1.2e-02 at worst, 2.0e-03 in the median channel; next singular value 5.0e-01;"
        " largest pole 0.990000"
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "distill_filters: order or tol must be given, got neither"),
        ({"order": 0}, "order must be an integer >= 1, got 0"),
        ({"order": 2.0}, "order must be an integer >= 1, got 2.0"),
        ({"tol": 0.1, "max_order": 0}, "max_order must be an integer >= 1, got 0"),
        ({"tol": 0.0}, "tol must be > 0, got 0.0"),
        ({"tol": math.nan}, "tol must be > 0, got nan"),
        ({"order": 1, "filters": torch.zeros(4, 5)}, r"filters must have shape \(S, D, L\), got \(4, 5\)"),
        ({"order": 1, "filters": torch.zeros(1, 4, 0)}, r"filters must not be empty, got shape \(1, 4, 0\)"),
        ({"order": 1, "filters": torch.full((1, 1, 4), math.inf)}, "filters must be finite, got inf or NaN"),
    ],
)
def test_distill_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        distill_filters(**{"filters": torch.ones(1, 2, 8)} | kwargs)
