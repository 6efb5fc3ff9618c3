"""Filters made ready once for many calls: what a convolution needs of them alone is computed once and kept."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops.long_conv.state import BLOCK


class LongConvFilters:
    """Filters of `long_conv` made ready for decoding, to be given in place of the tensor for as long as it is the same.

    No gradient flows to the filters; those of the inputs and the state do.

    Args:
        taps: (D, L) float, L >= 1, lag k at [:, k].
    Raises:
        ValueError: taps are of another shape, or require a gradient.    TypeError: they are not floating point.
    Notes: keeps the taps themselves, not a copy, and beside them at most five times their memory.
    """

    def __init__(self, taps: Tensor):
        if not isinstance(taps, Tensor) or not taps.is_floating_point():
            got = taps.dtype if isinstance(taps, Tensor) else type(taps).__name__
            raise TypeError(f"LongConvFilters: taps must be a floating point tensor, got {got}")
        if taps.dim() != 2 or taps.shape[1] < 1:
            raise ValueError(f"LongConvFilters: taps must have shape (D, L >= 1), got {tuple(taps.shape)}")
        if taps.requires_grad:
            raise ValueError("LongConvFilters: taps must not require a gradient; pass the tensor itself, or detach it")
        self.taps = taps
        self._near: dict[torch.dtype, Tensor] = {}
        self._spectra: dict[tuple[Hashable, ...], Tensor] = {}  # the one used last is the last

    def near(self, dtype: torch.dtype) -> Tensor:
        """See `near_taps`."""
        if dtype not in self._near:
            with torch.inference_mode(False):  # what is kept may meet gradients in another call
                self._near[dtype] = near_taps(self.taps, dtype)
        return self._near[dtype]

    def spectrum(self, left: int, right: int, size: int, dtype: torch.dtype) -> Tensor | None:
        """(D, size // 2 + 1) complex, of the lags left <= k < right; None if that is more than may be kept."""
        numbers = len(self.taps) * (size // 2 + 1)
        key = ("torch", left, right, size, dtype)
        return self.keep(key, numbers, lambda: torch.fft.rfft(self.taps[:, left:right].to(dtype), size))

    def keep(self, key: tuple[Hashable, ...], numbers: int, make: Callable[[], Tensor]) -> Tensor | None:
        """What ``make`` made under this key, of so many complex numbers; None if that is more than may be kept."""
        # The tiles of all sizes up to L take four times the memory of the taps; one more for those of other calls.
        room = 5 * self.taps.numel()
        kept = self._spectra.pop(key, None)
        if kept is None:
            if 2 * numbers > room:
                return None
            with torch.inference_mode(False):
                kept = make()
            while 2 * sum(other.numel() for other in self._spectra.values()) + 2 * kept.numel() > room:
                del self._spectra[next(iter(self._spectra))]
        self._spectra[key] = kept
        return kept


def near_taps(taps: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, D): the taps of the lags C - 1, ..., 1, 0, those from L on zero."""
    near = taps[:, :BLOCK].to(dtype)
    return F.pad(near, (0, BLOCK - near.shape[1])).flip(1).T.contiguous()
