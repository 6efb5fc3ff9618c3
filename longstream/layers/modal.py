"""Filters that are sums of decaying oscillations: running them in constant memory, and fitting them to other filters.

With one complex number of state per mode and channel, a long convolution becomes a recurrence whose step costs O(D M).
Complex numbers are pairs of real ones, (..., 2), wherever tensors go in or out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.layers import _modal_fit as fit
from longstream.layers._modal_conv import as_complex, as_real, powers, run_blocks, run_step, walk_tokens
from longstream.layers._options import check_integers
from longstream.ops._check import check_cu_seqlens, check_shapes, no_autocast, prepare_state, wide
from longstream.ops._walk import is_symbolic

GROUP_BYTES = 1 << 28  # memory for fitting some channels at a time


class ModalFilter(NamedTuple):
    """Filters ``h_t = Re sum_m residue_m pole_m^t``, plus ``direct`` at t = 0, of S stages and D channels."""

    poles: Tensor  # (S, D, M, 2), |pole| <= 1
    residues: Tensor  # (S, D, M, 2)
    direct: Tensor  # (S, D)


@dataclass(frozen=True)
class DistillReport:
    """How well modal filters stand in for others; errors are ``||fitted - filter|| / ||filter||`` over all taps."""

    order: int  # M, complex modes per channel
    error: float  # the largest of errors
    errors: Tensor  # (S, D) float64, on the CPU
    next_singular_value: float  # largest sigma_{2M+1} / sigma_1 of any channel's Hankel matrix
    largest_pole: float  # max |pole|

    def __str__(self) -> str:
        return (
            f"order {self.order}: relative l2 error {self.error:.1e} at worst, {self.errors.median():.1e} in the median"
            f" channel; next singular value {self.next_singular_value:.1e}; largest pole {self.largest_pole:.6f}"
        )


def modal_taps(modal: ModalFilter, T: int) -> Tensor:
    """The taps h_0 .. h_{T-1} of modal filters, (S, D, T), in the dtype of the poles; computed in float64."""
    sizes = check_shapes(
        "modal_taps",
        {"pair": 2},
        poles=(modal.poles, "S D M pair"),
        residues=(modal.residues, "S D M pair"),
        direct=(modal.direct, "S D"),
    )
    if T == 0:
        return modal.poles.new_zeros(sizes["S"], sizes["D"], 0)
    # pole^(aC + b) = (pole^C)^a pole^b: two short tables of powers and one matrix product, never (S, D, M, T).
    C = math.isqrt(T - 1) + 1
    fine = powers(as_complex(modal.poles.double()), C + 1)  # (S, D, C + 1, M)
    coarse = powers(fine[..., C, :], C) * as_complex(modal.residues.double())[..., None, :]
    taps = (as_real(coarse.conj()) @ as_real(fine[..., :C, :]).mT).flatten(-2)
    taps = torch.cat([taps[..., :1] + modal.direct[..., None], taps[..., 1:T]], -1)
    return taps.to(modal.poles.dtype)


def modal_conv(
    x: Tensor,
    poles: Tensor,
    residues: Tensor,
    direct: Tensor,
    state: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal convolution with modal filters, as the recurrence of their modes, per channel::

        s_t = pole s_{t-1} + x_t                complex, one per mode
        y_t = Re sum_m residue_m s_t,m + direct x_t

    The recurrent mode of Laughing Hyena (Massaroli et al. 2023, arXiv:2310.18780).

    Args:
        x:          (B, T, D) float.
        poles:      (D, M, 2).            |pole| <= 1, or the state grows without bound.
        residues:   (D, M, 2).
        direct:     (D,).
        state:      (B, D, M, 2) or None. s_0; None means zeros. (N, D, M, 2) with cu_seqlens.
        cu_seqlens: (N + 1,) int or None. Boundaries of N sequences packed in one row (B = 1), each from its own state.
    Returns:
        y (B, T, D): dtype of x.      state (B or N, D, M, 2): s_T, float32 or wider.
    Raises:
        ValueError: shapes, devices or cu_seqlens disagree.    TypeError: not floating point.
    Notes: sums in float32 (float64 if an argument is). Differentiable in all tensors. One token costs O(D M), T tokens
        O(T D (M + BLOCK)) in O(T D + T D M / BLOCK) memory: blocks at once, states from block to block.
    """
    sizes = check_shapes(
        "modal_conv",
        {"pair": 2},
        x=(x, "B T D"),
        poles=(poles, "D M pair"),
        residues=(residues, "D M pair"),
        direct=(direct, "D"),
    )
    B, T, D, M = (sizes[letter] for letter in "BTDM")
    bounds = check_cu_seqlens("modal_conv", cu_seqlens, B, T)
    N = B if bounds is None else len(bounds) - 1
    check_shapes("modal_conv", {"N": N, "D": D, "M": M, "pair": 2}, state=(state, "N D M pair"))
    dtype = wide(x, poles, residues, direct, state)
    state = prepare_state("modal_conv", state, x, (N, D, M, 2), dtype)
    poles, residues, direct, state = (tensor.to(dtype) for tensor in (poles, residues, direct, state))
    with no_autocast(x.device):
        if bounds is None and T == 1:
            y, state = run_step(x[:, 0].to(dtype), poles, residues, direct, state)
            return y[:, None].to(x.dtype), state
        if bounds is None and is_symbolic(B, T):
            y, state = walk_tokens(x.to(dtype), poles, residues, direct, state)
            return y.to(x.dtype), state
        lengths = [T] * B if bounds is None else [right - left for left, right in pairwise(bounds)]
        y, state = run_blocks(x.reshape(B * T, D).to(dtype), poles, residues, direct, state, lengths)
        return y.view(B, T, D).to(x.dtype), state


def hankel_singular_values(filters: Tensor) -> Tensor:
    """The singular values of each filter's Hankel matrix, h_{1+i+j} at (i, j), largest first: (S, D, L) -> (S, D, C).

    M modes have 2 M that are not 0, and no fit of M modes comes closer than what stands behind the first 2 M: they say
    how many modes a filter needs. In float64, on the CPU; 0 where they are rounding. C = L // 2, but at most some 500:
    of longer filters pairs of neighboring taps are taken, all at first and then farther and farther apart.

    Raises:
        ValueError: filters are not (S, D, L) with L >= 2.
    """
    sizes = check_shapes("hankel_singular_values", filters=(filters, "S D L"))
    if sizes["L"] < 2:
        raise ValueError(f"hankel_singular_values: filters must have at least 2 taps, got {sizes['L']}")
    h = filters.detach().to("cpu", torch.float64).flatten(0, 1)
    with torch.no_grad():
        parts = [fit.spectrum(part, vectors=False).values for part in h.split(_channels(sizes["L"], 1))]
    return torch.cat(parts).unflatten(0, (sizes["S"], sizes["D"]))


def distill_filters(
    filters: Tensor, order: int | None = None, *, tol: float | None = None, max_order: int | None = None
) -> tuple[ModalFilter, DistillReport]:
    """Modal filters that come close to given ones over all their taps; the first tap is met exactly.

    A distillation in the sense of Laughing Hyena (Massaroli et al. 2023, arXiv:2310.18780). How few modes are enough
    depends on how smooth the filters are; what cannot be met is refused. After the last tap the modal filters go on,
    and the filters they stand for do not.

    Args:
        filters:   (S, D, L) float, L >= 1. Taps h_0 .. h_{L-1} of S stages and D channels.
        order:     M, modes per channel.
        tol:       largest relative l2 error of any channel. Alone, it asks for the smallest order of 1, 2, 4, 8, ...
                   that meets it; with order, for a refusal if that order does not.
        max_order: last order that is tried; None for min(L // 2, 128), but at least 1.
    Returns:
        The modal filters, in the dtype of filters or float32, and how close they come.
    Raises:
        ValueError: neither order nor tol is given, one is out of range, filters have another shape or are not finite,
            or tol is not met: the message says by how much, in which channel.
        TypeError: not floating point.
    Notes: in float64 on the CPU, some channels at a time; no gradients. 256 channels of 1024 taps take from 12 s (order
        8) to 31 s (order 128) of one core.
    """
    sizes = check_shapes("distill_filters", filters=(filters, "S D L"))
    if filters.numel() == 0:
        raise ValueError(f"distill_filters: filters must not be empty, got shape {tuple(filters.shape)}")
    if order is None and tol is None:
        raise ValueError("distill_filters: order or tol must be given, got neither")
    if tol is not None and not tol > 0:
        raise ValueError(f"distill_filters: tol must be > 0, got {tol!r}")
    max_order = max(1, min(sizes["L"] // 2, 128)) if max_order is None else max_order
    check_integers("distill_filters", order=(1 if order is None else order, 1), max_order=(max_order, 1))
    if not bool(filters.isfinite().all()):
        raise ValueError("distill_filters: filters must be finite, got inf or NaN")
    dtype = wide(filters)
    orders = [order] if order is not None else [2**n for n in range((max_order - 1).bit_length())] + [max_order]
    with torch.no_grad(), no_autocast(torch.device("cpu")):
        modal, report = _distill(filters.to("cpu", torch.float64), orders, tol, dtype)
    return ModalFilter(*(part.to(filters.device) for part in modal)), report


def _distill(
    filters: Tensor, orders: list[int], tol: float | None, dtype: torch.dtype
) -> tuple[ModalFilter, DistillReport]:
    """The first of the orders that meets tol, else the last, if that does."""
    S, D, L = filters.shape
    h = F.pad(filters.reshape(S * D, L), (0, 1 if L == 1 else 0))
    hardest = torch.arange(S * D)
    if len(orders) > 1 and tol is not None:  # orders that cannot do need no try, nor channels after one that fails
        parts = [fit.spectrum(_unit(part)[0], vectors=False) for part in h.split(_channels(L, 1))]
        spectrum = parts[0]._replace(values=torch.cat([part.values for part in parts]))
        hopeless = [bool((spectrum.error_bound(order) > tol).any()) for order in orders[:-1]]
        orders = orders[([*hopeless, False]).index(False) :]
        hardest = spectrum.error_bound(orders[0]).argsort(descending=True)
    fits = None
    while fits is None:
        fits = _fit_channels(h[hardest], orders[0], dtype, tol or 0.0, give_up=len(orders) > 1)
        orders = orders[1:]
    poles, residues, direct, errors, after, bound = (torch.empty_like(x).index_copy(0, hardest, x) for x in fits)

    order, channel, worst = poles.shape[1], int(errors.argmax()), float(errors.max())
    if tol is not None and worst > tol:
        raise ValueError(
            f"distill_filters: tol must be an error that order {order} can meet, got {tol!r}: it reaches {worst:.2g},"
            f" {worst / tol:.2g} times that, in stage {channel // D}, channel {channel % D};"
            f" no filter of order {order} has less than {float(bound[channel]):.2g} there"
        )
    modal = ModalFilter(poles.view(S, D, order, 2), residues.view(S, D, order, 2), direct.view(S, D))
    report = DistillReport(
        order=order,
        error=worst,
        errors=errors.view(S, D),
        next_singular_value=float(after.max()),
        largest_pole=float(poles.double().norm(dim=-1).max()),
    )
    return modal, report


def _channels(L: int, order: int) -> int:
    """How many channels to fit at a time: about ten tables of (L, 2 M) numbers and ten matrices each."""
    return max(1, GROUP_BYTES // (80 * (2 * order * L + min(L // 2, fit.HANKEL) ** 2)))


def _unit(h: Tensor) -> tuple[Tensor, Tensor]:
    """Filters of norm 1 (or 0), and what to multiply them with, (N, 1)."""
    size = h.norm(dim=1, keepdim=True)
    size = torch.where(size > 0, size, 1)
    return h / size, size


def _fit_channels(
    filters: Tensor, order: int, dtype: torch.dtype, tol: float, *, give_up: bool
) -> tuple[Tensor, ...] | None:
    """Of filters (N, L): poles, residues (N, M, 2), direct (N,); errors, next singular values, error bounds (N,).

    With ``give_up``: None as soon as some channel does not meet tol.
    """
    eps, fits = torch.finfo(dtype).eps, []
    for part in filters.split(_channels(filters.shape[1], order)):
        h, size = _unit(part)
        spectrum = fit.spectrum(h, vectors=True)
        # A state is rounded at every step, so residues are held to what some roundings cost, not one.
        poles, cost = fit.fit_poles(h, spectrum, order, tol, rounding=max(8 * eps, 1e-12))
        # Everything is rounded, and the residues are those of poles as rounded; the errors are of what is returned.
        pairs = torch.view_as_real(poles).to(dtype)
        outside = pairs.double().norm(dim=-1, keepdim=True) > 1
        pairs = torch.where(outside, pairs * (1 - 2 * eps), pairs)
        residues = fit.fit_residues(h, as_complex(pairs.double()), cost)[0] * size
        residues = torch.view_as_real(residues).to(dtype)
        direct = (part[:, 0] - residues[..., 0].double().sum(1)).to(dtype)
        modal = ModalFilter(*(x[None].double() for x in (pairs, residues, direct)))
        errors = (modal_taps(modal, part.shape[1])[0] - part).norm(dim=1) / size[:, 0]
        after = F.pad(spectrum.values, (0, 2 * order))[:, 2 * order] / spectrum.values[:, 0].clamp(min=1e-300)
        fits.append((pairs, residues, direct, errors, after, spectrum.error_bound(order)))
        if give_up and bool((errors > tol).any()):
            return None
    return tuple(torch.cat(parts) for parts in zip(*fits, strict=True))
