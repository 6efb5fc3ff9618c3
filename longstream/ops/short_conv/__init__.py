"""Depthwise causal convolution with a few taps, which carries its last inputs as state."""

from collections.abc import Sequence

from torch import Tensor  # not `import torch`: in this package that name is the backend's module

from longstream.ops._check import check_cu_seqlens, check_shapes, no_autocast, prepare_state, wide
from longstream.ops._dispatch import Backend, pick, register, runs_anywhere
from longstream.ops._native import why_not
from longstream.ops.short_conv.native import short_conv as _native
from longstream.ops.short_conv.reference import short_conv as _reference
from longstream.ops.short_conv.torch import short_conv as _shifted

_BACKENDS = register(
    "short_conv",
    {
        "native": Backend(_native, why_not),
        "torch": Backend(_shifted, runs_anywhere),
        "reference": Backend(_reference, runs_anywhere),
    },
)


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    activation: str | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution, ``y_t = act(bias + sum_{j < W} weight_j * x_{t - (W - 1) + j})``, per channel.

    The layout is that of causal-conv1d and flash-linear-attention: oldest tap first, so ``weight[:, W - 1]`` meets x_t.

    Args:
        x:             (B, T, D) float.
        weight:        (D, W), W >= 1.           Taps, oldest first.
        bias:          (D,) or None.
        initial_state: (B, W - 1, D) or None.    The W - 1 inputs before x, oldest first; None means zeros.
                       (N, W - 1, D) with cu_seqlens.
        activation:    None or "silu".
        cu_seqlens:    (N + 1,) int or None.     Boundaries of N sequences packed in one row (B = 1); no tap crosses.
        backend:       "auto" or a name from ``available_backends("short_conv")``.
    Returns:
        out (B, T, D): dtype of x.      final_state (B or N, W - 1, D): the last W - 1 inputs, float32 or wider.
    Raises:
        ValueError: shapes, devices or cu_seqlens disagree, unknown activation or backend.
        TypeError: not floating point.
        RuntimeError: the named backend cannot run here; the message says why.
    Notes: sums in float32 (float64 if an argument is). Differentiable in x, weight, bias and initial_state,
        once with "native", any number of times with the others. O(B T D) memory.
    """
    sizes = check_shapes("short_conv", x=(x, "B T D"), weight=(weight, "D W"), bias=(bias, "D"))
    if sizes["W"] < 1:
        raise ValueError(f"short_conv: weight must have at least one tap, got shape {tuple(weight.shape)}")
    if activation not in (None, "silu"):
        raise ValueError(f"short_conv: activation must be None or 'silu', got {activation!r}")
    bounds = check_cu_seqlens("short_conv", cu_seqlens, sizes["B"], sizes["T"])
    state_sizes = {"N": sizes["B"] if bounds is None else len(bounds) - 1, "W-1": sizes["W"] - 1, "D": sizes["D"]}
    check_shapes("short_conv", state_sizes, initial_state=(initial_state, "N W-1 D"))
    initial_state = prepare_state("short_conv", initial_state, x, tuple(state_sizes.values()), wide(x, weight))
    run = pick("short_conv", _BACKENDS, backend, x)
    with no_autocast(x.device):
        return run(x, weight, bias, initial_state, activation, bounds)
