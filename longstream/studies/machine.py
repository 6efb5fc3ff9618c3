"""What a study runs on and with, and the environment that makes its numbers the same on another machine."""

from __future__ import annotations

import os
from typing import Any

from longstream.bench.report import system, system_texts

PACKAGES = ("numpy", "transformers", "accelerate", "safetensors", "mambapy", "scipy", "scikit-learn")
# Each library picks code by the processor it finds, and other code rounds otherwise: after 60 steps bits per byte are
# 0.1 % apart with AVX-512 and with AVX2. These are set before torch is loaded. Measured on an AMD EPYC with AVX-512 and
# on an emulated Intel Haswell: outputs, gradients and fused AdamW are then equal to the bit; matrix products, exp and
# log are not where MKL_CBWR is AVX2. They cost 15 to 35 % more CPU time.
# Not covered is torch.sqrt, which MKL approximates by the processor's own tables; training calls it nowhere.
REPRODUCIBLE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "MKL_CBWR": "COMPATIBLE",  # matrix products and Fourier transforms
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "PYTHONHASHSEED": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
KERNELS = "avx2"  # of longstream's own, where the processor has it


def machine() -> dict[str, Any]:
    """Processor, memory, system and versions, without anything that names the machine."""
    return {**system(PACKAGES), "memory_gib": _memory()}


def machine_texts(here: dict[str, Any]) -> list[str]:
    """`machine` in sentences, a line each."""
    memory = f" {here['memory_gib']} GiB of memory." if here["memory_gib"] else ""
    first, *others = system_texts(here)
    return [first + memory, *others]


def use_reproducible_kernels() -> str:
    """Hold longstream's kernels to one instruction set, in this process; returns which, or why there are none."""
    import torch

    from longstream.ops import native_kernels

    if native_kernels() == "avx512":
        torch.ops.longstream.use_isa(KERNELS)
    return native_kernels()


def _memory() -> float | None:
    """GiB, where the system says."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
