"""Weights as the native step reads them: panels of neighboring outputs, in float32, bfloat16 or int8."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = ("float32", "bfloat16", "int8")  # in the order of the kinds of csrc/stream.h
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_ROWS = 4096  # outputs packed at a time, a multiple of panels: bounds the memory beside the packed weights


class Piece(NamedTuple):
    """A constant that is written when there is memory for all of them."""

    nbytes: int
    write: Callable[[Tensor], None]  # into uint8 (nbytes,)


def check_weights(who: str, weights: str) -> None:
    """Refuse a kind of weights that is not there."""
    if weights not in WEIGHTS:
        raise ValueError(f"{who}: weights must be one of {WEIGHTS}, got {weights!r}")


def plain(tensor: Tensor) -> Piece:
    """The numbers of a tensor as they are, in order."""
    tensor = tensor.detach()

    def write(memory: Tensor) -> None:
        memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    return Piece(tensor.nbytes, write)


def panels(matrices: Sequence[Tensor], weights: str, panel: int, group: int) -> Piece:
    """Matrices (n_out, n_in) of one input, one below the other, as (n_out / panel, n_in / group, panel, group).

    Zeros stand for what the last panel and the last group lack. In int8 they are whole multiples of `int8_scale`, and
    the 4 bytes of a group are one number, see `_carried`.
    """
    matrices = [matrix.detach() for matrix in matrices]
    n_out, n_in = sum(map(len, matrices)), matrices[0].shape[1]
    dtype = _DTYPES[weights]
    shape = -(-n_out // panel), -(-n_in // group), panel, group

    def write(memory: Tensor) -> None:
        packed = memory.view(dtype).view(shape)
        joined = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        for start in range(0, n_out, _ROWS):
            rows = joined[start : start + _ROWS]
            rows = _quantize(rows, int8_scale(rows)) if weights == "int8" else rows.to(dtype)
            rows = F.pad(rows, (0, -n_in % group, 0, -len(rows) % panel)).view(-1, panel, shape[1], group)
            if weights == "int8" and group == 4:
                rows = _carried(rows)
            packed[start // panel : start // panel + len(rows)].copy_(rows.transpose(1, 2))

    return Piece(math.prod(shape) * dtype.itemsize, write)


def scales(matrices: Sequence[Tensor]) -> Tensor:
    """The scales (n_out,) of the outputs of the joined matrices in int8."""
    return torch.cat([int8_scale(matrix.detach()) for matrix in matrices])


def int8_scale(matrix: Tensor) -> Tensor:
    """What one step of int8 is worth in each row: its largest absolute value is 127 of them."""
    largest = torch.linalg.vector_norm(matrix, ord=float("inf"), dim=1)
    return torch.where(largest > 0, largest / 127, 1.0)


def rounded(matrix: Tensor, weights: str) -> Tensor:
    """The float32 matrix (n_out, n_in) that packed weights of a kind stand for."""
    check_weights("rounded", weights)
    if weights == "int8":
        scale = int8_scale(matrix)
        return _quantize(matrix, scale).float() * scale[:, None]
    return matrix.to(_DTYPES[weights]).float()


def _carried(bytes_: Tensor) -> Tensor:
    """int8 (..., 4) as the bytes of ``b0 + 256 b1 + 256^2 b2 + 256^3 b3``, which those below 0 borrow from the next."""
    words = sum(bytes_[..., i].to(torch.int32) << 8 * i for i in range(4))
    return torch.as_tensor(words).unsqueeze(-1).view(torch.int8)


def _quantize(matrix: Tensor, scale: Tensor) -> Tensor:
    return (matrix / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)


def aligned_bytes(count: int) -> Tensor:
    """uint8 (count,) whose first byte is at a multiple of 64."""
    memory = torch.empty(count + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + count]
