"""Programs of the native step written by hand, with their memory."""

import json
import math
import struct

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops import _native

needs_native = pytest.mark.skipif(_native.MISSING is not None, reason=f"native library: {_native.MISSING}")
KERNELS = torch.ops.longstream
LAYOUT = json.loads(KERNELS.stream_layout()) if _native.MISSING is None else {}
RAISE, HOLD, PASS = range(3)


def bits(x: float) -> int:
    return struct.unpack("<q", struct.pack("<d", x))[0]


class Machine:
    """A program written by hand, with its memory."""

    def __init__(self, n_in: int, n_out: int, *, out: int = 0, allow_nan: Tensor | None = None):
        self.n_in, self.n_out, self.state_size, self.tape_size = n_in, n_out, 0, 0
        self.lines: list[list[int]] = []
        self.constants = bytearray()
        self.scratch_size = n_in
        allowed = -1 if allow_nan is None else self.constant(allow_nan.to(torch.uint8))
        self.add("begin", **{"in": 0}, n_in=n_in, out=out, n_out=n_out, allow_nan=allowed)

    def add(self, op: str, **fields: int) -> None:
        code, *names = LAYOUT["ops"][op]
        assert set(fields) == set(names)
        line = [code, *(int(fields[name]) for name in names)]
        self.lines.append(line + [0] * (LAYOUT["instruction"] - len(line)))

    def constant(self, x: Tensor | None) -> int:
        if x is None:
            return -1
        self.constants.extend(bytes(-len(self.constants) % 64))
        offset = len(self.constants)
        self.constants.extend(x.contiguous().view(torch.uint8).numpy().tobytes())
        return offset

    def scratch(self, n: int) -> int:
        self.scratch_size += n
        return self.scratch_size - n

    def state(self, n: int) -> int:
        self.state_size += n
        return self.state_size - n

    def start(self, B: int, slots: int = 3, threads: int = 1) -> "Machine":
        self.program = torch.tensor(self.lines)
        count = len(self.constants)
        memory = torch.empty(count + 64, dtype=torch.uint8)
        first = -memory.data_ptr() % 64
        self.weights = memory[first : first + count]
        self.weights.copy_(torch.frombuffer(self.constants or bytearray(1), dtype=torch.uint8)[:count])
        self.B, self.threads = B, threads
        self.states = torch.full((slots, B, self.state_size), math.nan)
        self.states[0] = 0
        self.tape = torch.zeros(B, self.tape_size)
        self.position = torch.zeros(slots, B, dtype=torch.int64)
        self.slot = torch.zeros(B, dtype=torch.int64)
        self.held = torch.zeros(B, self.n_in)
        self.memory = torch.full((B, self.scratch_size), math.nan)
        self.workspace = torch.zeros(KERNELS.stream_workspace(B, self.state_size), dtype=torch.int64)
        self.check()
        return self

    def check(self) -> None:
        sizes = self.state_size, self.tape_size, self.scratch_size
        KERNELS.stream_check(self.program, self.weights, *sizes)

    def arguments(self, x: Tensor, y: Tensor, reset: Tensor | None = None, policy: int = RAISE) -> tuple:
        memory = (self.states, self.tape, self.position, self.slot, self.held, reset, self.memory, self.workspace)
        return (self.program, self.weights, *memory, x, y, policy, self.threads)

    def step(self, x: Tensor, reset: Tensor | None = None, policy: int = RAISE) -> tuple[int, Tensor]:
        y = torch.full((self.B, self.n_out), math.nan)
        return KERNELS.stream_step(*self.arguments(x, y, reset, policy)), y

    def run(self, x: Tensor) -> Tensor:
        """x (B, T, n_in) -> (B, T, n_out)."""
        results = []
        for frame in x.unbind(1):
            failed, y = self.step(frame.contiguous())
            assert failed == 0
            results.append(y)
        return torch.stack(results, 1)

    @property
    def present(self) -> Tensor:
        return self.states[self.slot, torch.arange(self.B)]


def panels(w: Tensor, kind: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Packed weights, their scales, and what they stand for, in float64."""
    n_out, n_in = w.shape
    scale = w.abs().amax(1) / 127 if kind == 2 else None
    stored = (w if scale is None else (w / scale[:, None]).round()).to(
        [torch.float32, torch.bfloat16, torch.int8][kind]
    )
    panel, group = LAYOUT["panel"], LAYOUT["groups"][kind]
    padded = F.pad(stored.float(), (0, -n_in % group, 0, -n_out % panel)).to(stored.dtype)
    exact = stored.double() if scale is None else stored.double() * scale.double()[:, None]
    packed = padded.unflatten(1, (-1, group)).unflatten(0, (-1, panel)).transpose(1, 2)
    if kind == 2:
        packed = (packed.int() * torch.tensor([1, 256, 256**2, 256**3])).sum(-1).int()
    return packed, scale, exact


def add_linear(
    m: Machine, w: Tensor, bias: Tensor | None, kind: int, out: int, *, in_: int = 0, add: int = 0
) -> Tensor:
    packed, scale, exact = panels(w, kind)
    places = {"weight": m.constant(packed), "scale": m.constant(scale), "bias": m.constant(bias)}
    m.add("linear", **{"in": in_}, n_in=w.shape[1], out=out, n_out=w.shape[0], kind=kind, add=add, **places)
    return exact
