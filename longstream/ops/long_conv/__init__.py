"""Long convolution: as long a filter as there are tokens, with an exact state for going on token by token."""

from collections.abc import Sequence

from torch import Tensor  # not `import torch`: in this package that name is the backend's module

from longstream.ops._check import check_cu_seqlens, check_shapes, no_autocast
from longstream.ops._dispatch import Backend, pick, register, runs_anywhere
from longstream.ops._native import why_not
from longstream.ops.long_conv.filters import LongConvFilters as LongConvFilters
from longstream.ops.long_conv.native import long_conv as _native
from longstream.ops.long_conv.native import long_conv_two_sided as _native_two_sided
from longstream.ops.long_conv.reference import long_conv as _reference
from longstream.ops.long_conv.reference import long_conv_two_sided as _reference_two_sided
from longstream.ops.long_conv.state import LongConvState as LongConvState
from longstream.ops.long_conv.state import check_state
from longstream.ops.long_conv.torch import long_conv as _fft
from longstream.ops.long_conv.torch import long_conv_two_sided as _fft_two_sided

_BACKENDS = register(
    "long_conv",
    {
        "native": Backend(_native, why_not),
        "torch": Backend(_fft, runs_anywhere),
        "reference": Backend(_reference, runs_anywhere),
    },
)
_TWO_SIDED = register(
    "long_conv_two_sided",
    {
        "native": Backend(_native_two_sided, why_not),
        "torch": Backend(_fft_two_sided, runs_anywhere),
        "reference": Backend(_reference_two_sided, runs_anywhere),
    },
)


def long_conv(
    x: Tensor,
    filters: Tensor | LongConvFilters,
    skip: Tensor | None = None,
    initial_state: LongConvState | None = None,
    *,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, LongConvState]:
    """Causal long convolution, ``y_t = sum_{k <= min(t, L - 1)} filters_k * x_{t-k} + skip * x_t``, per channel.

    Hyena (Poli et al. 2023, arXiv:2302.10866), its FFT convolution with the D term; token by token the tiles of Flash
    Inference (Oncescu et al. 2024, arXiv:2410.12982), which are exact: T tokens cost O(T log^2 T), however they come.

    Args:
        x:             (B, T, D) float.
        filters:       (D, L), L >= 1.         Lag k at [:, k]; lags from L on are 0. Or `LongConvFilters`, made once
                       for many calls, where no gradient of the filters is wanted.
        skip:          (D,) or None.
        initial_state: `LongConvState` of B rows, at any lengths; None means before the first token. N rows with
                       cu_seqlens.
        cu_seqlens:    (N + 1,) int or None.   Boundaries 0 = c_0 <= ... <= c_N = T of N sequences packed in one row
                       (B = 1); each goes on from its own initial state. Empty sequences are allowed.
        backend:       "auto" or a name from ``available_backends("long_conv")``.
    Returns:
        out (B, T, D): dtype of x.      final_state: `LongConvState`, float32 or wider.
    Raises:
        ValueError: shapes, devices or cu_seqlens disagree, or no such backend.    TypeError: not floating point, or
        not a state.    RuntimeError: the named backend cannot run here; the message says why.
    Notes: FFTs and sums in float32 (float64 if an argument is), whatever the dtype of x and autocast. Differentiable
        in x, filters, skip and all of initial_state, through out and all of final_state, any number of times (once
        with "native"); any T >= 0. What a state has prepared (pending) is used where it reaches and never made again,
        so the state must come from the same filters. The state is O(length D); only what changes of it is copied. A
        value of inf or NaN spoils its row and channel of the call, earlier outputs too, unless with "reference".
    """
    taps = filters.taps if isinstance(filters, LongConvFilters) else filters
    sizes = check_shapes("long_conv", x=(x, "B T D"), filters=(taps, "D L"), skip=(skip, "D"))
    _check_taps("long_conv", filters=taps)
    bounds = check_cu_seqlens("long_conv", cu_seqlens, sizes["B"], sizes["T"])
    N = sizes["B"] if bounds is None else len(bounds) - 1
    lengths = check_state("long_conv", initial_state, N, sizes["D"], x)
    run = pick("long_conv", _BACKENDS, backend, x)
    with no_autocast(x.device):
        return run(x, filters, skip, initial_state, lengths, bounds)


def long_conv_two_sided(
    x: Tensor,
    filters: Tensor,
    filters_reverse: Tensor,
    skip: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolution in both directions, per channel; lag 0 counts in both, as in Hyena's code::

        y_t = skip * x_t + sum_{s <= t} filters_{t-s} * x_s + sum_{s >= t} filters_reverse_{s-t} * x_s

    Hyena (Poli et al. 2023, arXiv:2302.10866).

    Args:
        x:               (B, T, D) float.
        filters:         (D, L), L >= 1.         Lag k at [:, k]; lags from L on are 0.
        filters_reverse: (D, L'), L' >= 1.       The same towards later tokens.
        skip:            (D,) or None.
        cu_seqlens:      (N + 1,) int or None.   Boundaries of N sequences packed in one row (B = 1).
        backend:         "auto" or a name from ``available_backends("long_conv_two_sided")``.
    Returns:
        out (B, T, D): dtype of x.
    Raises:
        ValueError: shapes, devices or cu_seqlens disagree, or no such backend.    TypeError: not floating point.
        RuntimeError: the named backend cannot run here; the message says why.
    Notes: FFTs and sums in float32 (float64 if an argument is). Differentiable in every tensor, any number of times
        (once with "native").
    """
    op = "long_conv_two_sided"
    taps = {"filters": (filters, "D L"), "filters_reverse": (filters_reverse, "D L'")}
    sizes = check_shapes(op, x=(x, "B T D"), **taps, skip=(skip, "D"))
    _check_taps(op, filters=filters, filters_reverse=filters_reverse)
    bounds = check_cu_seqlens(op, cu_seqlens, sizes["B"], sizes["T"])
    run = pick(op, _TWO_SIDED, backend, x)
    if x.numel() == 0:
        return x.clone()
    with no_autocast(x.device):
        return run(x, filters, filters_reverse, skip, bounds)


def _check_taps(op: str, **taps: Tensor) -> None:
    for name, tensor in taps.items():
        if tensor.shape[1] < 1:
            raise ValueError(f"{op}: {name} must have at least one tap, got shape {tuple(tensor.shape)}")
