"""The long convolutions of one call of Hyena, in each way to go on from token to token.

tiled: exact, O(log^2 T) a token; the state is the whole past, in blocks (`longstream.ops.long_conv`).
naive: exact, O(T) a token; the state is the whole past. It is there to test the others.
modal: with the filters' approximations by sums of exponentials, O(modes) a token; the state does not grow.
And both ways, where there is no token by token.
"""

import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longstream.layers.hyena_state import HyenaModalState, HyenaNaiveState, HyenaState
from longstream.layers.modal import ModalFilter, modal_conv
from longstream.layers.state import NoState
from longstream.ops import LongConvFilters, LongConvState, long_conv, long_conv_two_sided
from longstream.ops.long_conv.fft import convolve_any


class Run(Protocol):
    """One call of Hyena: the long convolutions of its stages in turn, then the state after them."""

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D), the skip included."""
        ...

    def last(self, conv: Tensor, length: Tensor) -> Any:
        """The state after the last token."""
        ...


def check_length(most: int, max_seq_len: int) -> None:
    """Refuse more tokens in a row, those in the state included, than there are taps."""
    if most > max_seq_len:
        raise ValueError(
            f"Hyena: a row can take in at most max_seq_len={max_seq_len} tokens, got {most} with those in its state;"
            " make max_seq_len larger, run over a sliding window (longstream.models.Window), or decode with modal"
            " filters after distill(extrapolate=True)"
        )


class Tiled:
    """The long convolutions of one call with decode "tiled"."""

    def __init__(
        self,
        filters: Sequence[LongConvFilters | Tensor],
        skips: Tensor,
        state: HyenaState | None,
        bounds: list[int] | None,
        backend: str,
    ):
        self.filters, self.skips, self.state, self.bounds, self.backend = filters, skips, state, bounds, backend
        self.before = [None] * len(skips) if state is None else state.stages()
        self.after: list[LongConvState] = []

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """See `Run`."""
        filters, skip, before = self.filters[stage], self.skips[stage], self.before[stage]
        y, after = long_conv(x, filters, skip, before, cu_seqlens=self.bounds, backend=self.backend)
        self.after.append(after)
        return y

    def last(self, conv: Tensor, length: Tensor) -> HyenaState:
        """See `Run`. A tensor that no stage changed is kept as it is, not stacked again."""
        tensors: list[Tensor] = []
        for i in range(1, max(map(len, self.after))):
            now = [after[i] for after in self.after]
            then = [before[i] if before is not None and i < len(before) else None for before in self.before]
            kept = self.state is not None and all(map(operator.is_, now, then))
            tensors.append(self.state[i + 1] if self.state is not None and kept else torch.stack(now, 1))
        return HyenaState(conv, length, *tensors)


class Naive:
    """The long convolutions of one call with decode "naive", row by row."""

    def __init__(self, filters: Tensor, skips: Tensor, state: HyenaNaiveState, bounds: list[int] | None, backend: str):
        self.filters, self.skips, self.state, self.bounds, self.backend = filters, skips, state, bounds, backend
        self.pasts: list[Tensor] = []

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """See `Run`."""
        wide_x = x.to(torch.promote_types(x.dtype, self.skips.dtype))
        rows = wide_x if self.bounds is None else [wide_x[0, left:right] for left, right in pairwise(self.bounds)]
        past, lengths = self.state.past[:, stage], self.state.length.tolist()
        streams = [torch.cat([past[b, : lengths[b]], row]) for b, row in enumerate(rows)]  # (length + T, D)
        self.pasts.append(pad_sequence(streams, batch_first=True) if streams else past)
        outs = [self._direct(stage, stream, length) for stream, length in zip(streams, lengths, strict=True)]
        y = torch.cat(outs).view(x.shape) if outs else wide_x
        return (y + self.skips[stage] * wide_x).to(x.dtype)

    def _direct(self, stage: int, stream: Tensor, start: int) -> Tensor:
        """The outputs from ``start`` on, (T, D)."""
        h = self.filters[stage, :, : len(stream)]
        if len(stream) == start + 1:
            return (stream.flip(0) * h.t()).sum(0, keepdim=True)
        return long_conv(stream[None], h, backend=self.backend)[0][0, start:] if len(stream) > start else stream[:0]

    def last(self, conv: Tensor, length: Tensor) -> HyenaNaiveState:
        """See `Run`."""
        return HyenaNaiveState(conv, length, torch.stack(self.pasts, 1))


class Modal:
    """The long convolutions of one call with decode "modal"."""

    def __init__(self, modal: ModalFilter, skips: Tensor, state: HyenaModalState, bounds: list[int] | None):
        self.modal, self.skips, self.state, self.bounds = modal, skips, state, bounds
        self.modes: list[Tensor] = []

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """See `Run`."""
        wide_x = x.to(torch.promote_types(x.dtype, self.skips.dtype))
        poles, residues, direct = (tensor[stage] for tensor in self.modal)
        state = self.state.modes[:, stage]
        y, modes = modal_conv(wide_x, poles, residues, direct + self.skips[stage], state, cu_seqlens=self.bounds)
        self.modes.append(modes)
        return y.to(x.dtype)

    def last(self, conv: Tensor, length: Tensor) -> HyenaModalState:
        """See `Run`."""
        return HyenaModalState(conv, length, torch.stack(self.modes, 1))


class AnySize:
    """The long convolutions of a graph that is to take any batch or length, from the first token on.

    It has no state: how many tensors decode "tiled" keeps depends on the length.
    """

    def __init__(self, filters: Tensor, skips: Tensor):
        self.filters, self.skips = filters, skips

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """See `Run`."""
        return convolve_any(x, self.filters[stage], self.skips[stage])

    def last(self, conv: Tensor, length: Tensor) -> NoState:
        """See `Run`."""
        return NoState()


class BothWays:
    """The long convolutions of one call where Hyena is not causal."""

    def __init__(self, filters: Tensor, filters_reverse: Tensor, skips: Tensor, bounds: list[int] | None, backend: str):
        self.filters, self.filters_reverse, self.skips = filters, filters_reverse, skips
        self.bounds, self.backend = bounds, backend

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """See `Run`."""
        filters = self.filters[stage], self.filters_reverse[stage], self.skips[stage]
        return long_conv_two_sided(x, *filters, cu_seqlens=self.bounds, backend=self.backend)

    def last(self, conv: Tensor, length: Tensor) -> NoState:
        """See `Run`."""
        return NoState()
