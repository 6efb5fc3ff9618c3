"""What the states of all layers have in common: a registry by name, and how states of different sizes are evened out.

A layer's state is a tuple of tensors with `_fields`, batch first. What a tensor, or the tuple, lacks at its end counts
as zeros: a state may keep room for more than it holds, and states of long and short sequences can share a batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from longstream.ops._trees import register_tree

STATES: dict[str, Any] = {}  # by class name, for reading them from a file

T = TypeVar("T", bound=type)


def register_state(cls: T) -> T:
    """Class decorator: files of states may hold this one, and graphs of torch.export return it."""
    STATES[cls.__name__] = cls
    return allow_weights_only(register_tree(cls))


def allow_weights_only(cls: T) -> T:
    """Class decorator: ``torch.load(..., weights_only=True)`` may make this class, for doing so runs nothing."""
    torch.serialization.add_safe_globals([cls])
    return cls


@register_state
class NoState(NamedTuple):
    """The state of a mixer that looks both ways: nothing, for it cannot go on from token to token."""


def refuse_state(who: str, state: Any, direction: str) -> None:
    """A mixer that needs the whole sequence at once cannot start from a state."""
    if state is not None:
        raise ValueError(f"{who}: state must be None, got {type(state).__name__}: {direction!r} needs a whole sequence")


def refuse_step(who: str, direction: str) -> None:
    """A mixer that needs the whole sequence at once has no step."""
    raise RuntimeError(f"{who}.step: direction {direction!r} needs a whole sequence; only 'causal' goes token by token")


def zero_pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor with zeros at the end of each dimension after the first, up to ``shape``."""
    pads: list[int] = []
    for now, wanted in zip(tensor.shape[:0:-1], tuple(shape)[:0:-1], strict=True):
        pads += [0, wanted - now]
    return torch.nn.functional.pad(tensor, pads) if any(pads) else tensor


def even_out(states: Sequence[Any]) -> list[list[Tensor]]:
    """The tensors of states of one kind, as many and as large after the first dimension as in the largest of them."""
    count = max(len(state) for state in states)
    shapes = [
        tuple(max(sizes) for sizes in zip(*(s[i].shape[1:] for s in states if i < len(s)), strict=True))
        for i in range(count)
    ]
    like = max(states, key=len)
    return [
        [
            zero_pad(state[i], (0, *shapes[i])) if i < len(state) else like[i].new_zeros(state[0].shape[0], *shapes[i])
            for i in range(count)
        ]
        for state in states
    ]


def cat_states(states: Sequence[Any]) -> Any:
    """One state of all rows."""
    like = max(states, key=len)
    return type(like)(*(torch.cat(tensors) for tensors in zip(*even_out(states), strict=True)))
