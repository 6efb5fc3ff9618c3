"""What tests ask of optional fields."""

import numpy as np


def known(array: np.ndarray | None) -> np.ndarray:
    """The array, which must be there."""
    assert array is not None
    return array
