"""What Hyena carries from token to token, for each way to go on. C is the block of `longstream.ops.long_conv`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longstream.layers.state import register_state
from longstream.ops import LongConvState
from longstream.ops.long_conv.state import BLOCK


@register_state
class HyenaState(tuple[Tensor, ...]):
    """The state with decode "tiled": a named tuple of as many tensors as the past needs, float32 or wider.

    conv (B, W - 1, (N + 1) D): the last inputs of the short convolution, oldest first. Then a LongConvState of the
    S = N - 1 stages, stacked in dim 1: length (B,) int64, tokens taken in; recent (B, S, C, D); inputs_0, pending_0,
    inputs_1, ...
    """

    __slots__ = ()

    def __new__(cls, *tensors: Tensor) -> "HyenaState":
        """From the tensors, in the order of ``_fields``."""
        if len(tensors) < 3 or len(tensors) % 2 == 0:
            raise TypeError(f"HyenaState: expected conv, length, recent and two tensors a level, got {len(tensors)}")
        return super().__new__(cls, tensors)

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copy and pickle: __new__ takes the tensors one by one
        return tuple(self)

    @property
    def _fields(self) -> tuple[str, ...]:
        levels = range((len(self) - 3) // 2)
        return ("conv", "length", "recent", *(f"{kind}_{m}" for m in levels for kind in ("inputs", "pending")))

    @property
    def conv(self) -> Tensor:
        """(B, W - 1, (N + 1) D)."""
        return self[0]

    @property
    def length(self) -> Tensor:
        """(B,) int64."""
        return self[1]

    def stages(self) -> list[LongConvState]:
        """The state of each stage's long convolution."""
        stacked = [tensor.unbind(1) for tensor in self[2:]]
        return [LongConvState(self[1], *(tensors[s] for tensors in stacked)) for s in range(self[2].shape[1])]


@register_state
class HyenaNaiveState(NamedTuple):
    """The state with decode "naive", float32 or wider."""

    conv: Tensor  # (B, W - 1, (N + 1) D)
    length: Tensor  # (B,) int64
    past: Tensor  # (B, S, P, D): the inputs of each stage, oldest first, zeros from a row's length on


@register_state
class HyenaModalState(NamedTuple):
    """The state with decode "modal", float32 or wider."""

    conv: Tensor  # (B, W - 1, (N + 1) D)
    length: Tensor  # (B,) int64
    modes: Tensor  # (B, S, D, M, 2): sum over the past of pole^age * input, real and imaginary part


STATES = {"tiled": HyenaState, "naive": HyenaNaiveState, "modal": HyenaModalState}


def zero_state(mode: str, rows: int, stages: int, D: int, conv: tuple[int, int], modes: int, like: Any) -> Any:
    """The state before the first token; ``conv`` is (W - 1, (N + 1) D), ``like`` the keywords device and dtype."""
    taken = torch.zeros(rows, *conv, **like), torch.zeros(rows, dtype=torch.long, device=like["device"])
    past = {"tiled": (BLOCK, D), "naive": (0, D), "modal": (D, modes, 2)}[mode]
    return STATES[mode](*taken, torch.zeros(rows, stages, *past, **like))


def check_hyena_state(state: Any, mode: str, rows: int, stages: int, D: int, conv: tuple[int, int], modes: int) -> None:
    """Refuse a state of another mode or size."""
    kind = STATES[mode]
    if not isinstance(state, kind):
        other = next((name for name, kind in STATES.items() if isinstance(state, kind)), None)
        got = type(state).__name__ + (f" of decode {other!r}; see set_decode" if other else "")
        raise TypeError(f"Hyena: state must be a {kind.__name__} or None, for decode is {mode!r}, got {got}")
    past = {"tiled": (BLOCK, D), "naive": (None, D), "modal": (D, modes, 2)}[mode]
    expected = ((rows, *conv), (rows,), (rows, stages, *past))
    for name, tensor, shape in zip(state._fields, state, expected, strict=False):  # the op looks at the blocks
        if not _fits(tensor, shape):
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"Hyena: state.{name} must have shape ({wanted}), got {got}")


def _fits(tensor: Any, shape: tuple[int | None, ...]) -> bool:
    if not isinstance(tensor, Tensor) or tensor.dim() != len(shape):
        return False
    return all(size is None or size == now for size, now in zip(shape, tensor.shape, strict=True))
