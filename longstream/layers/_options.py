"""Arguments of mixers, refused in one voice: who, which argument, expected, got."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_one_of(who: str, **arguments: tuple[Any, Sequence[str]]) -> None:
    """Refuse what is not among the known: ``name=(value, known)``."""
    for name, (value, known) in arguments.items():
        if value not in known:
            raise ValueError(f"{who}: {name} must be one of {tuple(known)}, got {value!r}")


def check_integers(who: str, **arguments: tuple[Any, int]) -> None:
    """Refuse what is no integer, or too small: ``name=(value, least)``."""
    for name, (value, least) in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{who}: {name} must be an integer >= {least}, got {value!r}")


def check_flags(who: str, **arguments: Any) -> None:
    """Refuse what is neither True nor False."""
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise ValueError(f"{who}: {name} must be True or False, got {value!r}")


def check_epsilon(who: str, norm_eps: Any) -> None:
    """Refuse what cannot be added to a mean square."""
    if not isinstance(norm_eps, int | float) or not norm_eps >= 0:
        raise ValueError(f"{who}: norm_eps must be a number >= 0, got {norm_eps!r}")


def check_state(who: str, state: Any, kind: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse a state of another kind (a NamedTuple of tensors), or with tensors of other shapes."""
    if not isinstance(state, kind):
        raise TypeError(f"{who}: state must be an {kind.__name__} or None, got {type(state).__name__}")
    for name, tensor, shape in zip(kind._fields, state, shapes, strict=True):
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{who}: state.{name} must have shape {shape}, got {got}")
