"""What a block of Edifice's Hyena carries from frame to frame."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from longstream.layers.state import register_state
from longstream.ops import LongConvState
from longstream.ops.long_conv.state import BLOCK


@register_state
class EdificeHyenaState(tuple[Tensor, ...]):
    """A named tuple of as many tensors as the past needs, batch first; all but length are float32 or wider.

    Attributes:
        conv:   (B, 2, D). The last inputs of the short convolution, oldest first.
        length: (B,) int64. Frames taken in.
        recent: (B, order, C, D). Of the LongConvState of each long convolution, which all have the same length.
        inputs_m_j, pending_m_j: its level m for long convolution j; level by level, and in each all convolutions.
    """

    __slots__ = ()

    def __new__(cls, *tensors: Tensor) -> "EdificeHyenaState":
        """From the tensors, in the order of ``_fields``."""
        if len(tensors) < 3:
            raise TypeError(f"EdificeHyenaState: expected conv, length, recent and the levels, got {len(tensors)}")
        return super().__new__(cls, tensors)

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copy and pickle: __new__ takes the tensors one by one
        return tuple(self)

    @staticmethod
    def zeros(
        batch_size: int, order: int, channels: int, taps: int, device: torch.device | str, dtype: torch.dtype
    ) -> "EdificeHyenaState":
        """The state before the first frame; ``taps`` of the short convolution."""
        return EdificeHyenaState(
            torch.zeros(batch_size, taps - 1, channels, device=device, dtype=dtype),
            torch.zeros(batch_size, device=device, dtype=torch.long),
            torch.zeros(batch_size, order, BLOCK, channels, device=device, dtype=dtype),
        )

    def after(self, conv: Tensor, length: Tensor, convolutions: Sequence[LongConvState]) -> "EdificeHyenaState":
        """The state that follows. No level is copied."""
        if not convolutions:  # order 0
            return EdificeHyenaState(conv, length, self.recent)
        _, recent, *levels = zip(*convolutions, strict=True)  # inputs_0, pending_0, inputs_1, ... of all convolutions
        pairs = (zip(*levels[i : i + 2], strict=True) for i in range(0, len(levels), 2))
        return EdificeHyenaState(conv, length, torch.stack(recent, 1), *chain(*chain(*pairs)))

    def convolutions(self) -> list[LongConvState]:
        """The state of each long convolution."""
        order = self.order
        levels = [[self[i : i + 2] for i in range(3 + 2 * j, len(self), 2 * order)] for j in range(order)]
        return [LongConvState(self.length, self.recent[:, j], *chain(*levels[j])) for j in range(order)]

    @property
    def _fields(self) -> tuple[str, ...]:
        """The names of the tensors, in order."""
        levels = range((len(self) - 3) // max(2 * self.order, 1))
        names = (f"{kind}_{m}_{j}" for m in levels for j in range(self.order) for kind in ("inputs", "pending"))
        return ("conv", "length", "recent", *names)

    @property
    def order(self) -> int:
        """Long convolutions in the block."""
        return self.recent.shape[1]

    @property
    def conv(self) -> Tensor:
        """(B, 2, D)."""
        return self[0]

    @property
    def length(self) -> Tensor:
        """(B,) int64."""
        return self[1]

    @property
    def recent(self) -> Tensor:
        """(B, order, C, D)."""
        return self[2]
