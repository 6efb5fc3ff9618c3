"""An exported file, opened to be run: ONNX by onnxruntime, pt2 by torch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

KEY = "longstream"  # of the metadata in an ONNX file
FILE = "longstream.json"  # the same in a pt2 archive
FORMAT = "longstream.export"

Arrays = dict[str, np.ndarray]


class Session(Protocol):
    """A graph that can be run, and what its file says of it."""

    about: dict[str, Any]

    def run(self, x: np.ndarray, state: Arrays) -> tuple[np.ndarray, Arrays]:
        """The output and the state after it."""
        ...


class OnnxSession:
    """An .onnx file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int = 1):
        ort = need_onnx("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of what it tidies up
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own kinds, which have no common base
            raise ValueError(f"Runner: {path} is damaged or no ONNX model: {error}") from error
        self.about = _read_about(path, self._session.get_modelmeta().custom_metadata_map.get(KEY))
        self._names = [output["name"] for output in self.about["outputs"]]
        self._x = self.about["inputs"][0]["name"]

    def run(self, x: np.ndarray, state: Arrays) -> tuple[np.ndarray, Arrays]:
        """The output and the state after it."""
        feeds = {f"state.{name}": tensor for name, tensor in state.items()}
        y, *after = self._session.run(self._names, {self._x: x, **feeds})
        return y, dict(zip(state, after, strict=True))


class Pt2Session:
    """A .pt2 file, run by torch."""

    def __init__(self, path: Path, threads: int = 1):
        extra = {FILE: ""}
        try:
            with quiet():
                program = torch.export.load(path, extra_files=extra)
        except Exception as error:  # zip, json and torch's own kinds
            raise ValueError(f"Runner: {path} is damaged or no pt2 archive: {error}") from error
        self.about = _read_about(path, extra[FILE])
        self._module = program.module(check_guards=False)

    @torch.no_grad()
    def run(self, x: np.ndarray, state: Arrays) -> tuple[np.ndarray, Arrays]:
        """The output and the state after it."""
        y, after = self._module(torch.from_numpy(x), {name: torch.from_numpy(part) for name, part in state.items()})
        return y.numpy(), {name: tensor.numpy() for name, tensor in after.items()}


def open_session(path: Path, threads: int = 1) -> Session:
    """The session of a file, by its suffix.

    Raises:
        FileNotFoundError: there is none.    ValueError: another suffix, damaged, or of another program.
    """
    kinds = {".onnx": OnnxSession, ".pt2": Pt2Session}
    if not path.is_file():
        raise FileNotFoundError(f"Runner: no file {path}")
    if path.suffix not in kinds:
        raise ValueError(f"Runner: path must end in one of {list(kinds)}, got {path}")
    return kinds[path.suffix](path, threads)


def need_onnx(*names: str) -> Any:
    """The first of these packages, all of which must be there.

    Raises:
        ModuleNotFoundError: one is not; the message names the extra.
    """
    from importlib import import_module

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            first, *_ = (import_module(name) for name in names)
            return first
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"export to ONNX needs {' and '.join(names)} ({error}): pip install 'longstream[onnx]'", name=error.name
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within, torch does not warn of its exporter's own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _read_about(path: Path, text: str | bytes | None) -> dict[str, Any]:
    try:
        about = json.loads(text or "")
    except ValueError:
        about = {}
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"Runner: {path} was not written by longstream export: it has no such metadata")
    return about
