"""A program: the instructions of a model's step, and the memory that they use, as they are written down.

csrc/stream.h says what each instruction computes; names and codes come from the compiled library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longstream.ops import _native
from longstream.stream import pack
from longstream.stream.layout import LayerLayout
from longstream.stream.rules import refuse

ACTIVATIONS = ("none", "silu", "sigmoid", "gelu_tanh", "gelu")  # these in the order of the enums of csrc/stream.h
NORMS = ("rms", "layer", "axon")
POOLS = ("mean", "last")
NONE = -1
_LINE = 64  # bytes: every piece of memory begins at a multiple
_FLOATS = _LINE // 4


class Instructions(NamedTuple):
    """What `torch.ops.longstream.stream_layout` tells of the library."""

    size: int  # numbers of an instruction
    panel: int  # outputs that stand side by side
    groups: tuple[int, ...]  # inputs that do, for each kind of weights
    ops: dict[str, tuple[int, tuple[str, ...]]]  # code and fields


def why_not_native() -> str | None:
    """None where the compiled library has the native step, else why there is none."""
    if _native.MISSING is not None:
        return _native.MISSING
    if not hasattr(torch.ops.longstream, "stream_step"):
        return f"{_native.LIBRARY.name} is not of this version, without stream_step: install longstream again"
    return None


@cache
def instructions() -> Instructions:
    """The instructions of the compiled library.

    Raises:
        RuntimeError: there is none.
    """
    if (why := why_not_native()) is not None:
        raise RuntimeError(f"longstream.stream: there is no native step: {why}")
    told = json.loads(torch.ops.longstream.stream_layout())
    ops = {name: (code, tuple(fields)) for name, (code, *fields) in told["ops"].items()}
    return Instructions(told["instruction"], told["panel"], tuple(told["groups"]), ops)


class Parts(NamedTuple):
    """A whole program."""

    program: Tensor  # (n, instruction) int64
    constants: Tensor  # (bytes,) uint8, aligned
    state_size: int  # floats a row, as are the next two
    tape_size: int
    scratch_size: int


class Program:
    """Instructions, and offsets of constants, states, tapes and scratch.

    Args:
        weights: kind of the weights of linear maps: "float32", "bfloat16" or "int8".
        model:   whose modules are named in refusals.

    Attributes:
        layers: how the state of each layer stands in a row, in the order of the model's `State`; rules append to it.
    """

    def __init__(self, weights: str = "float32", model: nn.Module | None = None):
        pack.check_weights("Program", weights)
        self.weights, self.layers = weights, list[LayerLayout]()
        self.limits: list[tuple[int, Callable[[int], None]]] = []
        self.n_in = 0
        self.part_bytes: dict[str, int] = {}  # of constants read in a step, by part of the model
        self._instructions = instructions()
        self._code: list[list[int]] = []
        self._pieces: list[tuple[int, pack.Piece]] = []
        self._constants = self._state = self._tape = self._scratch = self._most_scratch = 0
        self._part = ""
        self._names = {} if model is None else {id(module): name for name, module in model.named_modules()}

    # instructions

    def add(self, op: str, **fields: int) -> None:
        """One instruction. All its fields must be given; `in` is written ``in_``."""
        if op not in self._instructions.ops:
            raise ValueError(f"Program.add: op must be one of {[*self._instructions.ops]}, got {op!r}")
        code, names = self._instructions.ops[op]
        given = {name.removesuffix("_"): value for name, value in fields.items()}
        if set(given) != set(names):
            raise ValueError(f"Program.add: the fields of {op} must be {names}, got {(*given,)}")
        numbers = [code, *(int(given[name]) for name in names)]
        self._code.append(numbers + [0] * (self._instructions.size - len(numbers)))

    def begin(self, n_in: int, allow_nan: Tensor | None = None) -> int:
        """The first instruction: the offset where the n_in numbers of a frame stand.

        allow_nan: (n_in,) bool, where NaN is a missing value.
        """
        in_, self.n_in = self.scratch(n_in), n_in
        allowed = NONE if allow_nan is None else self.constant(allow_nan.to(torch.uint8))
        self.add("begin", in_=in_, n_in=n_in, out=in_, n_out=n_in, allow_nan=allowed)  # the result: see finish
        return in_

    def linear(self, in_: int, out: int, *linears: nn.Module, add: bool = False) -> None:
        """``torch.nn.Linear`` maps of one input, as one: their outputs one after another from ``out`` on.

        add: whether they are added to what is there.
        """
        maps, kind = [self.as_linear(module) for module in linears], pack.WEIGHTS.index(self.weights)
        matrices = [linear.weight for linear in maps]
        panel, group = self._instructions.panel, self._instructions.groups[kind]
        bias, scale = NONE, NONE
        if any(linear.bias is not None for linear in maps):
            biases = [
                linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias for linear in maps
            ]
            bias = self.constant(torch.cat([b.detach() for b in biases]))
        if self.weights == "int8":
            scale = self.constant(pack.scales(matrices))
        self.add(
            "linear",
            in_=in_,
            n_in=matrices[0].shape[1],
            out=out,
            n_out=sum(map(len, matrices)),
            weight=self._place(pack.panels(matrices, self.weights, panel, group)),
            kind=kind,
            scale=scale,
            bias=bias,
            add=add,
        )

    def as_linear(self, module: nn.Module) -> nn.Linear:
        """The module, refused unless it is just a ``torch.nn.Linear``: what wraps one may compute something else."""
        if type(module) is not nn.Linear:
            refuse(self._names.get(id(module), ""), module, _not_linear(module))
        return module

    # memory

    def constant(self, tensor: Tensor, *, read: int | None = None) -> int:
        """The offset in bytes of a tensor's numbers; ``read``: bytes of them that a step reads, if not all."""
        return self._place(pack.plain(tensor), read)

    def optional(self, tensor: Tensor | None) -> int:
        """The same, and -1 for None."""
        return NONE if tensor is None else self.constant(tensor)

    def _place(self, piece: pack.Piece, read: int | None = None) -> int:
        offset = self._constants
        self._pieces.append((offset, piece))
        self._constants = _up(offset + piece.nbytes, _LINE)
        self.part_bytes[self._part] = self.part_bytes.get(self._part, 0) + (piece.nbytes if read is None else read)
        return offset

    def scratch(self, size: int) -> int:
        """The offset of ``size`` floats for numbers within a step. They begin as anything."""
        offset = self._scratch
        self._scratch = _up(offset + size, _FLOATS)
        self._most_scratch = max(self._most_scratch, self._scratch)
        return offset

    @contextmanager
    def room(self) -> Iterator[None]:
        """Scratch that is taken within is free again after."""
        before = self._scratch
        yield
        self._scratch = before

    @contextmanager
    def part(self, path: str) -> Iterator[None]:
        """Constants that are taken within are counted as this part's in `part_bytes`."""
        before, self._part = self._part, path
        yield
        self._part = before

    def state(self, size: int) -> int:
        """The offset of ``size`` floats of state, which begin as 0."""
        offset = self._state
        self._state = _up(offset + size, _FLOATS)
        return offset

    def tape(self, size: int) -> int:
        """The offset of ``size`` floats of tape."""
        offset = self._tape
        self._tape = _up(offset + size, _FLOATS)
        return offset

    def limit(self, frames: int, check: Callable[[int], None]) -> None:
        """A row can take in this many frames; ``check(more)`` raises what the model says of more."""
        self.limits.append((frames, check))

    def finish(self, out: int, n_out: int) -> Parts:
        """The program whose result is the n_out numbers at ``out``, checked by the library.

        Raises:
            RuntimeError: an instruction uses memory that is not there.
        """
        _, names = self._instructions.ops["begin"]
        for name, value in (("out", out), ("n_out", n_out)):
            self._code[0][1 + names.index(name)] = value
        constants = pack.aligned_bytes(max(self._constants, _LINE))
        for offset, piece in self._pieces:
            piece.write(constants[offset : offset + piece.nbytes])
        self._pieces.clear()
        parts = Parts(torch.tensor(self._code), constants, self._state, self._tape, self._most_scratch)
        torch.ops.longstream.stream_check(*parts)
        return parts


def double_bits(value: float) -> int:
    """The bits of a double as an int64, for fields that are numbers with a fraction."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _not_linear(module: nn.Module) -> str:
    return (
        f"a plain torch.nn.Linear is needed here, got {type(module).__module__}.{type(module).__qualname__}; merge"
        " adapters into the weights, and for narrow ones give the float32 model and weights='int8' or 'bfloat16'"
    )
