"""Writing a traced program: an ONNX model or a pt2 archive, with what there is to know of it inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from longstream.export.adapters import Adapter
from longstream.export.graphs import Layout
from longstream.export.sessions import FILE, FORMAT, KEY, need_onnx, quiet


def describe(
    program: torch.export.ExportedProgram,
    adapter: Adapter,
    layout: Layout,
    graph: str,
    length: int | None,
    more: dict[str, Any],
) -> dict[str, Any]:
    """The metadata of a graph: what goes in and out, by name, and what the model is."""
    from longstream import __version__

    time = [] if graph == "step" else ["time" if length is None else length]
    state = [
        {"name": tensor.name, "shape": ["batch", *tensor.tail], "dtype": _word(tensor.dtype)}
        for tensor in layout.tensors
    ]
    name = adapter.inputs[graph == "chunk"]
    x = {"name": name, "shape": ["batch", *time, *adapter.tail], "dtype": _word(adapter.dtype)}
    y = _first_output(program)
    each_frame = graph == "chunk" and adapter.each_frame
    shape = ["batch", *(time if each_frame else []), *y.shape[1 + each_frame :]]
    return {
        "format": FORMAT,
        "longstream": __version__,
        "graph": graph,
        "each_frame": each_frame,
        "length": 1 if graph == "step" else "dynamic" if length is None else length,
        "fingerprint": layout.first.fingerprint,
        "max_seq_len": adapter.max_seq_len,
        "inputs": [x, *({**tensor, "name": f"state.{tensor['name']}"} for tensor in state)],
        "outputs": [
            {"name": adapter.output, "shape": shape, "dtype": _word(y.dtype)},
            *({**tensor, "name": f"new_state.{tensor['name']}"} for tensor in state),
        ],
        "state": [{**tensor, "initial": 0} for tensor in state],
        **adapter.about(),
        **more,
    }


def write(program: torch.export.ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """Write to a path that ends in .onnx or .pt2."""
    text = json.dumps(about)
    if path.suffix == ".pt2":
        _forget_source(program.graph_module)
        with quiet():
            torch.export.save(program, path, extra_files={FILE: text})
        return
    need_onnx("onnx", "onnxscript")
    from onnxscript import ir

    try:
        with quiet():
            made = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # torch's own kinds, which have no common base
        raise ValueError(f"export: torch cannot write this model as ONNX: {error}") from error
    assert made is not None
    model = made.model
    passes: Any = ir.passes
    passes.common.InlinePass()(model)  # the bodies of Scan come as functions, which not every runtime takes
    for values, wanted in ((model.graph.inputs, about["inputs"]), (model.graph.outputs, about["outputs"])):
        for value, port in zip(values, wanted, strict=True):
            value.name, value.shape = port["name"], ir.Shape(port["shape"])
    for node in model.graph.all_nodes():  # where in whose files it came from
        node.metadata_props.clear()
    model.producer_name, model.metadata_props[KEY] = "longstream", text
    with quiet():
        made.save(path)


def _first_output(program: torch.export.ExportedProgram) -> torch.Tensor:
    name, *_ = program.graph_signature.user_outputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return node.meta["val"]


def _forget_source(module: torch.fx.GraphModule) -> None:
    """Leave out where in whose files each node came from."""
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
