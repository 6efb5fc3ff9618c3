"""HGRN2: a gated linear RNN whose state is expanded by an outer product."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers._padding import run_unpadded
from longstream.layers.norm import NORMS, make_norm
from longstream.layers.short_conv import ShortConv
from longstream.layers.state import register_state
from longstream.ops import LowerBound, forget_gate, gla
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes

_QUERY_ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}
_VALUE_ACTIVATIONS = {"none": None, "silu": F.silu}


def check_choices(
    who: str,
    expand_ratio: int,
    query_activation: str,
    value_activation: str,
    norm: str,
    norm_eps: float,
    conv_size: int,
) -> None:
    """Refuse what `HGRN2` does not know; its configuration asks here too."""
    choices = {
        "query_activation": (query_activation, (*_QUERY_ACTIVATIONS,)),
        "value_activation": (value_activation, (*_VALUE_ACTIVATIONS,)),
        "norm": (norm, NORMS),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{who}: {name} must be one of {known}, got {value!r}")
    for name, value, least in (("expand_ratio", expand_ratio, 1), ("conv_size", conv_size, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{who}: {name} must be an integer >= {least}, got {value!r}")
    if not isinstance(norm_eps, int | float) or not norm_eps >= 0:
        raise ValueError(f"{who}: norm_eps must be a number >= 0, got {norm_eps!r}")


@register_state
class HGRN2State(NamedTuple):
    """What HGRN2 carries from token to token, float32 or wider."""

    S: Tensor  # (B, H, K, V)
    conv: Tensor  # (B, conv_size - 1, 3 D): the last inputs of the q, forget and v convolutions, oldest first


class HGRN2(nn.Module):
    """HGRN2 mixer (Qin et al. 2024, arXiv:2404.07904)::

        q_t = act_q(W_q x_t) * query_scale          output gate
        f_t = bound + (1 - bound) sigmoid(W_f x_t)  forget gate;  k_t = 1 - f_t
        v_t = act_v(W_v x_t)                        input
        S_t = diag(f_t) S_{t-1} + k_t v_t^T         per head, K x V with K = V = expand_ratio
        y_t = W_out norm(concat over heads of S_t^T q_t)

    Where the field differs, there is an argument: flash-linear-attention's layer is the defaults with query_scale
    expand_ratio ** -0.5; the authors' stand-alone module has query_activation "sigmoid", value_activation "silu", norm
    "layer" and bias True; their language model on the hub has norm "rms_no_weight" with norm_eps 1e-6.

    Args:
        hidden_size:      D.
        expand_ratio:     K = V, the size of a head; D / expand_ratio heads. From 1 to D; it must divide D.
        query_activation: "silu" or "sigmoid".
        value_activation: "none" or "silu".
        query_scale:      factor on q.
        norm:             "rms", "layer" or "rms_no_weight", over the full width D.
        norm_eps:         its epsilon.
        bias:             whether the four projections have biases.
        conv_size:        W > 0 puts a causal depthwise convolution of W taps on each of the projected q, f and v,
                          before activation; 0 for none.
        conv_bias:        whether those have biases.
        backend:          of the ops.
    Raises:
        ValueError: expand_ratio does not divide hidden_size, or an unknown choice.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        expand_ratio: int = 128,
        query_activation: str = "silu",
        value_activation: str = "none",
        query_scale: float = 1.0,
        norm: str = "rms",
        norm_eps: float = 1e-5,
        bias: bool = False,
        conv_size: int = 0,
        conv_bias: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        check_choices("HGRN2", expand_ratio, query_activation, value_activation, norm, norm_eps, conv_size)
        if hidden_size % expand_ratio:
            raise ValueError(f"HGRN2: expand_ratio must divide hidden_size {hidden_size}, got {expand_ratio}")
        self.hidden_size, self.expand_ratio, self.num_heads = hidden_size, expand_ratio, hidden_size // expand_ratio
        self.query_scale, self.conv_size, self.backend = query_scale, conv_size, backend
        self.query_activation = _QUERY_ACTIVATIONS[query_activation]
        self.value_activation = _VALUE_ACTIVATIONS[value_activation]
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.forget_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.norm = make_norm(norm, hidden_size, norm_eps)
        if conv_size:
            self.q_conv = ShortConv(hidden_size, conv_size, bias=conv_bias, backend=backend)
            self.forget_conv = ShortConv(hidden_size, conv_size, bias=conv_bias, backend=backend)
            self.v_conv = ShortConv(hidden_size, conv_size, bias=conv_bias, backend=backend)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> HGRN2State:
        """The state before the first token: zeros, by default on the layer's device, in its dtype or wider."""
        weight = next(self.parameters())
        device = weight.device if device is None else device
        dtype = torch.float64 if (dtype or weight.dtype) == torch.float64 else torch.float32
        K = self.expand_ratio
        return HGRN2State(
            torch.zeros(batch_size, self.num_heads, K, K, device=device, dtype=dtype),
            torch.zeros(batch_size, max(self.conv_size - 1, 0), 3 * self.hidden_size, device=device, dtype=dtype),
        )

    def forward(
        self,
        x: Tensor,
        state: HGRN2State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: LowerBound | Tensor | None = None,
    ) -> tuple[Tensor, HGRN2State]:
        """x (B, T, D) -> y (B, T, D) and the state after the last token.

        Args:
            x:           (B, T, D), any T >= 0.
            state:       HGRN2State of B rows, or None for the start. With cu_seqlens, one row for each sequence.
            mask:        (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them.
            cu_seqlens:  (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask.
            lower_bound: of the forget gate: LowerBound of (D,) tensors, (D,), or None for 0.
        Raises:
            ValueError: shapes disagree, or mask and cu_seqlens are both given.
        """
        check_shapes("HGRN2", {"D": self.hidden_size}, x=(x, "B T D"))
        check_like_weight("HGRN2", "x", x, self.q_proj.weight)
        if mask is not None:
            return run_unpadded("HGRN2", self.forward, x, state, mask, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        bounds = check_cu_seqlens("HGRN2", cu_seqlens, *x.shape[:2])
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None:
            state = self.init_state(rows, device=x.device, dtype=x.dtype)
        self._check_state(state, rows)

        q, z, v = self.q_proj(x), self.forget_proj(x), self.v_proj(x)
        conv = state.conv
        if self.conv_size:
            q_past, z_past, v_past = conv.chunk(3, dim=-1)
            q, q_past = self.q_conv(q, q_past, cu_seqlens=bounds)
            z, z_past = self.forget_conv(z, z_past, cu_seqlens=bounds)
            v, v_past = self.v_conv(v, v_past, cu_seqlens=bounds)
            conv = torch.cat([q_past, z_past, v_past], dim=-1)
        q = self.query_activation(q)
        if self.query_scale != 1:
            q = q * self.query_scale
        v = v if self.value_activation is None else self.value_activation(v)
        log_forget, k = forget_gate(z, lower_bound)
        q, k, v, log_forget = (u.unflatten(-1, (self.num_heads, self.expand_ratio)) for u in (q, k, v, log_forget))
        o, S = gla(q, k, v, log_forget, state.S, cu_seqlens=bounds, backend=self.backend)
        return self.out_proj(self.norm(o.flatten(-2))), HGRN2State(S, conv)

    def step(
        self, x_t: Tensor, state: HGRN2State | None, *, lower_bound: LowerBound | Tensor | None = None
    ) -> tuple[Tensor, HGRN2State]:
        """One token: x_t (B, D) -> y_t (B, D) and the state after it."""
        check_shapes("HGRN2.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, state = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], state

    def _check_state(self, state: HGRN2State, rows: int) -> None:
        if not isinstance(state, HGRN2State):
            raise TypeError(f"HGRN2: state must be an HGRN2State or None, got {type(state).__name__}")
        H, K = self.num_heads, self.expand_ratio
        expected = ((rows, H, K, K), (rows, max(self.conv_size - 1, 0), 3 * self.hidden_size))
        for name, tensor, shape in zip(HGRN2State._fields, state, expected, strict=True):
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
                got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ValueError(f"HGRN2: state.{name} must have shape {shape}, got {got}")
