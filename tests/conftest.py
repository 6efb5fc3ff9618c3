"""Seeds, one thread, no network, and memory that is NaN until somebody writes it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that tests find `tests.oracle` and the package, however pytest was started
    sys.path.insert(0, str(ROOT))


torch.set_num_threads(1)  # the tensors here are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fill_empty_memory_with_nan(request):
    """In tests/ops, what torch.empty returns is NaN, so that an output nobody wrote cannot pass as zeros."""
    if "ops" not in request.node.path.relative_to(ROOT / "tests").parts[:-1]:
        yield
        return
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)  # its setting fill_uninitialized_memory is on by default
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
