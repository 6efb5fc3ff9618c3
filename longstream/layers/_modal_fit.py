"""Fitting sums of decaying oscillations to filters, many channels at once, in float64.

For the taps h_1 .. h_{L-1} of each channel: poles p_m and residues R_m with ``h_t = Re sum_m R_m p_m^t`` in least
squares. M such modes are a linear system of 2 M real states, so their Hankel matrix, h_{1+i+j} at (i, j), has rank 2 M.

1. The strongest 2 M right singular vectors of the Hankel matrix of h span nearly the same space one step later; the
   matrix that takes one to the other has the poles as its eigenvalues (Ho & Kalman 1966; Kung 1978).
2. Poles outside the unit circle are reflected into it, and the M modes that contribute most are kept. Smooth filters
   can lose much by that, so some fewer vectors are tried too, and so is a Fourier extension: waves of period 1.5 L.
3. Levenberg-Marquardt on the logarithms of the poles, with the residues eliminated (variable projection, Golub &
   Pereyra 1973; the Jacobian is Kaufman's, 1975).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from longstream.layers._modal_conv import powers

HANKEL = 512  # rows and columns; the singular vectors of one matrix of this size take 35 ms
DENSE = 128  # of the rows, where not all taps fit
LARGE = 1e-4  # a residue that is 1 / LARGE times the filter costs as much as the whole error
DROPS = 3  # vectors fewer: up to a tenth of the error for smooth filters, nothing lost or gained for rough ones
SWEEPS = 10  # they take about a tenth off the error, and up to 3/4 at orders below 8
SWEPT_ORDER = 32  # above it the sweeps take longer than all the rest


class Spectrum(NamedTuple):
    """Of the Hankel matrices (N, C, C) of filters, h_{1+a+b} at places a and b."""

    values: Tensor  # (N, C) singular values, largest first; 0 where they are rounding
    vectors: Tensor  # (N, C, C) singular vectors, in columns; (N, 0, 0) where nobody asked for them
    places: Tensor  # (C,) rising
    weight: float  # a tap stands this often in the matrix, at most

    def error_bound(self, order: int) -> Tensor:
        """(N,) No fit of this order has a smaller l2 error: its matrix would have rank 2 M at most."""
        return ((self.values[:, 2 * order :] ** 2).sum(1) / self.weight).sqrt()


def spectrum(h: Tensor, *, vectors: bool) -> Spectrum:
    """h (N, L), L >= 2."""
    places = _places(h.shape[1]).to(h.device)
    taps = 1 + places[:, None] + places
    H = h[:, taps]  # symmetric, so that its singular values are its eigenvalues, up to sign
    if vectors:
        values, basis = torch.linalg.eigh(H)
    else:
        values, basis = torch.linalg.eigvalsh(H), H[:, :0, :0]
    values, order = values.abs().sort(dim=1, descending=True)
    if vectors:
        basis = basis.gather(2, order[:, None].expand_as(basis))
    values = torch.where(values > 1e-12 * values[:, :1], values, 0)
    return Spectrum(values, basis, places, float(taps.flatten().bincount().max()))


def _places(L: int) -> Tensor:
    """The first half of the taps; of long filters, all at first, and later pairs of neighbors farther and farther off.

    A short stretch of a long filter would not tell its slow modes apart, and evenly spaced taps would miss the fast.
    """
    half = L // 2
    if half <= HANKEL:
        return torch.arange(half)
    ratio = (half - 2) / DENSE
    pairs = (DENSE * ratio ** torch.linspace(0, 1, (HANKEL - DENSE) // 2, dtype=torch.float64)).long()
    return torch.cat([torch.arange(DENSE), pairs, pairs + 1]).unique()


def fit_poles(h: Tensor, spectrum: Spectrum, order: int, enough: float, rounding: float) -> tuple[Tensor, Tensor]:
    """Poles (N, order), complex, inside the unit circle, and the cost (N,) of residues; h (N, L) of norm 1 or 0.

    Channels with an error of at most ``enough``, or ``rounding``, which all numbers will undergo, are not refined.
    """
    count = (spectrum.values > 0).sum(1).clamp(max=2 * order)
    best = _Best(h, _strongest(h, _eigenvalues(spectrum, count), order), rounding)
    best.challenge(_waves(h, order), slack=rounding)
    if 2 * order >= spectrum.values.shape[1]:  # the Hankel matrix has not as many vectors as that
        # Equally spaced poles: with L - 1 <= 2 M, any taps are met, with small residues.
        angles = (torch.arange(order, dtype=h.dtype, device=h.device) + 0.5) * (math.pi / order)
        even = torch.polar(torch.full_like(angles, math.exp(-2 / h.shape[1])), angles)
        best.challenge(even.expand(len(h), -1), slack=rounding)
    rough = (best.error > max(enough, rounding)).nonzero()[:, 0]
    if len(rough) and int(count[rough].max()) <= 2 * SWEPT_ORDER:
        refined = _Best(h[rough], best.poles[rough], rounding)
        part = spectrum._replace(values=spectrum.values[rough], vectors=spectrum.vectors[rough])
        for drop in range(1, DROPS + 1):
            fewer = _eigenvalues(part, (count[rough] - drop).clamp(min=1))
            refined.challenge(_strongest(h[rough], fewer, order))
        refined.challenge(_sweep(h[rough], refined.poles[:, :SWEPT_ORDER], refined.cost))
        best.poles[rough], best.error[rough] = refined.poles, refined.error
    return best.poles, best.cost


class _Best:
    """The best poles (N, order) so far, channel by channel."""

    def __init__(self, h: Tensor, poles: Tensor, rounding: float):
        self.h, self.rounding, self.poles = h, rounding, poles
        self.error = fit_residues(h, poles, torch.full_like(h[:, 0], rounding))[1]

    @property
    def cost(self) -> Tensor:
        """(N,) What one unit of a residue may cost."""
        return (LARGE * self.error).clamp(min=self.rounding)

    def challenge(self, poles: Tensor, slack: float = 0.0) -> None:
        """Take other poles, at most ``order``, where they have an error that is smaller by more than ``slack``."""
        poles = torch.nn.functional.pad(poles, (0, self.poles.shape[1] - poles.shape[1]))
        error = fit_residues(self.h, poles, self.cost)[1]
        won = error + slack < self.error
        self.poles, self.error = torch.where(won[:, None], poles, self.poles), torch.where(won, error, self.error)


def fit_residues(h: Tensor, poles: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """Residues (N, M), complex, for h_1 .. h_{L-1}, and the l2 errors (N,): least squares of error and cost * residues.

    cost: (N,). A mode counts twice: at t = 0, where h_0 has to make up for it, and after.
    """
    A, scale = _unit_basis(poles, h.shape[1])
    A = torch.cat([A, torch.diag_embed(cost[:, None] * (1 + 1 / scale))], 1)
    target = torch.cat([h[:, 1:], torch.zeros_like(scale)], 1)[..., None]
    c = torch.linalg.lstsq(A, target, driver="gels").solution
    error = (target - A @ c)[:, : h.shape[1] - 1].norm(dim=(1, 2))
    return torch.complex(*(c[..., 0] / scale).chunk(2, 1)), error


def _basis(poles: Tensor, L: int, factor: Tensor | float = 1.0) -> Tensor:
    """(N, L - 1, 2 M): what real, then imaginary parts of residues are multiplied with at t = 1 .. L - 1."""
    table = powers(poles, L)[:, 1:] * factor
    return torch.cat([table.real, -table.imag], -1)


def _unit_basis(poles: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """The basis with columns of norm 1, and what their norms were, (N, 2 M)."""
    A = _basis(poles, L)
    scale = A.norm(dim=1).clamp(min=1e-30)
    return A / scale[:, None], scale


def _eigenvalues(spectrum: Spectrum, count: Tensor) -> Tensor:
    """Poles (N, K), imaginary part >= 0, of the count (N,) strongest vectors; 0 where a channel has fewer than K."""
    now = (spectrum.places.diff() == 1).nonzero()[:, 0]  # places whose neighbor is there too
    size = min(int(count.max()), len(now))
    strong = (torch.arange(size, device=count.device) < count[:, None]).to(spectrum.vectors.dtype)
    V = spectrum.vectors[:, :, :size] * strong[:, None]
    idle = torch.diag_embed(1 - strong)  # what is not strong maps to 0
    shift = torch.linalg.lstsq(torch.cat([V[:, now], idle], 1), torch.cat([V[:, now + 1], 0 * idle], 1), driver="gels")
    poles = torch.linalg.eigvals(shift.solution)
    radius = poles.abs()
    poles = torch.where(radius > 1, poles / radius**2, poles)
    kept = (poles.imag >= 0) & (radius > 0)
    first = kept.long().argsort(dim=1, descending=True, stable=True)
    poles = torch.where(kept, poles, 0).gather(1, first)
    return poles[:, : int(kept.sum(1).max()) if size else 0]


def _strongest(h: Tensor, poles: Tensor, order: int) -> Tensor:
    """The ``order`` poles whose modes have most energy, and zeros if there are not as many."""
    if poles.shape[1] > order:
        residues, _ = fit_residues(h, poles, torch.full_like(h[:, 0], 1e-12))
        real, imag = (torch.cat([residues.real, residues.imag], 1) * _unit_basis(poles, h.shape[1])[1]).chunk(2, 1)
        poles = poles.gather(1, (real**2 + imag**2).topk(order, dim=1).indices)
    return torch.nn.functional.pad(poles, (0, order - poles.shape[1]))


def _waves(h: Tensor, order: int) -> Tensor:
    """Slowly decaying waves of the strongest frequencies, 1.5 L the longest: enough of them meet anything smooth."""
    L = h.shape[1]
    strength = torch.fft.rfft(h[:, 1:], n=3 * L // 2).abs()
    angles = strength.topk(min(order, strength.shape[1]), dim=1).indices * (2 * math.pi / (3 * L // 2))
    return torch.polar(torch.full_like(angles, math.exp(-2 / L)), angles)


class _Point(NamedTuple):
    """Poles exp(decay + i angle) with the residues that fit best."""

    decay: Tensor
    angle: Tensor
    residues: Tensor
    basis: Tensor  # (N, L - 1, 2 M) with columns of norm 1
    gram: Tensor  # Cholesky factor of the products of these
    rest: Tensor  # (N, L - 1) what is left of h

    @classmethod
    def at(cls, h: Tensor, decay: Tensor, angle: Tensor, cost: Tensor) -> "_Point":
        A, scale = _unit_basis(torch.polar(decay.exp(), angle), h.shape[1])
        small = torch.diag_embed((cost[:, None] * (1 + 1 / scale)) ** 2 + 1e-12)
        gram = torch.linalg.cholesky_ex(A.mT @ A + small)[0]
        c = torch.cholesky_solve(A.mT @ h[:, 1:, None], gram)
        rest = h[:, 1:] - (A @ c)[..., 0]
        return cls(decay, angle, torch.complex(*(c[..., 0] / scale).chunk(2, 1)), A, gram, rest)


def _sweep(h: Tensor, poles: Tensor, cost: Tensor) -> Tensor:
    """Levenberg-Marquardt; a step that does not lower a channel's error is not taken there."""
    L, M = h.shape[1], poles.shape[1]
    t = torch.arange(1, L, dtype=h.dtype, device=h.device)[:, None]
    decay = poles.abs().clamp(min=1e-2).log()
    # A real pole could never leave the axis. This close to it, its mode spans r^t and t r^t.
    angle = poles.angle().abs().clamp(1e-2 / L, math.pi - 1e-2 / L)
    damping = torch.ones_like(cost)[:, None]
    now = _Point.at(h, decay, angle, cost)
    for _ in range(SWEEPS):
        A = now.basis
        # d h_t / d log p = t R p^t, whose real part is for the decay and whose imaginary part, negated, for the angle.
        slopes = _basis(torch.polar(now.decay.exp(), now.angle), L, t * now.residues[:, None])
        overlap = A.mT @ slopes
        normal = slopes.mT @ slopes - overlap.mT @ torch.cholesky_solve(overlap, now.gram)
        size = normal.diagonal(dim1=1, dim2=2).clamp(min=0)
        scale = (size + 1e-12 * size.amax(1, keepdim=True) + 1e-300).rsqrt()
        normal = normal * scale[:, None] * scale[..., None] + torch.diag_embed((damping + 1e-10).expand_as(scale))
        slope = scale[..., None] * (slopes.mT @ now.rest[..., None])
        step = scale * torch.cholesky_solve(slope, torch.linalg.cholesky_ex(normal)[0])[..., 0]
        new = _Point.at(h, (now.decay + step[:, :M]).clamp(max=0), now.angle + step[:, M:], cost)
        lower = new.rest.norm(dim=1) < now.rest.norm(dim=1)
        damping = torch.where(lower[:, None], damping / 3, damping * 4).clamp(1e-9, 1e6)
        now = _Point(*(torch.where(lower.view(-1, *[1] * (b.dim() - 1)), a, b) for a, b in zip(new, now, strict=True)))
    return torch.polar(now.decay.exp(), now.angle)
