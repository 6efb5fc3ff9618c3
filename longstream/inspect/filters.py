"""Hyena's filters: how far they look back, what of it the window decides, and how many modes they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longstream.inspect.subject import Subject
from longstream.layers import Hyena
from longstream.layers.modal import hankel_singular_values

MOST_CHANNELS = 48  # whose Hankel matrices are decomposed, evenly chosen: some 15 ms each
ENERGY = 0.99  # of a filter: how many taps have it
SHOWN = 6  # filters in a picture, evenly chosen


@dataclass(frozen=True)
class LayerFilters:
    """The filters of one layer, S stages of C channels and L taps each, S C = N in all.

    Attributes:
        layer:    its number, from 0.
        taps:     (N, L), lag 0 first.
        window:   (N, L) the factor exp(-t |delta|) + shift in them; None where there is none.
        spectrum: (N, L + 1) |H| at the frequencies 0 ... 1/2 cycles a token.
        hankel:   (n, C) singular values of some filters' Hankel matrices over the largest one, largest first.
        chosen:   (n,) which filters those are.
        span:     (N,) taps that hold 99 % of a filter's energy.
    """

    layer: int
    taps: Tensor
    window: Tensor | None
    spectrum: Tensor
    hankel: Tensor
    chosen: tuple[int, ...]
    span: Tensor

    @property
    def length(self) -> int:
        """L."""
        return self.taps.shape[1]

    def modes(self, tolerance: float = 0.01) -> Tensor:
        """(n,) complex modes that leave no singular value above ``tolerance`` of the largest: half of those above."""
        return ((self.hankel > tolerance).sum(1) + 1) // 2

    def window_span(self) -> float | None:
        """Taps after which the slowest channel's window has fallen to a hundredth of its height; None if it never does.

        None, too, where there is no window.
        """
        if self.window is None:
            return None
        low = (self.window <= 0.01 * self.window[:, :1]).double()
        first = torch.where(low.any(1), low.argmax(1).double(), torch.inf)
        slowest = float(first.max())
        return None if slowest == torch.inf else slowest

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: quantiles over the filters, and all singular values."""
        quantiles = {str(q): float(self.span.double().quantile(q)) for q in (0.1, 0.5, 0.9)}
        modes = self.modes().double()
        return {
            "layer": self.layer,
            "taps": self.length,
            "span_of_99_percent": quantiles,
            "window_span": self.window_span(),
            "modes_for_1_percent": {"median": float(modes.median()), "largest": float(modes.max())},
            "hankel_channels": self.chosen,
            "hankel": [[float(f"{value:.4g}") for value in row if value > 0] for row in self.hankel.tolist()],
        }


@torch.no_grad()
def measure_filters(subject: Subject) -> list[LayerFilters]:
    """The filters of every Hyena layer, over the past; one that looks both ways has others over what follows."""
    return [_layer(i, mixer) for i, mixer in enumerate(subject.mixers) if isinstance(mixer, Hyena)]


def _layer(layer: int, mixer: Hyena) -> LayerFilters:
    made = mixer.filter
    taps = made(made.max_seq_len).flatten(0, 1).double()  # (N, L)
    window = None
    if made.delta is not None:
        delta = made.by_stage(made.delta).flatten().double().abs()
        window = torch.exp(-delta[:, None] * made.time.double()) + made.window_shift
    chosen = torch.linspace(0, len(taps) - 1, min(len(taps), MOST_CHANNELS)).round().long()
    L = taps.shape[1]
    values = hankel_singular_values(taps[None, chosen])[0] if L > 1 else torch.ones(len(chosen), 1)
    energy = taps.square().cumsum(1)
    return LayerFilters(
        layer=layer,
        taps=taps,
        window=window,
        spectrum=torch.fft.rfft(taps, 2 * L).abs(),
        hankel=values / values[:, :1].clamp(min=1e-300),
        chosen=tuple(chosen.tolist()),
        span=1 + (energy < ENERGY * energy[:, -1:]).sum(1),
    )
