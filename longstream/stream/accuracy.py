"""What smaller weights lose on somebody's own data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longstream.layers._options import check_one_of
from longstream.stream.frames import from_array
from longstream.stream.stream import WEIGHTS, Stream


@dataclass(frozen=True)
class WeightsError:
    """How far the outputs of a stream with smaller weights are from those with float32 ones.

    Attributes:
        weights:   "bfloat16" or "int8".
        bytes:     of weights that a step reads.
        rms:       root of the mean square of the differences, over that of the outputs.
        most:      largest difference, over the largest output.
        agreement: of a language model, the share of positions at which both prefer the same token.
        bits:      of a language model, bits per token that it needs more for the given tokens.
    """

    weights: str
    bytes: int
    rms: float
    most: float
    agreement: float | None = None
    bits: float | None = None


@dataclass(frozen=True)
class WeightsReport:
    """What `weights_report` returns; printing it shows a table.

    Attributes:
        frames: that were compared, over all rows.
        bytes:  of float32 weights that a step reads.
        rows:   `WeightsError` of each kind.
    """

    frames: int
    bytes: int
    rows: tuple[WeightsError, ...]

    def __getitem__(self, weights: str) -> WeightsError:
        return {row.weights: row for row in self.rows}[weights]

    def __str__(self) -> str:
        is_text = any(row.bits is not None for row in self.rows)
        head = [
            "weights",
            "bytes",
            "rms error",
            "largest error",
            *(["same token", "bits per token"] if is_text else []),
        ]
        lines = [head, ["float32", f"{self.bytes:,}", "0", "0", *(["100 %", "+0"] if is_text else [])]]
        for row in self.rows:
            cells = [row.weights, f"{row.bytes:,}", f"{row.rms:.1e}", f"{row.most:.1e}"]
            if row.agreement is not None and row.bits is not None:
                cells += [f"{100 * row.agreement:.2f} %", f"{row.bits:+.4f}"]
            lines.append(cells)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([*table, f"over {self.frames:,} {'tokens' if is_text else 'frames'}, frame by frame"])


def weights_report(model: Any, frames: Any, weights: Sequence[str] = ("bfloat16", "int8")) -> WeightsReport:
    """Run a model with float32 and with smaller weights over the same frames, each from its own state, and compare.

    The errors are those that a stream has after so many frames: what a state has lost stays lost.

    Args:
        model:   what `Stream` takes, in float32.
        frames:  (T, E) or (B, T, E) numbers, or (T,) or (B, T) tokens: data as it will come.
        weights: the kinds to compare with float32.
    Raises:
        RuntimeError: the model has no native step, which alone has such weights; its reason is said.
        ValueError: unknown weights, or fewer frames than one.
    """
    for kind in weights:
        check_one_of("weights_report", weights=(kind, WEIGHTS))
    exact = Stream(model, backend="native")
    tokens = exact._steps.tokens
    given = from_array(frames) if isinstance(frames, np.ndarray) else torch.as_tensor(frames)
    x = given[None] if given.dim() == (1 if tokens else 2) else given
    if x.dim() != (2 if tokens else 3) or not x.shape[0] or not x.shape[1]:
        wanted = "(T,) or (B, T)" if tokens else "(T, E) or (B, T, E)"
        raise ValueError(f"weights_report: frames must have shape {wanted} with T >= 1, got {tuple(given.shape)}")
    B, T = x.shape[:2]
    streams = [Stream(model, backend="native", batch_size=B, weights=kind) for kind in ("float32", *weights)]
    sums = [_Sums() for _ in weights]
    for t in range(T):
        right, *others = (stream.step(x[:, t]).double() for stream in streams)
        following = x[:, t + 1] if tokens and t + 1 < T else None
        for total, y in zip(sums, others, strict=True):
            total.add(right, y, tokens, following)
    rows = tuple(total.row(stream, B * T, tokens) for total, stream in zip(sums, streams[1:], strict=True))
    return WeightsReport(B * T, exact.weight_bytes, rows)


class _Sums:
    """What one kind of weights has lost so far."""

    def __init__(self) -> None:
        self.error = self.power = self.most = self.largest = self.bits = 0.0
        self.same = self.predicted = 0

    def add(self, right: Tensor, y: Tensor, tokens: bool, following: Tensor | None) -> None:
        """The outputs (B, ...) of one frame, and of a language model the tokens (B,) that follow it."""
        difference = y - right
        self.error += float(difference.square().sum())
        self.power += float(right.square().sum())
        self.most = max(self.most, float(difference.abs().max()))
        self.largest = max(self.largest, float(right.abs().max()))
        if tokens:
            self.same += int((y.argmax(-1) == right.argmax(-1)).sum())
        if following is not None:
            at = following[:, None].long()
            lost = right.log_softmax(-1).gather(1, at) - y.log_softmax(-1).gather(1, at)
            self.bits += float(lost.sum()) / math.log(2)
            self.predicted += len(following)

    def row(self, stream: Stream, frames: int, tokens: bool) -> WeightsError:
        rms, most = math.sqrt(self.error / (self.power or 1.0)), self.most / (self.largest or 1.0)
        if not tokens:
            return WeightsError(stream.weights, stream.weight_bytes, rms, most)
        bits = self.bits / max(self.predicted, 1)
        return WeightsError(stream.weights, stream.weight_bytes, rms, most, self.same / frames, bits)
