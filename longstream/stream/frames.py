"""What a stream is given, looked at: frames, masks, resets and rows, with errors that say what they should be."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_frame(frame: Any, shape: torch.Size, steps: Any) -> tuple[Tensor, bool, bool]:
    """The frames of a step as a contiguous tensor of ``shape``; whether it was an array, and one row without its B."""
    if isinstance(frame, Tensor):
        x, is_array = frame, False
    elif isinstance(frame, np.ndarray):
        x, is_array = from_array(frame), True
    elif steps.tokens and isinstance(frame, int | np.integer) and not isinstance(frame, bool):
        x, is_array = torch.tensor(int(frame)), False
    else:
        raise TypeError(f"Stream.step: frame must be a tensor or a numpy array, got {type(frame).__name__}")
    is_single = x.shape != shape
    if is_single and not (shape[0] == 1 and x.shape == shape[1:]):
        either = f" or {tuple(shape[1:])}" if shape[0] == 1 else ""
        raise ValueError(f"Stream.step: frame must have shape {_said(shape, steps)}{either}, got {tuple(x.shape)}")
    if x.dtype is not steps.dtype or x.layout != torch.strided or not x.is_contiguous() or x.device != steps.device:
        x = _converted("Stream.step: frame", x, steps)
    return x[None] if is_single else x, is_array, is_single


def read_frames(frames: Any, mask: Any, rows: int, steps: Any) -> tuple[Tensor, Tensor | None, bool, bool]:
    """The frames of a prefill, (B, T, ...), and their mask; whether they were an array, and one row without its B."""
    if not isinstance(frames, Tensor | np.ndarray):
        raise TypeError(f"Stream.prefill: frames must be a tensor or a numpy array, got {type(frames).__name__}")
    is_array = isinstance(frames, np.ndarray)
    x = from_array(frames) if isinstance(frames, np.ndarray) else frames
    inner = () if steps.tokens else (steps.n_in,)
    is_single = rows == 1 and x.dim() == 1 + len(inner)
    x = x[None] if is_single else x
    if x.dim() != 2 + len(inner) or x.shape[0] != rows or tuple(x.shape[2:]) != inner or x.shape[1] < 1:
        wanted = ", ".join([f"B={rows}", "T>=1", *(f"E={size}" for size in inner)])
        raise ValueError(f"Stream.prefill: frames must have shape ({wanted}), got {tuple(frames.shape)}")
    x = _converted("Stream.prefill: frames", x, steps)
    if mask is not None:
        mask = _as_tensor("Stream.prefill: mask", mask, x.device)
        mask = mask[None] if is_single and mask.dim() == 1 else mask
        if mask.shape != x.shape[:2] or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                f"Stream.prefill: mask must be 0 (pad) or 1 (frame) of shape {tuple(x.shape[:2])}, got"
                f" {mask.dtype} {tuple(mask.shape)}"
            )
    return x, mask, is_array, is_single


def read_reset(who: str, reset: Any, rows: int, device: torch.device) -> Tensor:
    """(B,) bool; of one row also a bool."""
    given = _as_tensor(f"{who}: reset", reset, device)
    if rows == 1 and given.dim() == 0:
        given = given[None]
    if given.dtype != torch.bool or tuple(given.shape) != (rows,):
        raise ValueError(f"{who}: reset must be bool of shape ({rows},), got {given.dtype} {tuple(given.shape)}")
    return given.contiguous()


def read_rows(who: str, rows: Any, batch_size: int, *, repeats: bool = False, name: str = "rows") -> list[int]:
    """Row numbers as a list; None is all of them."""
    if rows is None:
        return list(range(batch_size))
    given = [rows] if isinstance(rows, int) and not isinstance(rows, bool) else rows
    given = _as_tensor(f"{who}: {name}", given, torch.device("cpu"))
    if given.dim() != 1 or given.dtype == torch.bool or (len(given) and given.is_floating_point()):
        raise ValueError(f"{who}: {name} must be row numbers, got {rows!r}")
    chosen = [int(row) for row in given.tolist()]
    if not all(0 <= row < batch_size for row in chosen):
        raise ValueError(f"{who}: {name} must lie in [0, {batch_size}), got {chosen}")
    if not repeats and len(set(chosen)) < len(chosen):
        raise ValueError(f"{who}: {name} must not repeat, got {chosen}")
    return chosen


def say_where(bad: Tensor, x: Tensor, names: Sequence[str]) -> str:
    """``"nan in row 0, channel 17, and 3 more"``."""
    places = bad.nonzero().tolist()
    where = ", ".join(f"{name} {i}" for name, i in zip(names, places[0], strict=True))
    more = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{float(x[tuple(places[0])])} in {where}{more}"


def ffill(x: Tensor, skipped: Tensor, bad: Tensor, held: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """x (B, T, C) whose bad numbers are the last ones before that are not ``skipped``, and what is held after it."""
    if mask is not None:
        skipped = skipped | (mask == 0)[..., None]
    whole = torch.cat([held[:, None], x], dim=1)
    places = torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None]
    last = torch.where(skipped, 0, places).cummax(1).values  # of each place the last that counts; 0 is what was held
    filled = whole.gather(1, last)
    return torch.where(bad, filled, x), filled[:, -1]


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors have memory in common."""
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def from_array(array: np.ndarray) -> Tensor:
    """Without a copy, where torch can look at the array's memory."""
    flags = array.flags
    steps = [stride > 0 and stride % array.itemsize == 0 for stride in array.strides]
    fits = flags.writeable and flags.aligned and (flags.c_contiguous or all(steps))
    if not fits or not array.dtype.isnative:
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"Stream: frames must hold numbers, got an array of {array.dtype}") from error


def _as_tensor(what: str, given: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} must be a tensor, an array or a list of numbers, got {given!r}") from error


def _converted(who: str, x: Tensor, steps: Any) -> Tensor:
    if steps.tokens:
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise TypeError(f"{who} must be integers, the numbers of tokens, got {x.dtype}")
    elif not x.is_floating_point():
        raise TypeError(f"{who} must be floating point, got {x.dtype}")
    if x.is_meta or x.layout != torch.strided:
        raise TypeError(f"{who} must be a dense tensor with numbers in it, got {x.layout} on {x.device}")
    return x.detach().to(device=steps.device, dtype=steps.dtype).contiguous()


def _said(shape: torch.Size, steps: Any) -> str:
    return f"(B={shape[0]},)" if steps.tokens else f"(B={shape[0]}, E={shape[1]})"
