"""Export a model, run what was written beside it, and only then put it in place."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from longstream.export.adapters import FORMS, GRAPHS, Adapter, adapt
from longstream.export.files import describe, write
from longstream.export.graphs import trace
from longstream.export.prepare import oracle, refuse, traceable
from longstream.export.sessions import need_onnx, open_session
from longstream.export.verify import Difference, compare
from longstream.layers import Hyena
from longstream.models import distill
from longstream.train.rundir import replace

HYENA = ("auto", "exact", "modal")


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and what it proved.

    Attributes:
        files:       the graphs, by "step" and "chunk".
        differences: of each graph from the model.
        hyena:       "exact", "modal", or None for a model without such layers.
    """

    files: dict[str, Path]
    differences: dict[str, Difference]
    hyena: str | None


def export(
    model: nn.Module,
    path: str | Path,
    *,
    to: str = "onnx",
    graph: str = "step",
    chunk_length: int | None = None,
    hyena: str = "auto",
    modes: int | None = None,
    steps: int = 1000,
    tolerance: float = 1e-4,
    overwrite: bool = False,
    about: dict[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> ExportReport:
    """Write a model's step, or its pass over a chunk, as a graph with the state as named inputs and outputs.

    Inputs are the frame or token (`frame`, `frames`, `token`, `tokens`) and `state.NAME` for every tensor of the state;
    outputs are `output`, `logits` or `prediction`, and `new_state.NAME`. All first states are zeros. The batch is
    dynamic. What was written is run beside the model, in float32, and put in place only where it agrees.

    Args:
        model:        a FeatureModel, LanguageModel, SequenceModel, causal model of longstream.hf, or a backbone.
        path:         a file, .onnx or .pt2; or a folder, in which the files are step.onnx and chunk.onnx.
        to:           "onnx" or "pt2".
        graph:        "step", "chunk" or "both".
        chunk_length: tokens of a chunk; None is any number >= 1.
        hyena:        "exact": the state keeps the inputs as far back as the filters reach; "modal": a few modes, of
                      filters that `longstream.models.distill` fitted before; "auto": as the model decodes now.
        modes:        fit that many modes to the filters of a copy, which is exported then.
        steps:        tokens of the comparison; what it may differ by, relative to the largest value of each tensor, is
                      ``tolerance``.
        overwrite:    replace files that exist.
        about:        more metadata.
        tell:         gets lines of what is done.
    Raises:
        ValueError: a layer cannot be exported (its path is named), the graph differs from the model, or an argument
            makes no sense.
        TypeError: not such a model.    FileExistsError: a file is there.    ModuleNotFoundError: onnx, onnxscript or
            onnxruntime is missing; the message names the extra.
    """
    graphs = _check(to, graph, chunk_length, hyena, modes, steps, tolerance)
    files = _targets(Path(path), to, graphs, overwrite)
    if to == "onnx":
        need_onnx("onnx", "onnxscript", "onnxruntime")
    adapter = adapt(model)
    refuse(adapter)
    adapter = oracle(adapter)
    form = _choose_hyena(adapter, hyena, modes, tell)
    most = adapter.max_seq_len
    if chunk_length is not None and most is not None and chunk_length > most:
        raise ValueError(f"export: chunk_length must be at most the model's {most} tokens, got {chunk_length}")
    copy = traceable(adapter, form or "exact")
    differences = {}
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=_parent(files)))
    try:
        for name, file in files.items():
            began = time.perf_counter()
            length = None if name == "step" else chunk_length
            program, layout = trace(copy, name, length)
            more = {"hyena": form, **(about or {})}
            write(program, folder / file.name, describe(program, adapter, layout, name, length, more))
            seconds = time.perf_counter() - began
            size = sum(part.stat().st_size for part in folder.glob(f"{file.name}*"))
            tell(f"{name:<12} {file}, {size / 1e6:.2f} MB, {seconds:.1f} s")
            found = compare(adapter, open_session(folder / file.name), layout, steps)
            verdict = (
                f"over {found.steps:,} steps at most {found.relative:.1e} relative from the model, in {found.name}"
            )
            if not found.relative <= tolerance:
                raise ValueError(
                    f"export: the {name} graph must stay within {tolerance:g} of the model, got {verdict}; nothing was"
                    " put in place"
                )
            tell(f"{'compared':<12} {verdict}")
            differences[name] = found
        for part in sorted(folder.iterdir()):
            target = next(iter(files.values())).parent
            target.mkdir(exist_ok=True)
            replace(part, target / part.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ExportReport(files, differences, form)


def _check(
    to: str, graph: str, chunk_length: int | None, hyena: str, modes: int | None, steps: int, tolerance: float
) -> tuple[str, ...]:
    """The graphs that are wanted, after a look at the arguments."""
    choices: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("to", to, FORMS),
        ("graph", graph, (*GRAPHS, "both")),
        ("hyena", hyena, HYENA),
    )
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"export: {name} must be one of {known}, got {value!r}")
    numbers = (("chunk_length", chunk_length), ("modes", modes), ("steps", steps))
    for name, value in numbers:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"export: {name} must be an integer >= 1, got {value!r}")
    if not 0 < tolerance < float("inf"):
        raise ValueError(f"export: tolerance must be a number > 0, got {tolerance!r}")
    if chunk_length is not None and graph == "step":
        raise ValueError(f"export: chunk_length is of graph 'chunk' or 'both', got graph 'step' and {chunk_length}")
    if modes is not None and hyena == "exact":
        raise ValueError(f"export: modes are of hyena 'modal', got 'exact' and {modes}")
    return GRAPHS if graph == "both" else (graph,)


def _targets(path: Path, to: str, graphs: tuple[str, ...], overwrite: bool) -> dict[str, Path]:
    """The file of each graph."""
    if path.suffix in (".onnx", ".pt2"):
        if path.suffix != f".{to}":
            raise ValueError(f"export: path must end in .{to}, or be a folder, for to={to!r}, got {path}")
        if len(graphs) > 1:
            raise ValueError(f"export: path must be a folder for both graphs, got {path}")
        files = dict.fromkeys(graphs, path)
    else:
        if path.is_file():
            raise ValueError(f"export: path must end in .{to}, or be a folder, got the file {path}")
        files = {graph: path / f"{graph}.{to}" for graph in graphs}
    _parent(files)
    for file in files.values():
        if file.is_dir():
            raise ValueError(f"export: {file} is a folder, which no file replaces; name another path")
        if file.exists() and not overwrite:
            raise FileExistsError(f"export: {file} exists; overwrite=True, or --overwrite, replaces it")
    return files


def _parent(files: dict[str, Path]) -> Path:
    """The folder to write in first: where the files go, or where their folder will be."""
    folder = next(iter(files.values())).absolute().parent
    if folder.is_dir():
        return folder
    if folder.parent.is_dir():
        return folder.parent
    raise FileNotFoundError(f"export: no folder {folder.parent} to write {folder.name} in")


def _choose_hyena(adapter: Adapter, hyena: str, modes: int | None, tell: Callable[[str], None]) -> str | None:
    """The form of the model's Hyena layers; fits modes to their filters where that is asked for."""
    layers = {name: module for name, module in adapter.model.named_modules() if isinstance(module, Hyena)}
    edifice = any(type(module).__name__ == "HyenaBlock" for module in adapter.modules())
    if not layers:
        if modes is not None or hyena == "modal":
            kind = "Edifice's Hyena has no modal form" if edifice else "the model has no Hyena layer"
            raise ValueError(f"export: hyena must be 'auto' or 'exact', without modes: {kind}")
        if edifice:
            tell(
                f"{'hyena':<12} exact: the state keeps the last {(adapter.max_seq_len or 1) - 1} inputs of each filter"
            )
        return "exact" if edifice else None
    if modes is not None:
        for name, report in distill(adapter.model, modes).items():
            tell(f"{'hyena':<12} modal, {name}: {report}")
        return "modal"
    modal = [layer.decode == "modal" for layer in layers.values()]
    if hyena == "modal" or (hyena == "auto" and all(modal)):
        for name, layer in layers.items():
            try:
                layer.set_decode("modal")
                layer.init_state(0)  # refuses where there are no modal filters
            except RuntimeError as error:
                raise ValueError(
                    f"export: layer {name} has no modal filters: give modes (--modes N) to fit them, or distill the"
                    " model before"
                ) from error
        tell(f"{'hyena':<12} modal: {next(iter(layers.values()))._modal.order} modes a channel, as the model decodes")
        return "modal"
    for layer in layers.values():
        layer.set_decode("tiled")
    reach = max(layer.max_seq_len for layer in layers.values()) - 1
    tell(f"{'hyena':<12} exact: the state keeps the last {reach:,} inputs of each filter")
    return "exact"
