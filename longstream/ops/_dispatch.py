"""Choosing a backend: by name, or the first in an op's table that can run on the call's tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Backend(NamedTuple):
    """One way to compute an op: ``run`` computes it, ``why_not(x)`` is None or says why it cannot run on x."""

    run: Callable[..., Any]
    why_not: Callable[[Tensor], str | None]


_TABLES: dict[str, dict[str, Backend]] = {}


def runs_anywhere(x: Tensor) -> str | None:
    """``why_not`` of a backend in plain torch, which has no conditions."""
    return None


def register(op: str, table: dict[str, Backend]) -> dict[str, Backend]:
    """Make an op's table known to `available_backends`; the order is the order of preference."""
    _TABLES[op] = table
    return table


def pick(op: str, table: dict[str, Backend], backend: str, x: Tensor) -> Callable[..., Any]:
    """Return what to run; "auto" takes the first able backend in table order."""
    if backend != "auto" and backend not in table:
        raise ValueError(f"{op}: unknown backend {backend!r}; choose 'auto' or one of {list(table)}")
    refusals: dict[str, str] = {}
    for name in table if backend == "auto" else [backend]:
        refusal = table[name].why_not(x)
        if refusal is None:
            return table[name].run
        refusals[name] = refusal
    raise RuntimeError(f"{op}: no backend can run this call: {refusals}")


def available_backends(op: str, x: Tensor | None = None) -> dict[str, str | None]:
    """Each backend of ``op``, in order of preference: None if it can run on ``x``, else why not.

    Without ``x`` the question is about a CPU tensor.

    Raises:
        ValueError: there is no such op.
    """
    if op not in _TABLES:
        raise ValueError(f"available_backends: unknown op {op!r}; choose one of {sorted(_TABLES)}")
    x = torch.empty(0) if x is None else x
    return {name: backend.why_not(x) for name, backend in _TABLES[op].items()}


def op_names() -> list[str]:
    """The ops that have backends to choose from."""
    return sorted(_TABLES)
