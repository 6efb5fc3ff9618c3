"""A small runner of exported graphs: it carries the state, and says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longstream.export.hyena import ModesState, PastState, graph_state
from longstream.export.sessions import Arrays, Session, open_session
from longstream.models import State


class Runner:
    """Exported graphs of one model, and the state between their calls.

    Args:
        path:       model.onnx or model.pt2; or a folder with step.onnx and chunk.onnx, or .pt2, one or both.
        batch_size: B, the rows that advance together.
        threads:    of onnxruntime.
    Raises:
        FileNotFoundError: there is no such file.    ValueError: a file is damaged, or not of `longstream.export`.
        ModuleNotFoundError: onnxruntime is missing; the message names the extra.
    """

    def __init__(self, path: str | Path, *, batch_size: int = 1, threads: int = 1):
        self._sessions = {session.about["graph"]: session for session in _open(Path(path), threads)}
        self.about: dict[str, Any] = next(iter(self._sessions.values())).about
        if len({str(session.about["state"]) + session.about["fingerprint"] for session in self._sessions.values()}) > 1:
            raise ValueError(f"Runner: the graphs in {path} are of different models")
        self._shapes = {part["name"]: tuple(part["shape"][1:]) for part in self.about["state"]}
        self._dtypes = {part["name"]: np.dtype(part["dtype"]) for part in self.about["state"]}
        self.reset(batch_size=batch_size)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Which there are: "step", "chunk" or both."""
        return tuple(self._sessions)

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self._state["position"])

    @property
    def position(self) -> np.ndarray:
        """(B,) int64, tokens taken in by each row."""
        return self._state["position"].copy()

    @property
    def state(self) -> Arrays:
        """A copy of every tensor of the state by name."""
        return {name: tensor.copy() for name, tensor in self._state.items()}

    def step(self, frame: Any) -> np.ndarray:
        """One frame or token of each row: (B, E), or (B,) for tokens; the output (B, ...) after it.

        With one row, (E,) or a number does as well, and the output then lacks the batch too.

        Raises:
            ValueError: another shape, a value that is not finite, or the end of the model's longest sequence; the state
                stays. RuntimeError: there is no graph of a step.
        """
        session = self._session("step")
        x, alone = self._read(session, frame)
        y = self._run(session, x, 1)
        return y[0] if alone else y

    def chunk(self, frames: Any) -> np.ndarray:
        """T frames or tokens of each row: (B, T, E) or (B, T); the output after each, or of the sequence so far.

        A graph of a fixed length takes multiples of it. The rest as of `step`.
        """
        session = self._session("chunk")
        x, alone = self._read(session, frames)
        length, T = session.about["length"], x.shape[1]
        if T < 1 or (length != "dynamic" and T % length):
            wanted = "at least 1" if length == "dynamic" else f"a multiple of {length}"
            raise ValueError(f"Runner.chunk: frames must be {wanted} in number, got {T}")
        pieces = [x] if length == "dynamic" else np.split(x, T // length, axis=1)
        self._check_room(T)
        before, outs = self._state, []
        try:
            outs = [self._run(session, np.ascontiguousarray(piece), piece.shape[1]) for piece in pieces]
        except BaseException:
            self._state = before
            raise
        y = np.concatenate(outs, axis=1) if session.about["each_frame"] else outs[-1]
        return y[0] if alone else y

    def reset(self, rows: Sequence[int] | None = None, *, batch_size: int | None = None) -> None:
        """Start anew: all rows, or these; batch_size changes how many there are.

        Raises:
            ValueError: a row that there is not, or batch_size < 1.
        """
        if batch_size is not None or rows is None:
            B = self.batch_size if batch_size is None else batch_size
            if not isinstance(B, int) or isinstance(B, bool) or B < 1 or rows is not None:
                raise ValueError(f"Runner.reset: batch_size must be an integer >= 1, without rows, got {batch_size!r}")
            self._state = {name: np.zeros((B, *shape), self._dtypes[name]) for name, shape in self._shapes.items()}
            return
        if any(not 0 <= row < self.batch_size for row in rows):
            raise ValueError(f"Runner.reset: rows must lie in [0, {self.batch_size}), got {list(rows)}")
        state = self.state
        for tensor in state.values():
            tensor[list(rows)] = 0
        self._state = state

    def load(self, state: Mapping[str, Any] | State) -> None:
        """Go on from a state: what `state` gave, or the model's own `longstream.models.State`, of any number of rows.

        Raises:
            ValueError: it is another model's, or a tensor is missing, spare, misshapen or of another dtype.
        """
        named = self._named(state) if isinstance(state, State) else state
        if set(named) != set(self._shapes):
            odd = sorted(set(named) ^ set(self._shapes))
            raise ValueError(f"Runner.load: state must have the tensors {list(self._shapes)}; missing or spare: {odd}")
        position = np.asarray(named["position"])
        rows = len(position) if position.ndim else 0
        loaded = {}
        for name, shape in self._shapes.items():
            tensor = np.array(named[name])
            if tensor.shape != (rows, *shape) or rows < 1:
                raise ValueError(f"Runner.load: {name} must have shape (B={rows}, *{shape}), got {tensor.shape}")
            if tensor.dtype != self._dtypes[name]:
                raise ValueError(f"Runner.load: {name} must be {self._dtypes[name]}, got {tensor.dtype}")
            if not np.isfinite(tensor).all():
                raise ValueError(f"Runner.load: {name} must be finite, got NaN or inf")
            loaded[name] = tensor
        self._state = loaded

    def _named(self, state: State) -> dict[str, Any]:
        """A model's own state by the names of the graph's."""
        if state.fingerprint != self.about["fingerprint"]:
            raise ValueError(
                "Runner.load: the state belongs to another model: expected fingerprint"
                f" {self.about['fingerprint']}, got {state.fingerprint}"
            )
        named: dict[str, Any] = {"position": state.position}
        for i, layer in enumerate(state.layers):
            reach = self._shapes.get(f"layers.{i}.past")
            like: Any = None
            if reach is not None:
                like = PastState(torch.empty(0), torch.empty(1, *reach))
            elif f"layers.{i}.modes" in self._shapes:
                like = ModesState(torch.empty(0), torch.empty(0))
            layer = graph_state(layer, like)
            named |= {f"layers.{i}.{field}": getattr(layer, field) for field in layer._fields}
        kept = {name: tensor.detach().cpu().numpy() for name, tensor in named.items() if tensor[:1].numel()}
        return kept

    def _session(self, graph: str) -> Session:
        if graph not in self._sessions:
            raise RuntimeError(f"Runner.{graph}: there is only the {self.graphs[0]} graph; export with graph='both'")
        return self._sessions[graph]

    def _read(self, session: Session, x: Any) -> tuple[np.ndarray, bool]:
        """The input as an array with a batch, and whether it came without."""
        who, given = f"Runner.{session.about['graph']}", session.about["inputs"][0]
        array = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        is_ids = given["dtype"] == "int64"
        if array.dtype.kind not in ("iu" if is_ids else "fiu"):
            wanted = "integers" if is_ids else "numbers"
            raise ValueError(f"{who}: {given['name']} must be {wanted}, got {array.dtype}")
        alone = self.batch_size == 1 and array.ndim == len(given["shape"]) - 1
        array = np.ascontiguousarray(array[None] if alone else array, dtype=given["dtype"])
        shape = [self.batch_size, *given["shape"][1:]]
        fits = array.ndim == len(shape) and all(
            wanted == got or (i == 1 and given["name"] in ("frames", "tokens"))
            for i, (wanted, got) in enumerate(zip(shape, array.shape, strict=True))
        )
        if not fits:
            shape = [f"B={self.batch_size}", *map(str, given["shape"][1:])]
            raise ValueError(f"{who}: {given['name']} must have shape ({', '.join(shape)}), got {array.shape}")
        self._check_values(who, given["name"], array)
        return array, alone

    def _check_values(self, who: str, name: str, x: np.ndarray) -> None:
        if x.dtype.kind == "i":
            size = self.about["vocab_size"]
            if x.size and not 0 <= x.min() <= x.max() < size:
                raise ValueError(f"{who}: {name} must lie in [0, {size}), got {int(x.min())} to {int(x.max())}")
            return
        bad = ~np.isfinite(x)
        if not bad.any():
            return
        bad[..., self.about.get("indicators", [])] &= ~np.isnan(x[..., self.about.get("indicators", [])])
        if bad.any():
            place = np.argwhere(bad)[0]
            raise ValueError(
                f"{who}: {name} must be finite, got {x[tuple(place)]} in row {place[0]}, number {place[-1]}"
            )

    def _check_room(self, tokens: int) -> None:
        most = self.about["max_seq_len"]
        if most is not None and (taken := int(self._state["position"].max())) + tokens > most:
            raise ValueError(
                f"Runner: a row can take in at most {most} tokens, got {taken} and {tokens} more; reset it"
            )

    def _run(self, session: Session, x: np.ndarray, tokens: int) -> np.ndarray:
        self._check_room(tokens)
        y, self._state = session.run(x, self._state)
        return y


def _open(path: Path, threads: int) -> list[Session]:
    if not path.is_dir():
        return [open_session(path, threads)]
    for suffix in ("onnx", "pt2"):
        if found := [
            path / f"{graph}.{suffix}" for graph in ("step", "chunk") if (path / f"{graph}.{suffix}").is_file()
        ]:
            return [open_session(file, threads) for file in found]
    raise FileNotFoundError(f"Runner: {path} has neither step.onnx, chunk.onnx, step.pt2 nor chunk.pt2")
