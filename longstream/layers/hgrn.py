"""HGRN: a gated linear RNN with one number, or one complex number, of state a channel."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers._directions import both_ways, check_direction_and_conv, four_ways, refuse_in_direction
from longstream.layers._options import check_epsilon, check_flags, check_integers, check_one_of, check_state
from longstream.layers._padding import run_unpadded
from longstream.layers.norm import NORMS, RMSNorm, make_norm
from longstream.layers.short_conv import ShortConv
from longstream.layers.state import NoState, refuse_step, register_state
from longstream.ops import LowerBound, forget_gate, gated_scan
from longstream.ops._check import check_cu_seqlens, check_like_weight, check_shapes, weight_of
from longstream.ops.gates import gate_input

_GATE_ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}


def check_hgrn(
    who: str,
    *,
    expand_ratio: int,
    unit: str,
    direction: str,
    shared_theta: bool,
    norm: str,
    norm_eps: float,
    norm_first: bool,
    gate_activation: str,
    bias: bool,
    conv_size: int,
    conv_bias: bool,
) -> None:
    """Refuse what `HGRN` does not know; its configuration asks here too."""
    check_one_of(
        who,
        unit=(unit, ("real", "complex")),
        direction=(direction, ("causal", "bidirectional", "2d")),
        norm=(norm, NORMS),
        gate_activation=(gate_activation, (*_GATE_ACTIVATIONS,)),
    )
    check_integers(who, expand_ratio=(expand_ratio, 1), conv_size=(conv_size, 0))
    check_epsilon(who, norm_eps)
    check_flags(who, shared_theta=shared_theta, norm_first=norm_first, bias=bias, conv_bias=conv_bias)
    check_direction_and_conv(who, direction, conv_size)
    if not shared_theta and (unit, direction == "causal") != ("complex", False):
        raise ValueError(
            f"{who}: shared_theta must be True unless unit is 'complex' and direction is not 'causal', got False"
            f" with {unit!r} and {direction!r}"
        )


@register_state
class HGRNState(NamedTuple):
    """What HGRN carries from token to token, float32 or wider."""

    h: Tensor  # (B, E), or (B, 2, E) with h[:, 0] real and h[:, 1] imaginary
    conv: Tensor  # (B, conv_size - 1, 2 E or 3 E): last inputs of candidate and forget convolutions, oldest first


class HGRN(nn.Module):
    """HGRN mixer (Qin et al. 2023, arXiv:2311.04823), E = hidden_size * expand_ratio channels wide::

        c_t = SiLU(W_c x_t)                             candidate
        f_t = bound + (1 - bound) sigmoid(W_f x_t)      forget gate
        h_t = f_t exp(i theta) * h_{t-1} + (1 - f_t) * c_t
        o_t = h_t, or [Re h_t, Im h_t]
        y_t = W_out (norm(o_t) * act(W_g x_t))          norm_first; else W_out norm(o_t * act(W_g x_t))

    The real unit has no theta. The complex one has twice the candidates: channels 2j and 2j + 1 of W_c x are real and
    imaginary part of channel j.

    Where the field differs, there is an argument: flash-linear-attention's layer is the defaults; the authors' modules
    have norm "layer" and bias True, Hgru1d with unit "complex", HgruReal1d with "real", BiHgru1d with direction
    "bidirectional" and shared_theta False, Hgru2d with "2d"; their paper puts the norm after the gate (norm_first
    False), their code before. The ablation "expand by projection" of HGRN2 (arXiv:2404.07904), which widens this layer
    instead of taking an outer product, is expand_ratio 2, norm "layer", norm_first False, gate_activation "sigmoid"
    and bias True.

    Args:
        hidden_size:     D.
        expand_ratio:    E / D.
        unit:            "real" or "complex".
        direction:       "causal"; "bidirectional", h the sum of a scan from the first token and one from the last; or
                         "2d" on images, the sum of four: down, up, right and left. Each of them takes in the token
                         itself. Only "causal" has a state and a step; the attribute ``causal`` says so.
        shared_theta:    whether all scans rotate by ``theta``; if not, those up, left and from the last token rotate by
                         ``theta_reverse``. (E,) parameters, in radians.
        norm:            "rms", "layer" or "rms_no_weight", over the full width of o.
        norm_eps:        its epsilon.
        norm_first:      whether the norm comes before the output gate.
        gate_activation: of the output gate, "silu" or "sigmoid".
        bias:            whether the four projections have biases.
        conv_size:       W > 0 puts a causal depthwise convolution of W taps on each of W_c x and W_f x, before
                         activation; 0 for none. With "causal" only.
        conv_bias:       whether those have biases.
        backend:         of the ops.
    Raises:
        ValueError: an unknown choice, or choices that exclude each other.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        expand_ratio: int = 1,
        unit: str = "real",
        direction: str = "causal",
        shared_theta: bool = True,
        norm: str = "rms",
        norm_eps: float = 1e-5,
        norm_first: bool = True,
        gate_activation: str = "silu",
        bias: bool = False,
        conv_size: int = 0,
        conv_bias: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        check_hgrn(
            "HGRN",
            expand_ratio=expand_ratio,
            unit=unit,
            direction=direction,
            shared_theta=shared_theta,
            norm=norm,
            norm_eps=norm_eps,
            norm_first=norm_first,
            gate_activation=gate_activation,
            bias=bias,
            conv_size=conv_size,
            conv_bias=conv_bias,
        )
        E = hidden_size * expand_ratio
        width = 2 * E if unit == "complex" else E  # of the candidate and of o, in real numbers
        self.hidden_size, self.gate_size, self.unit = hidden_size, E, unit
        self.direction, self.causal = direction, direction == "causal"
        self.norm_first, self.conv_size, self.backend = norm_first, conv_size, backend
        self.gate_activation = _GATE_ACTIVATIONS[gate_activation]
        self.candidate_proj = nn.Linear(hidden_size, width, bias=bias)
        self.forget_proj = nn.Linear(hidden_size, E, bias=bias)
        self.out_gate_proj = nn.Linear(hidden_size, width, bias=bias)
        self.out_proj = nn.Linear(width, hidden_size, bias=bias)
        self.norm = make_norm(norm, width, norm_eps, backend)
        self.theta = nn.Parameter(torch.empty(E)) if unit == "complex" else None
        self.theta_reverse = None if shared_theta else nn.Parameter(torch.empty(E))
        if conv_size:
            self.candidate_conv = ShortConv(width, conv_size, bias=conv_bias, backend=backend)
            self.forget_conv = ShortConv(E, conv_size, bias=conv_bias, backend=backend)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The angles to 10000^(-2 k / E) for channel k, as the authors do; submodules have their own initialization."""
        E = self.gate_size
        for theta in (self.theta, self.theta_reverse):
            if theta is not None:
                k = torch.arange(E, dtype=torch.float64, device=theta.device)
                with torch.no_grad():
                    theta.copy_(10000 ** (-2 * k / E))

    def init_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The `HGRNState` before the first token: zeros, by default on the layer's device, in its dtype or wider.

        It is `NoState` unless the direction is "causal".
        """
        if not self.causal:
            return NoState()
        weight = weight_of(self.forget_proj)
        device = weight.device if device is None else device
        return self._zeros(batch_size, device, dtype or weight.dtype)

    def forward(
        self,
        x: Tensor,
        state: HGRNState | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        lower_bound: LowerBound | Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """x (B, T, D) -> y (B, T, D) and the `HGRNState` after the last token; `NoState` unless "causal".

        Args:
            x:           (B, T, D), any T >= 0; (B, height, width, D) with "2d".
            state:       HGRNState of B rows, or None for the start. With cu_seqlens, one row for each sequence. Only
                         None unless "causal".
            mask:        (B, T), 1 for tokens and 0 for pads, which are as if not there; y is 0 on them. Not with "2d".
            cu_seqlens:  (N + 1,) boundaries of N sequences packed in one row (B = 1). Not with mask, not with "2d".
            lower_bound: of the forget gate: LowerBound of (E,) tensors, (E,), or None for 0.
        Raises:
            ValueError: shapes disagree, or arguments exclude each other.
        """
        check_shapes("HGRN", {"D": self.hidden_size}, x=(x, "B height width D" if self.direction == "2d" else "B T D"))
        check_like_weight("HGRN", "x", x, self.forget_proj)
        if not self.causal:
            refuse_in_direction("HGRN", self.direction, state, mask, cu_seqlens)
        if mask is not None:
            return run_unpadded("HGRN", self.forward, x, state, mask, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        bounds = check_cu_seqlens("HGRN", cu_seqlens, *x.shape[:2])
        if self.causal:
            return self._forward_causal(x, state, bounds, lower_bound)
        gated_input, log_forget = self._gate(self.candidate_proj(x), self.forget_proj(x), lower_bound)
        if self.direction == "bidirectional":
            h = both_ways(self._scan, gated_input, log_forget, bounds=bounds)
        else:
            h = four_ways(self._scan, gated_input, log_forget)
        return self._output(x, h), NoState()

    def step(
        self, x_t: Tensor, state: HGRNState | None, *, lower_bound: LowerBound | Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """One token: x_t (B, D) -> y_t (B, D) and the `HGRNState` after it.

        Raises:
            RuntimeError: the direction is not "causal".
        """
        if not self.causal:
            refuse_step("HGRN", self.direction)
        check_shapes("HGRN.step", {"D": self.hidden_size}, x_t=(x_t, "B D"))
        y, last = self.forward(x_t[:, None], state, lower_bound=lower_bound)
        return y[:, 0], last

    def _forward_causal(
        self, x: Tensor, state: HGRNState | None, bounds: list[int] | None, lower_bound: LowerBound | Tensor | None
    ) -> tuple[Tensor, HGRNState]:
        rows = x.shape[0] if bounds is None else len(bounds) - 1
        if state is None:
            state = self._zeros(rows, x.device, x.dtype)
        check_state("HGRN", state, HGRNState, self._state_shapes(rows))
        c, z, conv = self.candidate_proj(x), self.forget_proj(x), state.conv
        if self.conv_size:
            c_past, z_past = conv.split([c.shape[-1], z.shape[-1]], dim=-1)
            c, c_past = self.candidate_conv(c, c_past, cu_seqlens=bounds)
            z, z_past = self.forget_conv(z, z_past, cu_seqlens=bounds)
            conv = torch.cat([c_past, z_past], dim=-1)
        gated_input, log_forget = self._gate(c, z, lower_bound)
        h, last = gated_scan(
            gated_input, log_forget, state.h, theta=self.theta, cu_seqlens=bounds, backend=self.backend
        )
        return self._output(x, h), HGRNState(last, conv)

    def _gate(self, c: Tensor, z: Tensor, lower_bound: LowerBound | Tensor | None) -> tuple[Tensor, Tensor]:
        """(1 - f) * SiLU(c), a pair of real and imaginary part if complex, and log f; both float32 or wider."""
        if self.unit == "real":
            log_forget, gated_input = gate_input(c, z, lower_bound, backend=self.backend)
            return gated_input, log_forget
        log_forget, input_gate = forget_gate(z, lower_bound, backend=self.backend)
        c = F.silu(c).unflatten(-1, (self.gate_size, 2)).transpose(-1, -2)  # (..., 2, E)
        return input_gate.unsqueeze(-2) * c, log_forget

    def _scan(self, gated_input: Tensor, log_forget: Tensor, reverse: bool, bounds: list[int] | None) -> Tensor:
        theta = self.theta_reverse if reverse and self.theta_reverse is not None else self.theta
        h, _ = gated_scan(
            gated_input, log_forget, theta=theta, reverse=reverse, cu_seqlens=bounds, backend=self.backend
        )
        return h

    def _output(self, x: Tensor, h: Tensor) -> Tensor:
        gate = self.out_gate_proj(x)
        o = (h.flatten(-2) if self.unit == "complex" else h).to(gate.dtype)
        if self.norm_first and self.gate_activation is F.silu and isinstance(self.norm, RMSNorm):
            return self.out_proj(self.norm(o, gate))  # in one pass
        gate = self.gate_activation(gate)
        return self.out_proj(self.norm(o) * gate if self.norm_first else self.norm(o * gate))

    def _state_shapes(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        E, taps = self.gate_size, max(self.conv_size - 1, 0)
        return ((rows, 2, E), (rows, taps, 3 * E)) if self.unit == "complex" else ((rows, E), (rows, taps, 2 * E))

    def _zeros(self, rows: int, device: torch.device | str, dtype: torch.dtype) -> HGRNState:
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return HGRNState(*(torch.zeros(shape, device=device, dtype=dtype) for shape in self._state_shapes(rows)))
