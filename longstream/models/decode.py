"""How the Hyena layers of a model decode: exactly, or through a few modes fitted to their filters."""

from torch import nn

from longstream.layers.hyena import Hyena
from longstream.layers.modal import DistillReport


def set_decode(model: nn.Module, mode: str) -> None:
    """Make every Hyena layer decode by "tiled" (exact, the default), "naive" (exact, for tests) or "modal".

    States of one mode are refused in another. Nothing changes where one layer refuses.

    Raises:
        ValueError: an unknown mode, or no Hyena layer.
        RuntimeError: a layer is not causal, or has no modal filters for "modal": `distill` makes them.
    """
    layers = hyena_layers("set_decode", model)
    before = {name: layer.decode for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.set_decode(mode)
            layer.init_state(0)  # refuses "modal" without modal filters
    except (ValueError, RuntimeError):
        for name, layer in layers.items():
            layer.decode = before[name]
        raise


def distill(
    model: nn.Module, order: int | None = None, *, tol: float | None = None, extrapolate: bool = False
) -> dict[str, DistillReport]:
    """Fit poles and residues to the filters of every Hyena layer, and decode by them: O(order) a token and channel.

    Laughing Hyena (Massaroli et al. 2023, arXiv:2310.18780). See `longstream.layers.Hyena.distill`. Nothing changes
    unless every layer stays within the tolerance.

    Args:
        order:       modes of each filter.
        tol:         largest relative error of a filter; without an order, the smallest that reaches it is taken.
        extrapolate: whether to go on past max_seq_len, the modes decaying as they do.
    Returns:
        A report for each layer by its name in the model.
    Raises:
        ValueError: a layer cannot reach the tolerance (by how much is said), or there is no Hyena layer.
        RuntimeError: a layer is not causal.
    """
    reports = {}
    layers = hyena_layers("distill", model)
    before = {name: layer._modal for name, layer in layers.items()}
    for name, layer in layers.items():
        try:
            reports[name] = layer.distill(order, tol=tol, extrapolate=extrapolate)
        except (ValueError, RuntimeError) as error:
            for other in layers:
                layers[other]._modal = before[other]
            raise type(error)(f"distill: layer {name}: {error}") from error
    for layer in layers.values():
        layer.set_decode("modal")
    return reports


def longest(model: nn.Module) -> int | None:
    """The most tokens that a sequence may have now, as Hyena's layers are set; None is no limit."""
    limits = [layer.longest for layer in model.modules() if isinstance(layer, Hyena)]
    return min((limit for limit in limits if limit is not None), default=None)


def hyena_layers(who: str, model: nn.Module) -> dict[str, Hyena]:
    """The Hyena layers of a model by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Hyena)}
    if not found:
        raise ValueError(f"{who}: the model must have a Hyena layer, got {type(model).__name__} without one")
    return found
