"""HGRN2: a gated linear RNN whose state is expanded by an outer product."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers._directions import along, both_ways, check_direction_and_conv, four_ways, refuse_in_direction
from longstream.layers._options import check_epsilon, check_flags, check_integers, check_one_of, check_state
from longstream.layers._padding import run_unpadded
from longstream.layers.norm import NORMS, make_norm
from longstream.layers.short_conv import ShortConv
from longstream.layers.state import NoState, refuse_step, register_state
from longstream.ops import LowerBound, forget_gate, gla
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, weight_of

_QUERY_ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}
_VALUE_ACTIVATIONS = {"none": None, "silu": F.silu}


def check_hgrn2(
    who: str,
    *,
    expand_ratio: int,
    direction: str,
    query_activation: str,
    value_activation: str,
    query_scale: float,
    norm: str,
    norm_eps: float,
    bias: bool,
    conv_size: int,
    conv_bias: bool,
) -> None:
    """Refuse what `HGRN2` does not know; its configuration asks here too."""
    check_one_of(
        who,
        direction=(direction, ("causal", "bidirectional", "2d_parallel", "2d_series")),
        query_activation=(query_activation, (*_QUERY_ACTIVATIONS,)),
        value_activation=(value_activation, (*_VALUE_ACTIVATIONS,)),
        norm=(norm, NORMS),
    )
    check_integers(who, expand_ratio=(expand_ratio, 1), conv_size=(conv_size, 0))
    check_epsilon(who, norm_eps)
    check_flags(who, bias=bias, conv_bias=conv_bias)
    if not isinstance(query_scale, int | float) or isinstance(query_scale, bool):
        raise ValueError(f"{who}: query_scale must be a number, got {query_scale!r}")
    check_direction_and_conv(who, direction, conv_size)


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
        direction:        "causal"; "bidirectional", S_t the sum of a scan from the first token and one from the last;
                          on images, "2d_parallel", the sum of four: down, up, right and left, or "2d_series", the whole
                          bidirectional layer along the height and then, with the same weights, along the width. Each
                          scan takes in the token itself. Only "causal" has a state and a step; the attribute ``causal``
                          says so.
        query_activation: "silu" or "sigmoid".
        value_activation: "none" or "silu".
        query_scale:      factor on q.
        norm:             "rms", "layer" or "rms_no_weight", over the full width D.
        norm_eps:         its epsilon.
        bias:             whether the four projections have biases.
        conv_size:        W > 0 puts a causal depthwise convolution of W taps on each of the projected q, f and v,
                          before activation; 0 for none. With "causal" only.
        conv_bias:        whether those have biases.
        backend:          of the ops.
    Raises:
        ValueError: expand_ratio does not divide hidden_size, an unknown choice, or choices that exclude each other.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        expand_ratio: int = 128,
        direction: str = "causal",
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
        check_hgrn2(
            "HGRN2",
            expand_ratio=expand_ratio,
            direction=direction,
            query_activation=query_activation,
            value_activation=value_activation,
            query_scale=query_scale,
            norm=norm,
            norm_eps=norm_eps,
            bias=bias,
            conv_size=conv_size,
            conv_bias=conv_bias,
        )
        if hidden_size % expand_ratio:
            raise ValueError(f"HGRN2: expand_ratio must divide hidden_size {hidden_size}, got {expand_ratio}")
        self.hidden_size, self.expand_ratio, self.num_heads = hidden_size, expand_ratio, hidden_size // expand_ratio
        self.gate_size = hidden_size  # channels of the forget gate and its lower bound
        self.direction, self.causal = direction, direction == "causal"
        self.query_scale, self.conv_size, self.backend = query_scale, conv_size, backend
        self.query_activation = _QUERY_ACTIVATIONS[query_activation]
        self.value_activation = _VALUE_ACTIVATIONS[value_activation]
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.forget_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.norm = make_norm(norm, hidden_size, norm_eps, backend)
        if conv_size:
            self.q_conv = ShortConv(hidden_size, conv_size, bias=conv_bias, backend=backend)
            self.forget_conv = ShortConv(hidden_size, conv_size, bias=conv_bias, backend=backend)
            self.v_conv = ShortConv(hidden_size, conv_size, bias=conv_bias, backend=backend)

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The `HGRN2State` before the first token: zeros, by default on the layer's device, in its dtype or wider.

        It is `NoState` unless the direction is "causal".
        """
        if not self.causal:
            return NoState()
        weight = weight_of(self.q_proj)
        device = weight.device if device is None else device
        return self._zeros(batch_size, device, dtype or weight.dtype)

    def forward(
        self,
        x: Tensor,
        state: HGRN2State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: LowerBound | Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """x (B, T, D) -> y (B, T, D) and the `HGRN2State` after the last token; `NoState` unless "causal".

        Args:
            x:           (B, T, D), any T >= 0; (B, height, width, D) with "2d_parallel" and "2d_series".
            state:       HGRN2State of B rows, or None for the start. With cu_seqlens, one row for each sequence. Only
                         None unless "causal".
            mask:        (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them. Not on images.
            cu_seqlens:  (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask, not on images.
            lower_bound: of the forget gate: LowerBound of (D,) tensors, (D,), or None for 0.
        Raises:
            ValueError: shapes disagree, or arguments exclude each other.
        """
        pattern = "B height width D" if self.direction.startswith("2d") else "B T D"
        check_shapes("HGRN2", {"D": self.hidden_size}, x=(x, pattern))
        check_like_weight("HGRN2", "x", x, self.q_proj)
        if not self.causal:
            refuse_in_direction("HGRN2", self.direction, state, mask, cu_seqlens)
        if mask is not None:
            return run_unpadded("HGRN2", self.forward, x, state, mask, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        bounds = check_cu_seqlens("HGRN2", cu_seqlens, *x.shape[:2])
        if self.causal:
            return self._forward_causal(x, state, bounds, lower_bound)
        if self.direction == "2d_parallel":
            return self._output(four_ways(self._scan, *self._roles(*self._project(x), lower_bound))), NoState()

        def run(rows: Tensor) -> Tensor:
            return self._output(both_ways(self._scan, *self._roles(*self._project(rows), lower_bound), bounds=bounds))

        return (run(x) if self.direction == "bidirectional" else along(2, run, along(1, run, x))), NoState()

    def step(
        self, x_t: Tensor, state: HGRN2State | None, *, lower_bound: LowerBound | Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """One token: x_t (B, D) -> y_t (B, D) and the `HGRN2State` after it.

        Raises:
            RuntimeError: the direction is not "causal".
        """
        if not self.causal:
            refuse_step("HGRN2", self.direction)
        check_shapes("HGRN2.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, last = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], last

    def _forward_causal(
        self, x: Tensor, state: HGRN2State | None, bounds: list[int] | None, lower_bound: LowerBound | Tensor | None
    ) -> tuple[Tensor, HGRN2State]:
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None:
            state = self._zeros(rows, x.device, x.dtype)
        check_state("HGRN2", state, HGRN2State, self._state_shapes(rows))
        q, z, v = self._project(x)
        conv = state.conv
        if self.conv_size:
            q_past, z_past, v_past = conv.chunk(3, dim=-1)
            q, q_past = self.q_conv(q, q_past, cu_seqlens=bounds)
            z, z_past = self.forget_conv(z, z_past, cu_seqlens=bounds)
            v, v_past = self.v_conv(v, v_past, cu_seqlens=bounds)
            conv = torch.cat([q_past, z_past, v_past], dim=-1)
        o, S = gla(*self._roles(q, z, v, lower_bound), state.S, cu_seqlens=bounds, backend=self.backend)
        return self._output(o), HGRN2State(S, conv)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_proj(x), self.forget_proj(x), self.v_proj(x)

    def _roles(
        self, q: Tensor, z: Tensor, v: Tensor, lower_bound: LowerBound | Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and log_forget (..., H, K) from the projections (..., D)."""
        q = self.query_activation(q)
        if self.query_scale != 1:
            q = q * self.query_scale
        v = v if self.value_activation is None else self.value_activation(v)
        log_forget, k = forget_gate(z, lower_bound, backend=self.backend)
        q, k, v, log_forget = (u.unflatten(-1, (self.num_heads, self.expand_ratio)) for u in (q, k, v, log_forget))
        return q, k, v, log_forget

    def _scan(
        self, q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, reverse: bool, bounds: list[int] | None
    ) -> Tensor:
        """(rows, T, H, V), without states; a scan from the last token is one from the first of the row turned round."""
        if not reverse:
            return gla(q, k, v, log_forget, cu_seqlens=bounds, backend=self.backend)[0]
        if bounds is not None:
            bounds = [bounds[-1] - bound for bound in reversed(bounds)]
        turned = (u.flip(1) for u in (q, k, v, log_forget))
        return gla(*turned, cu_seqlens=bounds, backend=self.backend)[0].flip(1)

    def _output(self, o: Tensor) -> Tensor:
        return self.out_proj(self.norm(o.flatten(-2)))

    def _state_shapes(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        K = self.expand_ratio
        return (rows, self.num_heads, K, K), (rows, max(self.conv_size - 1, 0), 3 * self.hidden_size)

    def _zeros(self, rows: int, device: torch.device | str, dtype: torch.dtype) -> HGRN2State:
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return HGRN2State(*(torch.zeros(shape, device=device, dtype=dtype) for shape in self._state_shapes(rows)))
