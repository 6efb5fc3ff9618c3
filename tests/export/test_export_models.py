"""Every model as a step and as a chunk, in both formats, beside the model itself over 1,000 tokens."""

from pathlib import Path
from typing import Any

import pytest

from longstream.export import Runner, export
from longstream.models import distill
from tests.export.tiny import MODELS, largest_difference, tiny, tiny_language

pytest.importorskip("onnxruntime")

FAST = {("edifice-hgrn", "step", "onnx")}
CASES = [
    pytest.param(
        name, graph, to, id=f"{name}-{graph}-{to}", marks=() if (name, graph, to) in FAST else pytest.mark.slow
    )
    for name in MODELS
    for graph in ("step", "chunk")
    for to in ("onnx", "pt2")
]
LENGTHS = (1, 7, 30, 2)


def check(
    model: Any, file: Path, graph: str, tokens: int | None = None, most: int | None = None, **options: Any
) -> None:
    """Export, and compare at two batch sizes."""
    report = export(model, file, to=file.suffix[1:], graph=graph, steps=20, **options)
    assert report.files == {graph: file}
    assert report.differences[graph].relative <= 1e-4
    tokens = tokens or (1000 if file.suffix == ".onnx" else 100)  # torch walks through a program node by node
    lengths = () if graph == "step" else LENGTHS if "chunk_length" not in options else (options["chunk_length"],)
    for B, count in ((1, 50), (3, tokens)):
        assert largest_difference(Runner(file, batch_size=B), model, count, lengths, most) < 1e-4


@pytest.mark.parametrize(("name", "graph", "to"), CASES)
def test_a_graph_is_its_model(name: str, graph: str, to: str, tmp_path: Path):
    most = MODELS[name].get("window_size") if "hyena" in name else None
    check(tiny(name), tmp_path / f"model.{to}", graph, most=most)
    with pytest.raises(FileExistsError):
        export(tiny(name), tmp_path / f"model.{to}", to=to, graph=graph)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hgrn", "hgrn2", "hyena"])
@pytest.mark.parametrize("graph", ["step", "chunk"])
def test_language_models(kind: str, graph: str, tmp_path: Path):
    """With short convolutions, complex numbers, several stages and heads; without the padding of the vocabulary."""
    check(tiny_language(kind), tmp_path / "model.onnx", graph, most=30 if kind == "hyena" else None)
    about = Runner(tmp_path / "model.onnx").about
    assert (about["kind"], about["vocab_size"], about["inputs"][0]["dtype"]) == ("tokens", 11, "int64")
    assert about["outputs"][0]["shape"][-1] == 11


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hgrn2", "hybrid", "hyena"])
def test_a_chunk_of_one_length(name: str, tmp_path: Path):
    most = 40 if name == "hyena" else None
    check(tiny(name), tmp_path / "model.onnx", "chunk", tokens=200, most=most, chunk_length=8)
    runner = Runner(tmp_path / "model.onnx")
    assert runner.about["length"] == 8
    assert runner.chunk([[0.1] * 5] * 16).shape == (16, 8)
    with pytest.raises(ValueError, match="a multiple of 8 in number, got 7"):
        runner.chunk([[0.1] * 5] * 7)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["step", "chunk"])
def test_modal_hyena(graph: str, tmp_path: Path):
    """As the model decodes after distill; the graph's state is the modes."""
    model = tiny("hyena", order=3)
    distill(model, order=3)
    check(model, tmp_path / "model.onnx", graph, most=40)
    about = Runner(tmp_path / "model.onnx").about
    assert about["hyena"] == "modal"
    assert {"name": "layers.0.modes", "shape": ["batch", 2, 8, 3, 2], "dtype": "float32", "initial": 0} in about[
        "state"
    ]


def test_modes_are_fitted_on_the_way(tmp_path: Path):
    """The model given stays as it is; what is said names the error of each layer."""
    model, lines = tiny("hyena", num_layers=1), []
    report = export(model, tmp_path / "model.pt2", to="pt2", modes=2, steps=60, tell=lines.append)
    assert report.hyena == "modal"
    assert "order 2: relative l2 error" in lines[0]
    assert "backbone.layers.0.mixer" in lines[0]
    assert model.backbone.layers[0].mixer.decode == "tiled"


@pytest.mark.slow
def test_nothing_but_standard_operators(tmp_path: Path):
    """No custom operator, no function, no Fourier transform; nor where on whose disk the model was traced."""
    import onnx

    file = tmp_path / "model.onnx"
    export(tiny("hyena", num_layers=1, window_size=8), file, graph="chunk", steps=20)
    model = onnx.load(file)
    assert not model.functions
    assert [imported.domain for imported in model.opset_import] == [""]
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"DFT", "STFT"}
    assert b"site-packages" not in file.read_bytes()
    dims = [[d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in model.graph.input]
    assert dims == [["batch", "time", 5], ["batch", 2, 24], ["batch", 1, 8, 7], ["batch"]]
    assert [port.name for port in model.graph.output] == [
        "output",
        "new_state.layers.0.conv",
        "new_state.layers.0.past",
        "new_state.position",
    ]
