"""The instruction long_conv: its constants, and how a `LongConvState` stands on a tape; see csrc/stream_tiles.h."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream.ops.long_conv.state import BLOCK, LongConvState, check_state, runs

if TYPE_CHECKING:
    from longstream.stream.program import Program

_LANES = 16  # channels on the tape are a multiple of it
_CHANNELS = 64  # of a chunk
LANES = {"base": 4, "avx2": 8, "avx512": 16}  # numbers of a vector, by instruction set


class Tiles:
    """The place of one long convolution on the tape, and its instruction.

    Args:
        program: to which the instruction is added.
        in_, out: its input and output.
        taps:    (D, L), lag 0 first.
        skip:    (D,) or None.
        longest: the most tokens of a row.
    """

    def __init__(self, program: Program, in_: int, out: int, taps: Tensor, skip: Tensor | None, longest: int):
        self.channels, self.longest = len(taps), longest
        self.levels = ((longest - 1) // BLOCK).bit_length()
        self._width = -(-self.channels // _LANES) * _LANES
        self._rows = longest + (BLOCK << self.levels if self.levels else 0) + 1
        self._tape = program.tape(self._rows * self._width)
        taps = F.pad(taps, (0, 0, 0, self._width - self.channels))
        lanes = LANES[torch.ops.longstream.isa()]
        spectra, twiddles = self._constants(program, taps)
        near = F.pad(taps[:, : 2 * BLOCK], (0, max(0, 2 * BLOCK - taps.shape[1]))).t()
        work = -(-self.channels // _CHANNELS) * (BLOCK << self.levels) * lanes if self.levels > 1 else 0
        with program.room():
            program.add(
                "long_conv",
                in_=in_,
                out=out,
                n=self.channels,
                longest=longest,
                taps=program.constant(near, read=BLOCK * self._width * 4),
                skip=program.optional(None if skip is None else F.pad(skip, (0, self._width - self.channels))),
                spectra=spectra,
                twiddles=twiddles,
                levels=self.levels,
                lanes=lanes,
                tape=self._tape,
                work=program.scratch(work),
            )

    def _constants(self, program: Program, taps: Tensor) -> tuple[int, int]:
        """Spectra of levels 1, 2, ..., and what their transforms need."""
        if self.levels < 2:
            return -1, -1
        spectra = []
        for m in range(1, self.levels):
            leaf, levels = transform(m)
            spectra.append(torch.ops.longstream.long_conv_spectrum(taps[:, 1 : 2 * BLOCK << m], leaf, levels).flatten())
        # Level m is read once for each 2^(m + 1) blocks: width numbers a token.
        read = len(spectra) * self._width * 4
        nodes = 3 << (2 * transform(self.levels - 1)[1] - 2)
        return program.constant(torch.cat(spectra), read=read), program.constant(twiddle_table(nodes), read=0)

    def _view(self, tape: Tensor) -> Tensor:
        return tape[:, self._tape : self._tape + self._rows * self._width].unflatten(1, (self._rows, self._width))

    def _pending(self, view: Tensor, row: int, m: int, blocks: int) -> Tensor:
        at = self.longest + (BLOCK << m if m else BLOCK * (blocks >> 1 & 1))
        return view[row, at : at + (BLOCK << m), : self.channels]

    def write(self, who: str, state: LongConvState, tape: Tensor, position: Tensor) -> None:
        """From a state of n rows, at ``position`` (n,), to tapes (n, tape size), which are zeros before.

        Raises:
            ValueError: it is of other sizes, or of more tokens than there may be.
        """
        lengths = check_state(who, state, len(tape), self.channels, tape)
        if lengths != position.tolist():
            raise ValueError(f"{who}: length must be the state's position {position.tolist()}, got {lengths}")
        if max(lengths, default=0) > self.longest:
            raise ValueError(f"{who}: length must be at most {self.longest}, got {lengths}")
        view = self._view(tape)
        for row, length in enumerate(lengths):
            blocks, past = length // BLOCK, view[row, :length, : self.channels]
            past[blocks * BLOCK :] = state.recent[row, : length % BLOCK]
            for m, first in runs(blocks):
                inputs, pending = state.level(m)
                past[first * BLOCK : first * BLOCK + (BLOCK << m)] = inputs[row]
                if m < self.levels:  # else it is for tokens after the last
                    self._pending(view, row, m, blocks)[:] = pending[row]

    def inputs(self, tape: Tensor, position: Tensor) -> Tensor:
        """(n, longest of position, D): all inputs, zeros after each row's."""
        lengths = position.tolist()
        past = tape.new_zeros(len(tape), max(lengths, default=0), self.channels)
        for row, length in enumerate(lengths):
            past[row, :length] = self._view(tape)[row, :length, : self.channels]
        return past

    def read(self, tape: Tensor, position: Tensor) -> LongConvState:
        """Back: a state in memory of its own, with as many levels as its rows need.

        A run that ends with the last token there may be, and is as long as the past, has prepared nothing: zeros.
        """
        view, lengths = self._view(tape), position.tolist()
        used = 0
        for length in lengths:
            used |= length // BLOCK
        sizes = [BLOCK, *(BLOCK << m if used >> m & 1 else 0 for m in range(used.bit_length()) for _ in range(2))]
        recent, *levels = (tape.new_zeros(len(tape), size, self.channels) for size in sizes)
        for row, length in enumerate(lengths):
            blocks, past = length // BLOCK, view[row, :length, : self.channels]
            recent[row, : length % BLOCK] = past[blocks * BLOCK :]
            for m, first in runs(blocks):
                levels[2 * m][row] = past[first * BLOCK : first * BLOCK + (BLOCK << m)]
                if m < self.levels:
                    levels[2 * m + 1][row] = self._pending(view, row, m, blocks)
        return LongConvState(position.clone(), recent, *levels)


def transform(m: int) -> tuple[int, int]:
    """The leaf and the levels of the transform of 64 << m complex numbers, m >= 1."""
    return 1 + m % 2, 3 + m // 2


@cache
def twiddle_table(nodes: int) -> Tensor:
    """(nodes, 6) float32: w, w^2 and w^3 of each node, as csrc/long_conv.h has them."""
    table = []
    for node in range(nodes):
        turn, bit = 0.0, 0.5
        while node:
            turn, node, bit = turn + bit * (node % 2), node // 2, bit / 2
        angles = [0.5 * math.pi * turn * power for power in (1, 2, 3)]
        table.append([part for angle in angles for part in (math.cos(angle), math.sin(angle))])
    return torch.tensor(table, dtype=torch.float64).float()
