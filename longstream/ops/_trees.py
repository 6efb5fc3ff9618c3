"""States as trees of tensors, which is how torch.export looks into what a model returns, and saves it."""

from typing import Any, TypeVar

import torch.utils._pytree as pytree

T = TypeVar("T", bound=type)


def register_tree(cls: T) -> T:
    """Class decorator for a tuple of tensors, named or not: its tensors are what it consists of."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if "_make" in vars(cls):  # a NamedTuple, which torch knows but for its name in a file
        pytree._register_namedtuple(cls, serialized_type_name=name)
    else:
        pytree.register_pytree_node(
            cls, lambda parts: (list(parts), None), lambda parts, _: cls(*parts), serialized_type_name=name
        )
    return cls


def register_fields(cls: Any, parts: tuple[str, ...], constant: str) -> None:
    """The same for a dataclass of ``parts``, which are trees, and one string."""
    pytree.register_pytree_node(
        cls,
        lambda value: ([getattr(value, name) for name in parts], getattr(value, constant)),
        lambda values, text: cls(**dict(zip(parts, values, strict=True)), **{constant: text}),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
    )
