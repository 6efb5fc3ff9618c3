"""Other people's packages, imported when a row wants them; a package that is not here is a row that says so.

What each needs on a CPU: jax its platform named (worker.py does), mambapy, accelerated-scan's ``ref``, minGRU-pytorch
and mlstm_kernels' native kernels nothing, transformers' mixers their classes alone, without flash-linear-attention or
mamba-ssm, whose kernels want a GPU. mlstm_kernels has the NXAI Community License, not an open-source one; the others
are under MIT or Apache-2.0.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from longstream.bench.measure import Skip

MISSING = "not installed: pip install 'longstream[bench]'"


def load(module: str, package: str | None = None) -> Any:
    """A module of a package that may not be here.

    Raises:
        Skip: it is not installed, or does not import here.
    """
    package = package or module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == module.partition(".")[0]:
            raise Skip(MISSING) from None
        raise Skip(f"{package} does not import here: {error}") from None
    except Exception as error:  # a package made for GPUs may raise anything
        raise Skip(f"{package} does not import here: {type(error).__name__}: {str(error)[:100]}") from None


def version(package: str) -> str:
    """Of an installed distribution; "" where it is not."""
    if package == "longstream":
        from longstream import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
