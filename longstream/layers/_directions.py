"""Mixers that look other ways than back: what they refuse, and scans along more ways than one."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from longstream.layers.state import refuse_state


def check_direction_and_conv(who: str, direction: str, conv_size: int) -> None:
    """A short convolution looks back only, so it goes with the causal direction only."""
    if conv_size and direction != "causal":
        raise ValueError(f"{who}: conv_size must be 0 unless direction is 'causal', got {conv_size} and {direction!r}")


def refuse_in_direction(who: str, direction: str, state: Any, mask: Any, cu_seqlens: Any) -> None:
    """A direction other than causal has no state, and one over an image no padding and no packing."""
    refuse_state(who, state, direction)
    for name, value in (("mask", mask), ("cu_seqlens", cu_seqlens)):
        if value is not None and direction.startswith("2d"):
            raise ValueError(
                f"{who}: {name} must be None, got {type(value).__name__}: {direction!r} takes whole images"
            )


def both_ways(scan: Callable[..., Tensor], *tensors: Tensor, bounds: list[int] | None = None) -> Tensor:
    """``scan(*tensors, reverse, bounds)`` from the first token plus that from the last; both count a token itself."""
    return scan(*tensors, False, bounds) + scan(*tensors, True, bounds)


def along(dim: int, run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``run`` on the lines along dim 1 or 2 of (B, height, width, ...), which it sees as rows (lines, length, ...)."""
    lines = [tensor.transpose(1, 2) if dim == 1 else tensor for tensor in tensors]  # (B, number, length, ...)
    out = run(*(tensor.flatten(0, 1) for tensor in lines)).unflatten(0, lines[0].shape[:2])
    return out.transpose(1, 2) if dim == 1 else out


def four_ways(scan: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The sum of ``scan`` down, up, right and left over (B, height, width, ...) tensors."""

    def lines(*rows: Tensor) -> Tensor:
        return both_ways(scan, *rows)

    return along(1, lines, *tensors) + along(2, lines, *tensors)
