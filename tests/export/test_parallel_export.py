"""torch.export of the parallel pass with any batch and length, and torch.compile of it in one graph."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim

from longstream.export.sessions import quiet
from longstream.models import State, distill
from tests.export.tiny import MODELS, E, tiny, tiny_language
from tests.numerics import assert_same

pytestmark = pytest.mark.filterwarnings("default")  # the compiler of torch warns of its own workings

FAST = {("hgrn2", "auto"), ("hyena", "torch"), ("edifice-hyena", "auto")}
CASES = [
    pytest.param(name, backend, id=f"{name}-{backend}", marks=() if (name, backend) in FAST else pytest.mark.slow)
    for name in MODELS
    for backend in ("auto", "torch")
]


def make(name: str, backend: str = "auto", **options: Any) -> Any:
    model = tiny(name, outputs="all", **options)
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend
    return model


def dynamic(model: Any, x: torch.Tensor) -> torch.export.ExportedProgram:
    with quiet():
        return torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch"), 1: Dim("time", max=40)},))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_any_batch_and_length(name: str, backend: str):
    """With gradients on, as a model is when it was just made; the state as ever, where it has one size."""
    model = make(name, backend)
    program = dynamic(model, torch.randn(2, 7, E)).module()
    for shape in ((3, 33), (1, 2)):
        x = torch.randn(*shape, E)
        y, state = program(x)
        expected, last = model(x)
        assert_same("y", y, expected, 1e-5)
        assert isinstance(state, State)
        assert state.fingerprint == last.fingerprint
        if "hyena" not in name:
            for got, wanted in zip(state.tensors(), last.tensors(), strict=True):
                assert_same("state", got, wanted, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_modal_hyena(backend: str):
    model = make("hyena", backend, order=3)
    distill(model, order=3)
    program = dynamic(model, torch.randn(2, 7, E)).module()
    x = torch.randn(3, 33, E)
    y, state = program(x)
    expected, last = model(x)
    assert_same("y", y, expected, 1e-5)
    assert_same("modes", state.layers[1].modes, last.layers[1].modes, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["bidirectional", "causal=False"])
def test_both_ways(direction: str):
    model = make("hgrn", direction=direction) if direction == "bidirectional" else make("hyena", causal=False)
    program = dynamic(model, torch.randn(2, 7, E)).module()
    x = torch.randn(3, 33, E)
    assert_same("y", program(x)[0], model(x)[0], 1e-5)


def test_a_program_is_saved(tmp_path: Path):
    """States go through a file: torch knows what they consist of."""
    model = make("hyena", num_layers=1)
    x = torch.randn(2, 70, E)[:, :36]
    with quiet():
        program = torch.export.export(model, (x,))
        torch.export.save(program, tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
    y, state = loaded(x)
    expected, last = model(x)
    assert_same("y", y, expected, 1e-6)
    assert type(state.layers[0]) is type(last.layers[0])
    assert_same("a step from it", model.step(x[:, 0], state)[0], model.step(x[:, 0], last)[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_graph(name: str):
    """Reading and learning, without a break; a step too, where the state has one size."""
    torch.compiler.reset()
    x = torch.randn(2, 33, E)
    model = make(name)
    fast: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        y, state = fast(x)
        expected, last = model(x)
        assert_same("y", y, expected, 1e-6)
        for got, wanted in zip(state.tensors(), last.tensors(), strict=True):
            assert_same("state", got, wanted, 1e-6)
    fast.train()
    fast(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    if "hyena" in name:
        return
    model.eval()
    step = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            y, state = step(x[:, 0], last)
            expected, last = model.step(x[:, 0], last)
            assert_same("step", y, expected, 1e-6)


@pytest.mark.slow
def test_a_modal_step_is_one_graph():
    torch.compiler.reset()
    model = make("hyena")
    distill(model, order=2)
    x = torch.randn(2, 9, E)
    with torch.no_grad():
        fast = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same("y", fast(x)[0], model(x)[0], 1e-6)
        step = torch.compile(model.step, fullgraph=True, backend="aot_eager")
        _, state = model(x)
        assert_same("step", step(x[:, 0], state)[0], model.step(x[:, 0], state)[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hgrn", "hgrn2", "hyena"])
def test_language_models_are_one_graph(kind: str):
    torch.compiler.reset()
    model, ids = tiny_language(kind), torch.randint(11, (2, 17))
    with torch.no_grad():
        fast = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same("logits", fast(ids)[0], model(ids)[0], 1e-6)
