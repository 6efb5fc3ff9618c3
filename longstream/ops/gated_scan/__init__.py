"""Gated linear recurrence, one number per channel: the recurrence of HGRN."""

from collections.abc import Sequence

from torch import Tensor  # not `import torch`: in this package that name is the backend's module

from longstream.ops._check import check_cu_seqlens, check_shapes, prepare_state, wide
from longstream.ops._dispatch import Backend, pick, register, runs_anywhere
from longstream.ops._native import why_not
from longstream.ops.gated_scan.native import gated_scan as _native
from longstream.ops.gated_scan.reference import gated_scan as _reference
from longstream.ops.gated_scan.torch import gated_scan as _parallel

_BACKENDS = register(
    "gated_scan",
    {
        "native": Backend(_native, why_not),
        "torch": Backend(_parallel, runs_anywhere),
        "reference": Backend(_reference, runs_anywhere),
    },
)


def gated_scan(
    x: Tensor,
    log_forget: Tensor,
    initial_state: Tensor | None = None,
    *,
    theta: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gated linear recurrence per channel, ``h_t = exp(log_forget_t + i theta) h_{t-1} + x_t``; real without theta.

    HGRN (Qin et al. 2023, arXiv:2311.04823), its recurrence. With theta every channel is a complex number, which is a
    pair in the dimension before the last: [..., 0, :] is the real part and [..., 1, :] the imaginary one.

    Args:
        x:             (B, T, D) float; with theta (B, T, 2, D). Gated input, (1 - f_t) c_t in the paper.
        log_forget:    (B, T, D), <= 0.     Natural log of the forget gate; -inf (a reset) and 0 (no decay) are exact.
        initial_state: (B, D) or None; with theta (B, 2, D). h_0; None means zeros. N for B with cu_seqlens.
        theta:         (D,) or None.        Angle by which the state turns in one step, radians, the same at all times.
        reverse:       from the last token to the first: h_{t+1} in place of h_{t-1}, and h_0 stands after the last.
        cu_seqlens:    (N + 1,) int or None. Boundaries 0 = c_0 <= ... <= c_N = T of N sequences packed in one row
                       (B = 1); each starts from its own initial state. Empty sequences are allowed.
        backend:       "auto" or a name from ``available_backends("gated_scan")``.
    Returns:
        out, like x: h_1 .. h_T, dtype of x.      final_state, like initial_state: the h computed last (h_T; in reverse
        the one at the first token), float32 or wider.
    Raises:
        ValueError: shapes, devices or cu_seqlens disagree, or no such backend.    TypeError: not floating point.
        RuntimeError: the named backend cannot run here; the message says why.
    Notes: accumulates in float32 (float64 if an argument is). Differentiable in x, log_forget, theta and initial_state,
        through out and final_state: once with "native", any number of times with the others; any T >= 0; O(B T D)
        memory. A value of inf or NaN spoils all that comes after it in its row, with "torch" also the packed sequences
        there. With "native", any split of a sequence gives the same numbers bit for bit. The backward passes of
        "native" and "torch" need out: do not change it in place.
    """
    pair = "" if theta is None else "pair "
    given = {} if theta is None else {"pair": 2}
    sizes = check_shapes(
        "gated_scan", given, x=(x, f"B T {pair}D"), log_forget=(log_forget, "B T D"), theta=(theta, "D")
    )
    bounds = check_cu_seqlens("gated_scan", cu_seqlens, sizes["B"], sizes["T"])
    state_sizes = {"N": sizes["B"] if bounds is None else len(bounds) - 1, **given, "D": sizes["D"]}
    check_shapes("gated_scan", state_sizes, initial_state=(initial_state, f"N {pair}D"))
    dtype = wide(x, log_forget, theta)
    initial_state = prepare_state("gated_scan", initial_state, x, tuple(state_sizes.values()), dtype)
    # Under autocast too: it lowers matrix products and convolutions, of which there is none here.
    return pick("gated_scan", _BACKENDS, backend, x)(x, log_forget, initial_state, theta, reverse, bounds)
