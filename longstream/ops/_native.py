"""The compiled library of csrc/: loads it once, or says in words why it is not there."""

from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).resolve().parents[1] / "longstream_kernels.so"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load() -> str | None:
    if not LIBRARY.exists():
        return "not compiled: install longstream again where torch >= 2.10 and a C++17 compiler (g++, clang++) are"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    return None


MISSING = _load()  # None when the library is loaded, else why it is not


def why_not(x: Tensor) -> str | None:
    """``why_not`` of the native backend of every op."""
    if x.device.type != "cpu":
        return f"needs CPU tensors, got {x.device.type}"
    if x.dtype not in DTYPES:
        return f"needs float32, float64, bfloat16 or float16, got {x.dtype}"
    return MISSING


def native_kernels() -> str:
    """The instruction set that the native kernels use here ("base", "avx2", "avx512"), or why there are none."""
    return MISSING or torch.ops.longstream.isa()
