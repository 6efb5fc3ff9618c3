"""Step rules of norms, MLPs and of the mixers but Hyena."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longstream.layers import HGRN, HGRN2, BilinearMLP, GeluMLP, RMSNorm, ShortConv, SlidingWindowAttention, SwiGLU
from longstream.layers.attention import AttentionState, _turns
from longstream.layers.hgrn import HGRNState
from longstream.layers.hgrn2 import HGRN2State
from longstream.ops import LowerBound
from longstream.stream.layout import Fields, Ring
from longstream.stream.program import ACTIVATIONS, NONE, NORMS, Program, double_bits
from longstream.stream.rules import apply_rule, join, refuse, step_rule

_ACTIVATION_OF = {None: "none", F.silu: "silu", torch.sigmoid: "sigmoid", F.gelu: "gelu"}


def activation(path: str, module: nn.Module, function: Callable[[Tensor], Tensor] | None) -> int:
    """The number of an activation in the program."""
    if function not in _ACTIVATION_OF:
        refuse(path, module, f"there is no native step for its activation {function!r}")
    return ACTIVATIONS.index(_ACTIVATION_OF[function])


# norms


@step_rule(RMSNorm)
def rms_norm(program: Program, module: RMSNorm, in_: int, out: int, path: str, *, gate: int = NONE) -> None:
    """y = weight * x / sqrt(mean(x^2) + eps), times SiLU(gate)."""
    norm(program, "rms", module.normalized_shape[0], module.eps or 0.0, module.weight, None, in_, out, gate)


@step_rule(nn.LayerNorm)
def layer_norm(program: Program, module: nn.LayerNorm, in_: int, out: int, path: str, *, gate: int = NONE) -> None:
    """y = weight * (x - mean) / sqrt(variance + eps) + bias, times SiLU(gate)."""
    if len(module.normalized_shape) != 1:
        refuse(path, module, f"normalized_shape must be one dimension, got {module.normalized_shape}")
    norm(program, "layer", module.normalized_shape[0], module.eps, module.weight, module.bias, in_, out, gate)


def norm(
    program: Program,
    kind: str,
    n: int,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    in_: int,
    out: int,
    gate: int = NONE,
) -> None:
    """The instruction of any norm."""
    program.add(
        "norm",
        in_=in_,
        out=out,
        n=n,
        kind=NORMS.index(kind),
        eps=double_bits(eps),
        weight=program.optional(weight),
        bias=program.optional(bias),
        gate=gate,
    )


# MLPs


@step_rule(SwiGLU, BilinearMLP)
def gated_mlp(program: Program, module: Any, in_: int, out: int, path: str, *, add: bool = False) -> None:
    """y = W_down (act(W_gate x) * W_up x)."""
    width = program.as_linear(module.gate_proj).out_features
    kind = "silu" if type(module) is SwiGLU else "none"
    with program.room():
        both, product = program.scratch(2 * width), program.scratch(width)
        program.linear(in_, both, module.gate_proj, module.up_proj)
        program.add("multiply", a=both, activation=ACTIVATIONS.index(kind), b=both + width, out=product, n=width)
        program.linear(product, out, module.down_proj, add=add)


@step_rule(GeluMLP)
def gelu_mlp(program: Program, module: GeluMLP, in_: int, out: int, path: str, *, add: bool = False) -> None:
    """y = W_down GELU(W_up x + b_up) + b_down."""
    plain_mlp(program, module.up_proj, "gelu_tanh", module.down_proj, in_, out, add)


def plain_mlp(program: Program, up: nn.Linear, kind: str, down: nn.Linear, in_: int, out: int, add: bool) -> None:
    """y = W_down act(W_up x + b_up) + b_down."""
    width = program.as_linear(up).out_features
    with program.room():
        before, after = program.scratch(width), program.scratch(width)
        program.linear(in_, before, up)
        program.add("multiply", a=before, activation=ACTIVATIONS.index(kind), b=NONE, out=after, n=width)
        program.linear(after, out, down, add=add)


# mixers


def _bounds(program: Program, lower_bound: LowerBound | None) -> dict[str, int]:
    bound, complement = lower_bound or (None, None)
    return {"bound": program.optional(bound), "complement": program.optional(complement)}


def _needs_causal(module: Any, path: str) -> None:
    if not module.causal:
        refuse(path, module, f"direction {module.direction!r} needs a whole sequence; only 'causal' goes step by step")


def short_conv(program: Program, convs: list[ShortConv], in_: int, out: int) -> int:
    """Convolutions of neighboring channels as one; the offset of their state (taps - 1, channels)."""
    weight = torch.cat([conv.weight for conv in convs])
    channels, taps = weight.shape
    bias = None
    if any(conv.bias is not None for conv in convs):
        bias = torch.cat(
            [conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias for conv in convs]
        )
    state = program.state((taps - 1) * channels)
    program.add(
        "short_conv",
        in_=in_,
        out=out,
        n=channels,
        taps=taps,
        weight=program.constant(weight.t()),
        bias=program.optional(bias),
        state=state,
    )
    return state


@step_rule(HGRN)
def hgrn(
    program: Program,
    module: HGRN,
    in_: int,
    out: int,
    path: str,
    *,
    add: bool = False,
    lower_bound: LowerBound | None = None,
) -> None:
    """The equations of `HGRN`, in order."""
    _needs_causal(module, path)
    E, taps = module.gate_size, max(module.conv_size - 1, 0)
    width = E if module.unit == "real" else 2 * E
    with program.room():
        c = program.scratch(2 * width + E)  # candidate, forget gate, output gate
        gate, h, o = c + width + E, program.scratch(width), program.scratch(width)
        program.linear(in_, c, module.candidate_proj, module.forget_proj, module.out_gate_proj)
        conv = 0
        if module.conv_size:
            convolved = program.scratch(width + E)
            conv = short_conv(program, [module.candidate_conv, module.forget_conv], c, convolved)
            c = convolved
        theta = module.theta
        state = program.state(width)
        turn = NONE if theta is None else program.constant(_turn(theta))
        program.add("hgrn", c=c, z=c + width, out=h, n=E, **_bounds(program, lower_bound), theta=turn, state=state)
        _gated_output(program, module, h, gate, o, width, path)
        program.linear(o, out, module.out_proj, add=add)
    shape = (E,) if theta is None else (2, E)
    program.layers.append(Fields(path, HGRNState, (state, shape), (conv, (taps, width + E))))


def _turn(theta: Tensor) -> Tensor:
    """(4, E): cosines and sines in float32, and what rounding them took: else every step turns by a wrong angle."""
    exact = torch.stack([theta.double().cos(), theta.double().sin()])
    return torch.cat([exact.float(), (exact - exact.float()).float()])


def _gated_output(program: Program, module: HGRN, h: int, gate: int, o: int, width: int, path: str) -> None:
    """o = norm(h) * act(gate), or norm(h * act(gate))."""
    act, norm_path = activation(path, module, module.gate_activation), join(path, "norm")
    if module.norm_first and module.gate_activation is F.silu:
        apply_rule(program, module.norm, h, o, norm_path, gate=gate)
        return
    between = program.scratch(width)
    if module.norm_first:
        apply_rule(program, module.norm, h, between, norm_path)
        program.add("multiply", a=gate, activation=act, b=between, out=o, n=width)
    else:
        program.add("multiply", a=gate, activation=act, b=h, out=between, n=width)
        apply_rule(program, module.norm, between, o, norm_path)


@step_rule(HGRN2)
def hgrn2(
    program: Program,
    module: HGRN2,
    in_: int,
    out: int,
    path: str,
    *,
    add: bool = False,
    lower_bound: LowerBound | None = None,
) -> None:
    """The equations of `HGRN2`, in order."""
    _needs_causal(module, path)
    D, H, K, taps = module.hidden_size, module.num_heads, module.expand_ratio, max(module.conv_size - 1, 0)
    with program.room():
        q, o, normed = program.scratch(3 * D), program.scratch(D), program.scratch(D)  # q, then forget gate, then v
        program.linear(in_, q, module.q_proj, module.forget_proj, module.v_proj)
        conv = 0
        if module.conv_size:
            convolved = program.scratch(3 * D)
            conv = short_conv(program, [module.q_conv, module.forget_conv, module.v_conv], q, convolved)
            q = convolved
        state = program.state(H * K * K)
        program.add(
            "gla",
            q=q,
            z=q + D,
            v=q + 2 * D,
            out=o,
            heads=H,
            size=K,
            **_bounds(program, lower_bound),
            act_q=activation(path, module, module.query_activation),
            scale=double_bits(float(module.query_scale)),
            act_v=activation(path, module, module.value_activation),
            state=state,
        )
        apply_rule(program, module.norm, o, normed, join(path, "norm"))
        program.linear(normed, out, module.out_proj, add=add)
    program.layers.append(Fields(path, HGRN2State, (state, (H, K, K)), (conv, (taps, 3 * D))))


@step_rule(SlidingWindowAttention)
def attention(
    program: Program,
    module: SlidingWindowAttention,
    in_: int,
    out: int,
    path: str,
    *,
    add: bool = False,
    lower_bound: None = None,
) -> None:
    """The equations of `SlidingWindowAttention`, in order."""
    D, W, heads, size = module.hidden_size, module.window_size, module.num_kv_heads, module.head_dim
    shape = (W - 1, heads, size)
    with program.room():
        q, o = program.scratch(D + 2 * heads * size), program.scratch(D)
        program.linear(in_, q, module.q_proj, module.k_proj, module.v_proj)
        state = program.state(2 * torch.Size(shape).numel())
        program.add(
            "attention",
            q=q,
            k=q + D,
            v=q + D + heads * size,
            out=o,
            heads=module.num_heads,
            kv_heads=heads,
            size=size,
            window=W,
            turns=program.constant(torch.stack(_turns(W, size, module.rope_theta, torch.empty(0)), 1)),
            state=state,
        )
        program.linear(o, out, module.out_proj, add=add)
    program.layers.append(Ring(path, AttentionState, state, shape))
