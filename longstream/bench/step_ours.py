"""Our rows of `longstream bench step`: streams of each kind of weights, the eager step, a window, an exported graph."""

from __future__ import annotations

import copy
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from longstream.bench import peers
from longstream.bench.measure import OURS, Skip
from longstream.bench.step_subject import Prepared, is_tokens, whole_pass
from longstream.edifice._hyena import HyenaFilter as EdificeFilter
from longstream.layers.hyena_filter import HyenaFilter
from longstream.models import State, Window

WEIGHTS = ("float32", "bfloat16", "int8")
FILTERS = (HyenaFilter, EdificeFilter)
ROUNDED = "itself in float64, whole pass, of weights rounded to "


class Ready(NamedTuple):
    """A row that can step."""

    step: Callable[[Tensor], Any]  # one frame (B, ...) -> (B, ...); the state stays inside
    restart: Callable[[], object]  # before the first frame again
    exact: Tensor  # (T, B, ...) what the first T frames must give
    oracle: str
    parameters: int
    weight_bytes: int | None = None  # that a step reads
    state_bytes: int | None = None
    weights: str = "float32"
    unrounded: Tensor | None = None  # what they would give with float32 weights
    stream: Any = None  # for what else it can do


class Contender(NamedTuple):
    """Who takes part."""

    name: str
    package: str
    make: Callable[[Prepared, int], Ready]  # of so many threads; raises Skip where it cannot

    @property
    def key(self) -> str:
        """The word by which --peers names it."""
        return self.name.partition(",")[0].partition(" ")[0].removeprefix("nn.").lower()


def bytes_of(module: nn.Module) -> int:
    """Bytes of all parameters, each once."""
    return sum(p.nbytes for p in module.parameters())


def with_rounded_weights(module: Any, weights: str) -> Any:
    """A copy whose linear maps have the weights that a kind of packing keeps: the oracle's own rounding.

    bfloat16: the nearest one. int8: for each output the nearest multiple of its largest weight / 127. What makes
    Hyena's filters is no part of a step.
    """
    rounded = copy.deepcopy(module)
    filters = [part for part in rounded.modules() if isinstance(part, FILTERS)]
    kept = {id(part) for one in filters for part in one.modules()}
    for part in rounded.modules():
        if isinstance(part, nn.Linear) and id(part) not in kept:
            w = part.weight.detach()
            if weights == "int8":
                scale = w.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
                w = (w / scale).round().clamp(-127, 127) * scale
            else:
                w = w.to(torch.bfloat16).to(w.dtype)
            part.weight = nn.Parameter(w, requires_grad=False)  # of its own: embeddings that share it stay
    return rounded


def _stream(weights: str, history: int = 0) -> Callable[[Prepared, int], Ready]:
    def make(given: Prepared, threads: int) -> Ready:
        exact, oracle = given.exact, "itself in float64, whole pass"
        if weights != "float32":
            exact = whole_pass(with_rounded_weights(given.module, weights), given.frames[: given.checked])
            oracle = ROUNDED + weights
        more = {"unrounded": None if weights == "float32" else given.exact, "weights": weights}
        if given.subject.is_layer:
            return _engine_alone(given, threads, exact, oracle, more)
        from longstream.stream import Stream

        try:
            stream = Stream(
                given.module,
                batch_size=given.subject.batch,
                history=history,
                weights=weights,
                backend="native",
                threads=threads,
            )
        except (RuntimeError, TypeError, ImportError) as error:
            raise Skip(" ".join(str(error).split())[:200]) from None
        out = stream.step(given.frames[0])

        def step(frame: Tensor) -> Tensor:
            return stream.step(frame, out=out)

        stream.reset()
        size = stream.state.nbytes
        return Ready(
            step, stream.reset, exact, oracle, given.parameters, stream.weight_bytes, size, stream=stream, **more
        )

    return make


def _engine_alone(given: Prepared, threads: int, exact: Tensor, oracle: str, more: dict[str, Any]) -> Ready:
    """One layer without a model around it, which a Stream does not take."""
    try:
        compile_step = importlib.import_module("longstream.stream.compile").compile_step
        native = importlib.import_module("longstream.stream.engine").NativeEngine
        compiled = compile_step(given.module, more["weights"])
        engine = native(compiled, given.subject.batch, 2, threads)
    except (RuntimeError, TypeError, ImportError) as error:
        raise Skip(" ".join(str(error).split())[:200]) from None
    out = torch.empty(given.subject.batch, compiled.n_out)

    def step(frame: Tensor) -> Tensor:
        engine.step(frame, out, None, 0)
        return out

    def restart() -> None:
        engine.reset([*range(given.subject.batch)])

    size = 4 * compiled.state_size * given.subject.batch
    return Ready(step, restart, exact, oracle, given.parameters, compiled.weight_bytes, size, **more)


def _eager(given: Prepared, threads: int) -> Ready:
    module, state = given.module, given.module.init_state(given.subject.batch)
    first = state

    def step(frame: Tensor) -> Any:
        nonlocal state
        y, state = module.step(frame, state)
        return y

    def restart() -> None:
        nonlocal state
        state = first

    size = first.nbytes if isinstance(first, State) else sum(t.nbytes for t in first)
    oracle = "itself in float64, whole pass"
    return Ready(step, restart, given.exact, oracle, given.parameters, bytes_of(module), size)


def _window(given: Prepared, threads: int) -> Ready:
    if given.window is None:
        raise Skip("no window is run anew for this model")
    window = Window(given.module, given.window).eval()
    exact = whole_windows(given)
    state: Any = None

    def step(frame: Tensor) -> Tensor:
        nonlocal state
        y, state = window.step(frame, state)
        return y

    def restart() -> None:  # full, as it is for all but the first frames
        nonlocal state
        state = None
        for frame in given.frames[-given.window :] if given.window else []:
            step(frame)

    size = 4 * (given.window - 1) * given.frames[0].numel()
    oracle = f"the last {given.window} frames in float64"
    return Ready(step, restart, exact, oracle, given.parameters, bytes_of(given.module), size)


@torch.inference_mode()
def whole_windows(given: Prepared, every: int = 1) -> Tensor:
    """The outputs (T, B, D) for windows that end at the first frames, before which the last ones came."""
    exact, W = copy.deepcopy(given.module).double(), given.window or 1
    frames = torch.stack([*given.frames[-W:], *given.frames[: given.checked]], 1).double()
    outs = []
    for t in range(0, given.checked, every):
        y, _ = exact(frames[:, t + 1 : t + 1 + W])
        outs.append(y if y.dim() == 2 else y[:, -1])
    return torch.stack(outs)


def our_contenders(weights: tuple[str, ...] = WEIGHTS) -> list[Contender]:
    """Streams of each kind of weights, the eager step, the window, and onnxruntime on the exported step."""
    return [
        *(Contender(f"Stream, {kind}", OURS, _stream(kind)) for kind in weights),
        Contender("eager step", OURS, _eager),
        Contender("window anew", OURS, _window),
        Contender("exported step", "onnxruntime", _exported),
    ]


def _exported(given: Prepared, threads: int) -> Ready:
    """The step graph of `longstream.export` in a session of onnxruntime, its state from array to array."""
    runtime = peers.load("onnxruntime")
    peers.load("onnxscript")
    if is_tokens(given.module) or given.subject.is_layer:
        raise Skip("not exported here: models of frames are")
    from longstream.export import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "step.onnx")
        with torch.inference_mode(mode=False):
            export(given.module, path, steps=given.checked)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    frame_name, *state_names = [put.name for put in session.get_inputs()]
    shapes = {put.name: [given.subject.batch, *put.shape[1:]] for put in session.get_inputs()}
    kinds = {put.name: np.int64 if "int64" in put.type else np.float32 for put in session.get_inputs()}
    outputs = [put.name for put in session.get_outputs()]
    order = [outputs.index(f"new_{name}") for name in state_names]
    first = {name: np.zeros(shapes[name], kinds[name]) for name in state_names}
    feeds: dict[str, Any] = dict(first)

    def step(frame: Tensor) -> Any:
        feeds[frame_name] = frame.numpy()
        got = session.run(None, feeds)
        for name, i in zip(state_names, order, strict=True):
            feeds[name] = got[i]
        return got[0]

    size = sum(array.nbytes for array in first.values())
    oracle = "itself in float64, whole pass"
    return Ready(step, lambda: feeds.update(first), given.exact, oracle, given.parameters, bytes_of(given.module), size)
