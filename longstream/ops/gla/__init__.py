"""Gated linear attention: the recurrence of HGRN2."""

from collections.abc import Sequence

from torch import Tensor  # not `import torch`: in this package that name is the backend's module

from longstream.ops import _native
from longstream.ops._check import check_cu_seqlens, check_shapes, no_autocast, prepare_state, wide
from longstream.ops._dispatch import Backend, pick, register, runs_anywhere
from longstream.ops.gla.native import gla as _kernels
from longstream.ops.gla.reference import gla as _reference
from longstream.ops.gla.torch import gla as _chunked

_BACKENDS = register(
    "gla",
    {
        "native": Backend(_kernels, _native.why_not),
        "torch": Backend(_chunked, runs_anywhere),
        "reference": Backend(_reference, runs_anywhere),
    },
)


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_forget: Tensor,
    initial_state: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gated linear attention, ``S_t = diag(exp(log_forget_t)) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t``.

    HGRN2 (Qin et al. 2024, arXiv:2404.07904), its recurrence with q the output gate, k = 1 - forget and v the input;
    the general form is gated linear attention (Yang et al. 2023, arXiv:2312.06635). There is no scale on q.

    Args:
        q, k:          (B, T, H, K) float.   Query and key.
        v:             (B, T, H, V) float.   Value.
        log_forget:    (B, T, H, K), <= 0.   Natural log of the forget gate; -inf (a reset) and 0 (no decay) are exact.
        initial_state: (B, H, K, V) or None. S_0; None means zeros. (N, H, K, V) with cu_seqlens.
        cu_seqlens:    (N + 1,) int or None. Boundaries 0 = c_0 <= ... <= c_N = T of N sequences packed in one row
                       (B = 1); each starts from its own initial state. Empty sequences are allowed.
        backend:       "auto" or a name from ``available_backends("gla")``.
    Returns:
        out (B, T, H, V): dtype of v.      final_state (B or N, H, K, V): S_T, float32 or wider.
    Raises:
        ValueError: shapes, devices or cu_seqlens disagree, or no such backend.    TypeError: not floating point.
        RuntimeError: the named backend cannot run here; the message says why.
    Notes: accumulates in float32 (float64 if an argument is). Differentiable in q, k, v, log_forget and initial_state,
        through out and final_state, once with "native" and "torch", any number of times with "reference"; any T >= 0;
        O(B T H (K + V)) memory. A value of inf or NaN spoils its column from there on; with "torch" earlier outputs
        too, at most 63 tokens back.
    """
    sizes = check_shapes(
        "gla", q=(q, "B T H K"), k=(k, "B T H K"), v=(v, "B T H V"), log_forget=(log_forget, "B T H K")
    )
    bounds = check_cu_seqlens("gla", cu_seqlens, sizes["B"], sizes["T"])
    N = sizes["B"] if bounds is None else len(bounds) - 1
    given = {"N": N, "H": sizes["H"], "K": sizes["K"], "V": sizes["V"]}
    check_shapes("gla", given, initial_state=(initial_state, "N H K V"))
    dtype = wide(q, k, v, log_forget)
    initial_state = prepare_state("gla", initial_state, q, (N, sizes["H"], sizes["K"], sizes["V"]), dtype)
    run = pick("gla", _BACKENDS, backend, q)
    with no_autocast(q.device):
        return run(q, k, v, log_forget, initial_state, bounds)
