"""What cannot be exported or run, and in which words."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longstream import baselines
from longstream.export import Runner, export, prepare, run
from tests.export.tiny import tiny


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: tiny("hgrn", direction="bidirectional"),
            r"layer backbone.layers.0.mixer .* direction 'bidirectional'",
        ),
        (lambda: tiny("hgrn2", direction="2d_parallel"), "layer backbone.layers.0.mixer .* '2d_parallel'"),
        (lambda: tiny("hyena", causal=False), "layer backbone.layers.0.mixer .* causal is False"),
        (lambda: tiny("edifice-hgrn", scan="edifice"), "layer backbone.layers.0.rnn .* scan 'edifice'"),
        (lambda: baselines.build("mamba", embed_dim=5, hidden_size=8, num_layers=1), "cannot be exported"),
    ],
    ids=["bidirectional", "2d", "two-sided", "edifice's scan", "mamba"],
)
def test_a_layer_without_a_state(model, message, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        export(model(), tmp_path / "model.pt2", to="pt2")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"to": "tflite"}, ValueError, "to must be one of .*'onnx', 'pt2'.* got 'tflite'"),
        ({"graph": "loop"}, ValueError, "graph must be one of"),
        ({"hyena": "fft"}, ValueError, "hyena must be one of"),
        ({"graph": "chunk", "chunk_length": 0}, ValueError, "chunk_length must be an integer >= 1, got 0"),
        ({"chunk_length": 4}, ValueError, "chunk_length is of graph 'chunk' or 'both', got graph 'step' and 4"),
        ({"graph": "both"}, ValueError, "path must be a folder for both graphs"),
        ({"to": "onnx"}, ValueError, r"path must end in .onnx, or be a folder"),
        ({"steps": 0}, ValueError, "steps must be an integer >= 1"),
        ({"tolerance": 0}, ValueError, "tolerance must be a number > 0"),
        ({"tolerance": float("inf")}, ValueError, "tolerance must be a number > 0"),
        ({"modes": 4}, ValueError, "without modes: the model has no Hyena layer"),
        ({"modes": 4, "hyena": "exact"}, ValueError, "modes are of hyena 'modal'"),
        ({"hyena": "modal"}, ValueError, "the model has no Hyena layer"),
    ],
    ids=str,
)
def test_arguments(options, error, message, tmp_path: Path):
    with pytest.raises(error, match=message):
        export(tiny("hgrn"), tmp_path / "model.pt2", **{"to": "pt2", **options})
    assert not [*tmp_path.iterdir()]


def test_places(tmp_path: Path):
    (tmp_path / "model.pt2").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite, replaces it"):
        export(tiny("hgrn"), tmp_path / "model.pt2", to="pt2")
    with pytest.raises(FileNotFoundError, match="no folder"):
        export(tiny("hgrn"), tmp_path / "a" / "b" / "model.pt2", to="pt2")
    with pytest.raises(ValueError, match="got the file"):
        export(tiny("hgrn"), Path(__file__), to="pt2")
    with pytest.raises(TypeError, match=r"model must be a FeatureModel, .* got Linear"):
        export(torch.nn.Linear(2, 2), tmp_path / "other.pt2", to="pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "mine"


def test_hyena_without_modes(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"layer backbone.layers.0.mixer has no modal filters: give modes \(--modes N\)"
    ):
        export(tiny("hyena"), tmp_path / "model.pt2", to="pt2", hyena="modal")
    with pytest.raises(ValueError, match="Edifice's Hyena has no modal form"):
        export(tiny("edifice-hyena"), tmp_path / "model.pt2", to="pt2", modes=3)
    with pytest.raises(ValueError, match="chunk_length must be at most the model's 40 tokens, got 41"):
        export(tiny("hyena"), tmp_path / "model.pt2", to="pt2", graph="chunk", chunk_length=41)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages(package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*pip install 'longstream\[onnx\]'"):
        export(tiny("hgrn"), tmp_path / "model.onnx")


def test_a_graph_that_differs_is_not_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As if an operator were translated wrongly: a weight of what is traced is off by a thousandth."""

    def off(adapter, hyena):
        copy: Any = prepare.traceable(adapter, hyena)
        with torch.no_grad():
            copy.model.backbone.norm.weight.mul_(1.001)
        return copy

    monkeypatch.setattr(run, "traceable", off)
    with pytest.raises(
        ValueError, match=r"must stay within 0.0001 of the model, .* in output; nothing was put in place"
    ):
        export(tiny("hgrn"), tmp_path / "model.pt2", to="pt2", steps=10)
    assert not [*tmp_path.iterdir()]


# The runner.


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.pt2"
    export(tiny("hyena", num_layers=1, window_size=6), path, to="pt2", steps=12)
    return path


def test_a_wrong_frame_leaves_the_state(file: Path):
    runner = Runner(file, batch_size=2)
    runner.step(np.ones((2, 5)))
    before = runner.state
    for frame, message in (
        (np.ones((2, 4)), r"frame must have shape \(B=2, 5\), got \(2, 4\)"),
        (np.ones((3, 5)), r"shape \(B=2, 5\), got \(3, 5\)"),
        (np.ones(5), r"shape \(B=2, 5\), got \(5,\)"),
        ([[1.0] * 5, [1.0, np.nan, 1.0, 1.0, 1.0]], "frame must be finite, got nan in row 1, number 1"),
        ([["a"] * 5] * 2, "frame must be numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.step(frame)
    assert all((runner.state[name] == before[name]).all() for name in before)


def test_the_end_of_the_filters(file: Path):
    runner = Runner(file)
    outs = [runner.step(np.ones(5)) for _ in range(6)]
    with pytest.raises(ValueError, match="at most 6 tokens, got 6 and 1 more; reset it"):
        runner.step(np.ones(5))
    runner.reset()
    assert (runner.step(np.ones(5)) == outs[0]).all()


def test_rows_and_states(file: Path):
    """Rows begin anew by themselves, and a state that was kept is returned to bit for bit."""
    runner = Runner(file, batch_size=2)
    frames = np.random.default_rng(0).standard_normal((4, 2, 5))
    runner.step(frames[0])
    kept = runner.state
    after = runner.step(frames[1])
    runner.reset([1])
    assert runner.position.tolist() == [2, 0]
    runner.load(kept)
    assert (runner.step(frames[1]) == after).all()
    runner.reset(batch_size=3)
    assert runner.batch_size == 3
    with pytest.raises(ValueError, match=r"missing or spare: \['position'\]"):
        runner.load({name: tensor for name, tensor in kept.items() if name != "position"})
    with pytest.raises(ValueError, match=r"layers.0.past must have shape"):
        runner.load(kept | {"layers.0.past": kept["layers.0.past"][:, :, :, 1:]})
    with pytest.raises(ValueError, match=r"layers.0.past must be float32, got float64"):
        runner.load(kept | {"layers.0.past": kept["layers.0.past"].astype(float)})
    with pytest.raises(ValueError, match=r"layers.0.past must be finite"):
        runner.load(kept | {"layers.0.past": kept["layers.0.past"] * np.float32(np.nan)})
    with pytest.raises(ValueError, match="belongs to another model"):
        runner.load(tiny("hgrn").init_state(1))
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 3\), got \[3\]"):
        runner.reset([3])
    with pytest.raises(RuntimeError, match="there is only the step graph; export with graph='both'"):
        runner.chunk(frames)


def test_a_models_own_state_goes_on_in_the_graph(file: Path):
    """Read in parallel by torch, gone on with in the graph."""
    model = tiny("hyena", num_layers=1, window_size=6)
    x = torch.randn(1, 5, 5)
    with torch.no_grad():
        state = model.prefill(x[:, :4])
        expected, _ = model.step(x[:, 4], state)
    runner = Runner(file)
    runner.load(state)
    np.testing.assert_allclose(runner.step(x[0, 4]), expected[0], rtol=1e-5, atol=1e-6)


def test_other_files(file: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no file"):
        Runner(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match=r"has neither step.onnx"):
        Runner(tmp_path)
    (tmp_path / "short.pt2").write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="is damaged or no pt2 archive"):
        Runner(tmp_path / "short.pt2")
    (tmp_path / "model.txt").write_text("")
    with pytest.raises(ValueError, match="path must end in one of"):
        Runner(tmp_path / "model.txt")
    (tmp_path / "model.onnx").write_text("no model")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="is damaged or no ONNX model"):
        Runner(tmp_path / "model.onnx")


def test_a_foreign_model(tmp_path: Path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    port = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [port], [other])
    made = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="was not written by longstream export"):
        Runner(tmp_path / "model.onnx")


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path):
    kept = tmp_path / "model.pt2" / "kept"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(ValueError, match=r"model\.pt2 is a folder"):
        export(tiny("hgrn"), kept.parent, to="pt2", overwrite=True)
    assert kept.read_text() == "mine"


def test_an_archive_does_not_say_where_it_was_made(tmp_path: Path):
    file = tmp_path / "model.pt2"
    export(tiny("hgrn"), file, to="pt2", steps=3)
    with zipfile.ZipFile(file) as archive:
        assert not any(str(Path(run.__file__).parent).encode() in archive.read(name) for name in archive.namelist())
