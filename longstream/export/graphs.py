"""A model's step or chunk as a graph: named tensors in, named tensors out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longstream.export.adapters import Adapter
from longstream.export.hyena import graph_state
from longstream.export.sessions import quiet
from longstream.models import State


class StateTensor(NamedTuple):
    """One tensor of a state: its name, its shape without the batch, and its dtype."""

    name: str
    tail: tuple[int, ...]
    dtype: torch.dtype


class Layout:
    """Which tensors a graph's state has, and how they make up the model's `State`."""

    def __init__(self, first: State):
        self.first = first
        self.fields = [(i, field) for i, layer in enumerate(first.layers) for field in layer._fields]
        self.tensors = [
            StateTensor(name, tuple(tensor.shape[1:]), tensor.dtype)
            for name, tensor in self._named(first).items()
            if tensor.numel()  # what is empty for every batch is not carried
        ]

    def _named(self, state: State) -> dict[str, Tensor]:
        named = {f"layers.{i}.{field}": getattr(state.layers[i], field) for i, field in self.fields}
        return named | {"position": state.position}

    def split(self, state: State) -> dict[str, Tensor]:
        """The tensors of a state by name; of a model's own too, which the graph of its Hyena layers does not have.

        Raises:
            ValueError: it is a state of another model, or of another decode.
        """
        if state.fingerprint != self.first.fingerprint or len(state.layers) != len(self.first.layers):
            raise ValueError(
                f"export: the state belongs to another model: expected fingerprint {self.first.fingerprint}, got"
                f" {state.fingerprint}"
            )
        layers = tuple(graph_state(layer, like) for layer, like in zip(state.layers, self.first.layers, strict=True))
        named = self._named(State(layers, state.position, state.fingerprint))
        return {tensor.name: named[tensor.name] for tensor in self.tensors}

    def join(self, tensors: dict[str, Tensor]) -> State:
        """The state of these tensors."""
        rows = tensors["position"].shape[0]
        layers: list[list[Tensor]] = [[] for _ in self.first.layers]
        for i, field in self.fields:
            like: Tensor = getattr(self.first.layers[i], field)
            name = f"layers.{i}.{field}"
            layers[i].append(tensors[name] if name in tensors else like.new_zeros(rows, *like.shape[1:]))
        kinds = [type(layer) for layer in self.first.layers]
        made = tuple(kind(*parts) for kind, parts in zip(kinds, layers, strict=True))
        return State(made, tensors["position"], self.first.fingerprint)


class Graph(nn.Module):
    """What is traced: ``(x, {name: tensor}) -> (y, {name: tensor})``."""

    def __init__(self, adapter: Adapter, layout: Layout, graph: str):
        super().__init__()
        self.adapter, self.graph = adapter, graph
        self.layout = layout

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        run = self.adapter.step if self.graph == "step" else self.adapter.chunk
        y, after = run(x, self.layout.join(state))
        return y, {name: tensor.clone() for name, tensor in self.layout.split(after).items()}


def trace(adapter: Adapter, graph: str, length: int | None) -> tuple[torch.export.ExportedProgram, Layout]:
    """The program of a step, or of a chunk of ``length`` tokens, None being any number; the batch is always dynamic.

    Raises:
        ValueError: torch cannot trace the model; the message has its words.
    """
    layout = Layout(adapter.init_state(1))
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    rows, example_length = 3, 5
    shape, dims = (rows,), {0: batch}
    if graph == "chunk":
        shape = (rows, example_length if length is None else length)
        if length is None:
            dims = {0: batch, 1: torch.export.Dim("time", min=1, max=1 << 20)}
    x = adapter.example(*shape)
    state = {name: torch.zeros(rows, *tail, dtype=dtype) for name, tail, dtype in layout.tensors}
    shapes: Any = (dims, {name: {0: batch} for name in state})
    module = Graph(adapter, layout, graph)
    # What was compiled before in this process is compared with what is traced now, and each comparison of a length
    # would become a condition of the graph.
    torch.compiler.reset()
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module, (x, state), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch's own kinds, which have no common base
        reason = _reason(str(error))
        raise ValueError(f"export: {type(adapter.model).__name__} cannot be traced: {reason}") from error
    return program, layout


def _reason(text: str) -> str:
    """What torch says first, and the conditions that it lists below, in one line."""
    first, *more = text.strip().splitlines()
    return " ".join([first, *(line.strip() for line in more if line.lstrip().startswith("- "))])
