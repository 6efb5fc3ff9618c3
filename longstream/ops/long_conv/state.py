"""What a long convolution carries from token to token: the exact history of its inputs, in runs of 2^m blocks.

The set bits of n, the number of full blocks, cut the first n blocks into runs, the largest (oldest) first. Bit m stands
for a run of 2^m blocks, which keeps its inputs and what they contribute to as many outputs right after it. When n goes
on to a multiple of 2^(m + 1), these outputs are all made, and the run becomes part of a larger one. This is the tiling
of Flash Inference (Oncescu et al. 2024, arXiv:2410.12982): T tokens one by one cost O(T log^2 T).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops._trees import register_tree

# Tokens in a block. A decoding step multiplies up to BLOCK recent inputs with the first taps, and every BLOCK steps
# runs are merged. Measured with 256 channels on a CPU: 32 and 128 take as long a token.
BLOCK = 64


@register_tree
class LongConvState(tuple[Tensor, ...]):
    """The state of `long_conv`: ``(length, recent, inputs_0, pending_0, inputs_1, pending_1, ...)``, batch first.

    With C = 64 tokens in a block and n = length // C full blocks, level m holds a run of 2^m blocks where bit m of n is
    set; the largest level has the oldest tokens.

    Attributes:
        length:    (B,) int64.           Tokens so far.
        recent:    (B, C, D).            The inputs since the last full block, zeros after them.
        inputs_m:  (B, C 2^m or 0, D).   The inputs of the run; zeros for a row without this bit.
        pending_m: (B, C 2^m or 0, D).   What they contribute to the C 2^m outputs right after the run's end.

    All but length are float32 or wider. A level that no row needs is empty, (B, 0, D), or absent at the end; the
    gradient of a level that a row does not have means nothing. A call makes new tensors for what changes and hands on
    the others as they are; it never writes into a state.
    """

    __slots__ = ()

    def __new__(cls, *tensors: Tensor) -> "LongConvState":
        """From the tensors, in the order of ``_fields``."""
        if len(tensors) < 2 or len(tensors) % 2:
            raise TypeError(f"LongConvState: expected length, recent and two tensors a level, got {len(tensors)}")
        return super().__new__(cls, tensors)

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copy and pickle: __new__ takes the tensors one by one
        return tuple(self)

    @staticmethod
    def zeros(
        batch_size: int,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "LongConvState":
        """The state before the first token."""
        recent = torch.zeros(batch_size, BLOCK, channels, device=device, dtype=dtype)
        return LongConvState(torch.zeros(batch_size, device=device, dtype=torch.int64), recent)

    @property
    def length(self) -> Tensor:
        """(B,) int64, tokens so far."""
        return self[0]

    @property
    def recent(self) -> Tensor:
        """(B, C, D), inputs since the last full block."""
        return self[1]

    @property
    def num_levels(self) -> int:
        """Levels present, empty ones included."""
        return len(self) // 2 - 1

    def level(self, m: int) -> tuple[Tensor, Tensor]:
        """(inputs_m, pending_m); empty if absent."""
        if m < self.num_levels:
            return self[2 + 2 * m], self[3 + 2 * m]
        return self.recent[:, :0], self.recent[:, :0]

    @property
    def _fields(self) -> tuple[str, ...]:
        """The names of the tensors, in order."""
        levels = (f"{name}_{m}" for m in range(self.num_levels) for name in ("inputs", "pending"))
        return ("length", "recent", *levels)

    def to(self, dtype: torch.dtype) -> "LongConvState":
        """The same with all but length in ``dtype``."""
        return LongConvState(self.length, *(tensor.to(dtype) for tensor in self[1:]))

    def select(self, rows: list[int]) -> "LongConvState":
        """The rows ``rows``, in that order."""
        index = torch.tensor(rows, device=self.length.device)
        return LongConvState(*(tensor.index_select(0, index) for tensor in self))


def cat_rows(states: Sequence[LongConvState], rows: Sequence[int] | None = None) -> LongConvState:
    """One state of all rows of ``states``; with ``rows``, the i-th of them all becomes row rows[i]."""
    joined = [torch.cat([state.length for state in states]), torch.cat([state.recent for state in states])]
    for m in range(max(state.num_levels for state in states)):
        for tensors in zip(*(state.level(m) for state in states), strict=True):
            size = max(tensor.shape[1] for tensor in tensors)
            joined.append(torch.cat([F.pad(tensor, (0, 0, 0, size - tensor.shape[1])) for tensor in tensors]))
    state = LongConvState(*joined)
    if rows is None or list(rows) == list(range(len(rows))):
        return state
    return state.select(sorted(range(len(rows)), key=lambda i: rows[i]))


def runs(blocks: int) -> list[tuple[int, int]]:
    """(level, first block) of each run that ``blocks`` full blocks are cut into, oldest first."""
    return [(m, blocks >> (m + 1) << (m + 1)) for m in reversed(range(blocks.bit_length())) if blocks >> m & 1]


def check_state(op: str, state: LongConvState | None, rows: int, channels: int, like: Tensor) -> list[int]:
    """The tokens so far of each row, after a look at the state."""
    if state is None:
        return [0] * rows
    if not isinstance(state, LongConvState):
        raise TypeError(f"{op}: initial_state must be a LongConvState or None, got {type(state).__name__}")
    length = state.length
    if length.shape != (rows,) or length.dtype != torch.int64:
        got = f"{length.dtype} of shape {tuple(length.shape)}"
        raise ValueError(f"{op}: initial_state.length must be torch.int64 of shape (B={rows},), got {got}")
    lengths = length.tolist()
    if rows and min(lengths) < 0:
        raise ValueError(f"{op}: initial_state.length must be >= 0, got {lengths}")
    used = 0
    for n in lengths:
        used |= n // BLOCK
    if used.bit_length() > state.num_levels:
        missing = f"inputs_{state.num_levels}"
        raise ValueError(f"{op}: initial_state needs {missing} for its length {max(lengths)}, got {state._fields}")
    dtype, device = state.recent.dtype, like.device
    if length.device != device:
        raise ValueError(f"{op}: initial_state.length must be on {device} like the inputs, got {length.device}")
    for i in range(1, len(state)):
        tensor, m = state[i], i // 2 - 1
        size = BLOCK << m if m > 0 else BLOCK
        if tensor.shape != (rows, size, channels) and (m < 0 or used >> m & 1 or tensor.shape != (rows, 0, channels)):
            shape = f"(B={rows}, {size}, D={channels})"
            name, got = state._fields[i], tuple(tensor.shape)
            raise ValueError(f"{op}: initial_state.{name} must have shape {shape}, got {got}")
        if tensor.dtype != dtype or not dtype.is_floating_point:
            expected = f"{dtype} like its recent" if dtype.is_floating_point else "floating point"
            raise TypeError(f"{op}: initial_state.{state._fields[i]} must be {expected}, got {tensor.dtype}")
        if tensor.device != device:
            name = state._fields[i]
            raise ValueError(f"{op}: initial_state.{name} must be on {device} like the inputs, got {tensor.device}")
    return lengths
