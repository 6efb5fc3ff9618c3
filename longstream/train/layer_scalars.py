"""A few numbers by layer while a model trains: how long its forget gates remember, how large its gradients are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from longstream.layers import HGRN, HGRN2
from longstream.models import Backbone
from longstream.ops import forget_gate

SATURATED = 1e-3  # a gate this near to 1, or to its lower bound, hardly answers to its input
LONGEST = 1e9  # tokens; a gate of exactly 1 has no finite time scale
SCALARS = ("time_scale_mean", "time_scale_median", "time_scale_90", "saturation", "grad_norm")


class Gates(NamedTuple):
    """The forget gates of one layer on some tokens."""

    layer: int
    log_forget: Tensor  # (N, E), natural log
    input_gate: Tensor  # (N, E), 1 - forget
    bound: Tensor  # (E,), the lower bound of forget
    complement: Tensor  # (E,), 1 - bound

    @property
    def lasting(self) -> Tensor:
        """(E,) float64. ``1 / (1 - f)`` of the constant gate f that would let through as much over all N tokens."""
        return -1 / torch.expm1(self.log_forget.double().mean(0)).clamp(max=-1 / LONGEST)

    @property
    def at_one(self) -> Tensor:
        """(N, E) bool, where forget is next to 1."""
        return self.input_gate < SATURATED

    @property
    def at_bound(self) -> Tensor:
        """(N, E) bool, where forget is next to its lower bound."""
        return self.complement - self.input_gate < SATURATED


def find_backbone(model: nn.Module) -> Backbone | None:
    """The blocks of a model of this library; None for other models."""
    return next((module for module in model.modules() if isinstance(module, Backbone)), None)


@contextmanager
def recorded_gates(backbone: Backbone, take: Callable[[Gates], None]) -> Iterator[None]:
    """Within, ``take`` gets the forget gates of every layer that has some, each time the layer runs."""
    handles = []
    for layer, (block, limit) in enumerate(zip(backbone.layers, backbone.bounds_of_layers(), strict=True)):
        mixer = block.mixer
        if not isinstance(mixer, HGRN | HGRN2):
            continue

        def hook(module: nn.Module, inputs: Any, output: Any, layer: int = layer, limit: Any = limit) -> None:
            z = output[0] if isinstance(output, tuple) else output  # a convolution also returns its last inputs
            with torch.no_grad():
                z = z.detach().flatten(0, -2)
                log_forget, input_gate = forget_gate(z, limit)
                ones = torch.ones_like(input_gate[0])
                bound, complement = (1 - ones, ones) if limit is None else (part.detach() for part in limit)
                take(Gates(layer, log_forget, input_gate, bound, complement))

        last = mixer.forget_conv if mixer.conv_size else mixer.forget_proj
        handles.append(last.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradient_norms(backbone: Backbone, named: dict[nn.Parameter, Tensor | None]) -> list[float]:
    """The norm of each layer's gradient, of the gradients by parameter."""
    norms = []
    for block in backbone.layers:
        found = [g for p in block.parameters() if (g := named.get(p)) is not None]
        norms.append(float(torch.stack([g.double().norm() for g in found]).norm()) if found else 0.0)
    return norms


def layer_scalars(model: nn.Module, loss_of: Callable[[], Tensor]) -> dict[str, list[float | None]]:
    """SCALARS by layer: of the forget gates in the pass that ``loss_of`` makes, and of the gradient of its loss.

    Returns:
        For each of SCALARS a number a layer, None where a layer has no forget gates; empty where the model is of
        another library.
    """
    backbone = find_backbone(model)
    if backbone is None:
        return {}
    seen: dict[int, Gates] = {}
    with torch.random.fork_rng(), recorded_gates(backbone, lambda gates: seen.update({gates.layer: gates})):
        loss = loss_of()
        trained = [p for p in model.parameters() if p.requires_grad]
        # autograd.grad leaves alone what the optimizer, and other processes, take their gradients from
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    norms = gradient_norms(backbone, dict(zip(trained, gradients, strict=True)))
    rows = [_summarize(seen.get(layer), norm) for layer, norm in enumerate(norms)]
    found = {name: [row[i] for row in rows] for i, name in enumerate(SCALARS)}
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _summarize(gates: Gates | None, norm: float) -> Sequence[float | None]:
    if gates is None:
        return (None, None, None, None, norm)
    times = gates.lasting
    high = float(times.quantile(0.9))
    saturation = float((gates.at_one | gates.at_bound).double().mean())
    return (float(times.mean()), float(times.median()), high, saturation, norm)


class LayerLog(TrainerCallback):
    """Writes `layer_scalars` of the last training batch at each evaluation. For the first process only.

    Args:
        write:   as of `longstream.train.callbacks.RunLog`.
        trainer: of the run.
    """

    def __init__(self, write: Callable[[str, int, dict[str, Any]], None], trainer: Any) -> None:
        self.write, self.trainer = write, trainer

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer.has_last_batch:  # of a session that begins with an evaluation
            return
        if row := layer_scalars(self.trainer.network, self.trainer.loss_of_last_batch):
            self.write("layers", state.global_step, row)
