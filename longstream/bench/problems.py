"""The inputs of the ops' cases, and what must come out of them in float64.

All contestants of a group get the same signed inputs, with gates from slow to fast, without a state before them, except
in a step, which is one token from a random state. The oracle covers all of T, on some rows, heads, channels or
positions; recurrences by the plain loop, convolutions by plain sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longstream import ops
from longstream.bench.measure import Case

D = 256  # channels of gated_scan, long_conv and short_conv
H, K = 4, 128  # heads of gla, and their K = V
TAPS = 4  # of short_conv
SEGMENT = 256  # tokens that the oracle keeps for its backward pass; the rest it computes again
CHANNELS = 8  # that the oracle computes of D
POSITIONS = 48  # of a convolution that it sums up


class Problem(NamedTuple):
    """Inputs of a case in the op's own form, and what must come out."""

    inputs: dict[str, Tensor]
    cotangent: Tensor  # of the output, in mode fwd+bwd
    exact: list[Tensor]  # float64, of the part that the oracle computes
    part: Callable[[list[Tensor]], list[Tensor]]  # the same part of an output and its gradients
    oracle: str


def results(case: Case, function: Callable[..., Tensor], inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """The output and, in mode fwd+bwd, the gradients of the inputs."""
    if case.mode != "fwd+bwd":
        with torch.no_grad():
            return [function(*inputs)]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, cotangent)]


def leaf(x: Tensor) -> Tensor:
    """A tensor of its own that gradients are asked of."""
    return x.detach().contiguous().requires_grad_()


@lru_cache(maxsize=1)
def problem(case: Case) -> Problem:
    """The inputs and exact results of a case; the contestants of a case share them."""
    torch.manual_seed(0)
    return PROBLEMS[case.group](case)


def _gates(*shape: int) -> Tensor:
    return (torch.rand(*shape) ** 0.05).log()


def _scan_problem(case: Case, pair: bool = False) -> Problem:
    B, T = case.B, case.T
    two = (2,) if pair else ()
    inputs = {"x": torch.randn(B, T, *two, D), "log_forget": _gates(B, T, D)}
    if pair:
        inputs["theta"] = 10000 ** -(torch.arange(D) / D)
    if case.mode == "step":
        inputs["state"] = torch.randn(B, *two, D)

    def part(got: list[Tensor]) -> list[Tensor]:
        return [x[..., :CHANNELS] for x in got]

    def loop(state: Tensor, x: Tensor, log_forget: Tensor, theta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return ops.gated_scan(x, log_forget, state, theta=theta, backend="reference")

    few = {name: x[..., :CHANNELS].double() for name, x in inputs.items()}
    start = few.pop("state", torch.zeros(B, *two, CHANNELS, dtype=torch.float64))
    cotangent = torch.randn_like(inputs["x"])
    whole = ("theta",)
    exact = _in_segments(case, loop, start, few, whole, cotangent[..., :CHANNELS].double())
    return Problem(inputs, cotangent, exact, part, f"the float64 loop, {CHANNELS} channels of {D}")


def _gla_problem(case: Case) -> Problem:
    B, T = case.B, case.T
    log_forget = _gates(B, T, H, K)
    k = -torch.expm1(log_forget)
    inputs = {"q": torch.randn(B, T, H, K), "k": k, "v": torch.randn(B, T, H, K), "log_forget": log_forget}
    if case.mode == "step":
        inputs["state"] = torch.randn(B, H, K, K)
    rows = sorted({0, B - 1})

    def part(got: list[Tensor]) -> list[Tensor]:
        return [x[rows][:, :, -1:] for x in got]

    def loop(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor) -> tuple[Tensor, Tensor]:
        return ops.gla(q, k, v, log_forget, state, backend="reference")

    cotangent = torch.randn(B, T, H, K)
    few = {name: x[rows][:, :, -1:].double() for name, x in inputs.items() if name != "state"}
    zeros = torch.zeros(len(rows), 1, K, K, dtype=torch.float64)
    start = inputs["state"][rows][:, -1:].double() if case.mode == "step" else zeros
    exact = _in_segments(case, loop, start, few, (), part([cotangent])[0].double())
    return Problem(inputs, cotangent, exact, part, f"the float64 loop, {len(rows)} rows and one head")


def _in_segments(
    case: Case,
    loop: Callable[..., tuple[Tensor, Tensor]],
    state: Tensor,
    inputs: dict[str, Tensor],
    whole: tuple[str, ...],
    cotangent: Tensor,
) -> list[Tensor]:
    """Output and gradients of a recurrence in which only the states between segments are kept for going back."""

    def run(*given: Tensor) -> Tensor:
        named, h, outs = dict(zip(inputs, given, strict=True)), state, []
        for begin in range(0, case.T, SEGMENT):
            part = [x if name in whole else x[:, begin : begin + SEGMENT] for name, x in named.items()]
            out, h = checkpoint(loop, h, *part, use_reentrant=False)  # type: ignore[misc]
            outs.append(out)
        return torch.cat(outs, dim=1)

    return results(case, run, [leaf(x) for x in inputs.values()], cotangent)


def _conv_problem(case: Case) -> Problem:
    B, T = case.B, case.T
    decay = torch.exp(-torch.linspace(1, 8, D)[:, None] * torch.arange(T) / T)
    inputs = {"x": torch.randn(B, T, D), "filters": torch.randn(D, T) * decay * T**-0.5, "skip": torch.randn(D)}
    cotangent = torch.randn(B, T, D)
    at = torch.linspace(0, T - 1, min(T, POSITIONS)).round().long().unique().tolist()
    x, c, (f, skip) = *(y[..., :CHANNELS].double() for y in (inputs["x"], cotangent)), _few_taps(inputs)

    def part(got: list[Tensor]) -> list[Tensor]:
        out, *gradients = got
        if not gradients:
            return [out[:, at, :CHANNELS]]
        d_x, d_f, d_skip = gradients
        return [out[:, at, :CHANNELS], d_x[:, at, :CHANNELS], d_f[:CHANNELS, at], d_skip[:CHANNELS]]

    # y_t = sum_k f_k x_{t-k} + skip x_t, and what follows from it by hand; sums over whole rows, at some positions.
    out = torch.stack([(x[:, : t + 1] * f[: t + 1].flip(0)).sum(1) for t in at], 1) + skip * x[:, at]
    exact = [out]
    if case.mode == "fwd+bwd":
        d_x = torch.stack([(c[:, s:] * f[: T - s]).sum(1) for s in at], 1) + skip * c[:, at]
        d_f = torch.stack([(c[:, k:] * x[:, : T - k]).sum((0, 1)) for k in at], 1)
        exact += [d_x, d_f, (c * x).sum((0, 1))]
    return Problem(inputs, cotangent, exact, part, f"float64 sums, {len(at)} positions, {CHANNELS} channels of {D}")


def _few_taps(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return inputs["filters"][:CHANNELS].double().T.contiguous(), inputs["skip"][:CHANNELS].double()  # (T, D), (D,)


def _two_sided_problem(case: Case) -> Problem:
    given = _conv_problem(Case(case.group, "fwd", case.B, case.T))
    inputs = {**given.inputs, "filters_reverse": given.inputs["filters"].flip(0).contiguous()}
    x, f = inputs["x"][..., :CHANNELS].double(), inputs["filters_reverse"][:CHANNELS].double().T
    T = case.T
    at = torch.linspace(0, T - 1, min(T, POSITIONS)).round().long().unique().tolist()
    back = torch.stack([(x[:, t:] * f[: T - t]).sum(1) for t in at], 1)

    def part(got: list[Tensor]) -> list[Tensor]:
        return [got[0][:, at, :CHANNELS]]

    inputs = {name: inputs[name] for name in ("x", "filters", "filters_reverse", "skip")}
    return Problem(inputs, given.cotangent, [given.exact[0] + back], part, f"{given.oracle}, output only")


def _short_problem(case: Case) -> Problem:
    inputs = {"x": torch.randn(case.B, case.T, D), "weight": torch.randn(D, TAPS), "bias": torch.randn(D)}
    cotangent = torch.randn(case.B, case.T, D)
    if case.mode == "step":
        inputs["state"] = torch.randn(case.B, TAPS - 1, D)

    def loop(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None = None) -> Tensor:
        return ops.short_conv(x, weight, bias, state, backend="reference")[0]

    exact = results(case, loop, [leaf(x.double()) for x in inputs.values()], cotangent.double())
    return Problem(inputs, cotangent, exact, lambda got: got, "the float64 sums")


PROBLEMS: dict[str, Callable[[Case], Problem]] = {
    "gated_scan": _scan_problem,
    "gated_scan_complex": lambda case: _scan_problem(case, pair=True),
    "gla": _gla_problem,
    "long_conv": _conv_problem,
    "long_conv_two_sided": _two_sided_problem,
    "short_conv": _short_problem,
}
