"""From a model to a copy of it that can be traced: refusals by the layer's path, and layers in the form of a graph."""

import copy
from typing import Any

import torch
from torch import nn

from longstream.edifice._hgrn import HGRNLayer
from longstream.edifice._hyena import HyenaBlock
from longstream.export.adapters import Adapter
from longstream.export.hyena import HyenaBlockGraph, HyenaGraph
from longstream.layers import Hyena


def refuse(adapter: Adapter) -> None:
    """Raise for a layer that no graph with a state can have, by its path.

    Raises:
        ValueError: the layer's path, and why.
    """
    for path, module in adapter.model.named_modules():
        if why := _why_not(module):
            raise ValueError(f"export: layer {path or type(module).__name__} cannot be exported: {why}")
    try:
        state: Any = adapter.init_state(1)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"export: {type(adapter.model).__name__} cannot be exported: {error}") from error
    if state is None:
        backbone = type(getattr(adapter.model, "backbone", adapter.model)).__name__
        raise ValueError(f"export: layer backbone cannot be exported: {backbone} has no state to go on from")


def _why_not(module: nn.Module) -> str | None:
    direction = getattr(module, "direction", "causal")
    if isinstance(direction, str) and direction != "causal":
        return f"direction {direction!r} needs a whole sequence, and has no state"
    if isinstance(module, Hyena) and not module.causal:
        return "causal is False, which needs a whole sequence, and has no state"
    if isinstance(module, HGRNLayer) and module.scan == "edifice":
        return "scan 'edifice' takes whole sequences from the start; build with scan='exact'"
    return None


@torch.no_grad()  # tables made from parameters are constants
def traceable(adapter: Adapter, hyena: str) -> Adapter:
    """A copy in float32, in evaluation mode and on the CPU, with ops in plain torch and Hyena in the form of a graph.

    Args:
        hyena: "exact" or "modal"; see `longstream.export.hyena`.
    """
    adapter = oracle(adapter)
    for module in adapter.modules():
        if hasattr(module, "backend"):
            module.backend = "torch"  # type: ignore[assignment]
    for parent in [*adapter.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, Hyena):
                parent._modules[name] = HyenaGraph(child, hyena == "modal")
            elif isinstance(child, HyenaBlock):
                parent._modules[name] = HyenaBlockGraph(child)
    return adapter.eval().requires_grad_(False)


def oracle(adapter: Adapter) -> Adapter:
    """A copy in float32, in evaluation mode and on the CPU, otherwise as it is: what a graph is compared with."""
    return copy.deepcopy(adapter).cpu().float().eval()
