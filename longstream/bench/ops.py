"""The contestants of the ops: every backend of ours, and other ways to the same numbers.

What others want in another layout or form (the gate instead of its log, time first) they get ready-made, outside of the
clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longstream import ops
from longstream.bench import peers
from longstream.bench.limits import BYTES, MULTIPLY_ADDS
from longstream.bench.measure import PLAIN_LOOP, Case, Contestant, Entry, Skip, relative_error
from longstream.bench.problems import PROBLEMS, TAPS, D, H, K, leaf, problem, results


def entry(
    case: Case,
    function: Callable[..., Tensor],
    *,
    into: Callable[[Tensor], Tensor] = lambda x: x,
    back: Callable[[Tensor], Tensor] = lambda x: x,
    gates: bool = False,
    op: str = "",
) -> Entry:
    """A contestant that is a torch function of the inputs, in the order of `problem`.

    Args:
        into, back: to its layout, and back.
        gates:      it wants forget gates where the op has their logs.
        op:         of ours, for what it has to compute at least.
    """
    given = problem(case)
    inputs = {name: leaf(into(x.exp() if gates and name == "log_forget" else x)) for name, x in given.inputs.items()}
    cotangent = into(given.cotangent).contiguous()

    def run() -> list[Tensor]:
        return results(case, function, tuple(inputs.values()), cotangent)

    def check() -> float:
        got = [back(x) for x in run()]
        if gates and len(got) > 1:  # from the gradient of the gate to that of its log
            i = 1 + list(inputs).index("log_forget")
            got[i] = got[i] * given.inputs["log_forget"].exp()
        return relative_error(given.part(got), given.exact)

    work, share_of = work_of(op, case.mode, case.B, case.T) if op else (None, "")
    return Entry(run, check, given.oracle, work=work, share_of=share_of)


def _turned(x: Tensor) -> Tensor:
    """(B, T, D) with time last, or back; parameters stay."""
    return x.transpose(1, 2) if x.dim() == 3 else x


_OURS: dict[str, Callable[[str], Callable[..., Tensor]]] = {
    "gated_scan": lambda b: lambda x, f, h=None: ops.gated_scan(x, f, h, backend=b)[0],
    "gated_scan_complex": lambda b: lambda x, f, w, h=None: ops.gated_scan(x, f, h, theta=w, backend=b)[0],
    "gla": lambda b: lambda q, k, v, f, s=None: ops.gla(q, k, v, f, s, backend=b)[0],
    "long_conv": lambda b: lambda x, f, skip: ops.long_conv(x, f, skip, backend=b)[0],
    "long_conv_two_sided": lambda b: lambda x, f, g, skip: ops.long_conv_two_sided(x, f, g, skip, backend=b),
    "short_conv": lambda b: lambda x, w, bias, s=None: ops.short_conv(x, w, bias, s, backend=b)[0],
}


def of_ours(group: str) -> Callable[[str], Callable[..., Tensor]]:
    """By backend: the op of a group as a function of its problem's inputs."""
    return _OURS[group]


OPS = {name: name.removesuffix("_complex") for name in PROBLEMS}  # the op of each group


def our_contestants(group: str) -> list[Contestant]:
    """One for each backend of the op, in order of preference; one that cannot run here says why in its row."""

    def make(backend: str) -> Callable[[Case], Entry]:
        def ready(case: Case) -> Entry:
            why = ops.available_backends(OPS[group])[backend]
            if why is not None:
                raise Skip(f"backend {backend}: {why}")
            if backend == "reference" and case.B * case.T > PLAIN_LOOP:
                raise Skip(f"left out: the loop is measured to {PLAIN_LOOP} tokens")
            return entry(case, of_ours(group)(backend), op=group)

        return ready

    return [Contestant(name, "longstream", make(name)) for name in ops.available_backends(OPS[group])]


def work_of(group: str, mode: str, B: int, T: int) -> tuple[float | None, str]:
    """What an op has to do at least, and the limit that this counts against.

    gla, per token and head: forward 3 K V multiply-adds (decay, outer product, read-out). Backward 8 K V: the states
    once more with the gradient of q, then the gradients of the state (decay, outer product), k, v and the gate.
    gated_scan, numbers per channel: forward reads two and writes one, backward reads three and writes two.
    short_conv: forward reads one and writes one, backward reads two and writes one.
    long_conv, per channel: FFTs of 2 T real numbers, 5 T log2(2 T) flops each. Forward: of x, back, and of the filter;
    backward: of the output's gradient, back to that of x, and back to that of the filter; and the spectra's products.
    """
    backward = mode == "fwd+bwd"
    if mode not in ("fwd", "fwd+bwd"):
        return None, ""
    if group == "gla":
        return float((11 if backward else 3) * K * K * H * B * T), MULTIPLY_ADDS
    if group == "long_conv":
        transforms, products = (4 * B + 2, 3 * B) if backward else (2 * B + 1, B)
        return D * (transforms * 5 * T * math.log2(2 * T) + products * 6 * T) / 2, MULTIPLY_ADDS
    numbers = {"gated_scan": (3, 8), "gated_scan_complex": (5, 13), "short_conv": (2, 5)}  # complex ones are pairs
    if group in numbers:
        return 4.0 * numbers[group][backward] * B * T * D, BYTES
    return None, ""


# Other ways


def _by_hand(case: Case) -> Entry:
    """A step as one would write it in torch."""
    return entry(case, _HAND[case.group])


def _scan_step(x: Tensor, log_forget: Tensor, h: Tensor) -> Tensor:
    return (log_forget[:, 0].exp() * h + x[:, 0])[:, None]


def _complex_step(x: Tensor, log_forget: Tensor, theta: Tensor, h: Tensor) -> Tensor:
    forget, (re, im) = log_forget[:, 0].exp(), h.unbind(1)
    cos, sin = forget * theta.cos(), forget * theta.sin()
    return (torch.stack([cos * re - sin * im, sin * re + cos * im], dim=1) + x[:, 0])[:, None]


def _gla_step(q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, S: Tensor) -> Tensor:
    S = log_forget[:, 0].exp()[..., None] * S + k[:, 0, :, :, None] * v[:, 0, :, None]
    return (q[:, 0, :, None] @ S).transpose(1, 2)


_HAND: dict[str, Callable[..., Tensor]] = {
    "gated_scan": _scan_step,
    "gated_scan_complex": _complex_step,
    "gla": _gla_step,
}


def _higher_order(case: Case) -> Entry:
    if case.B > 1 or case.T > 4096:
        raise Skip("left out: it compiles for every shape, 15 s and more; only B = 1 and T <= 4096 are measured")
    scan = peers.load("torch._higher_order_ops.associative_scan").associative_scan

    def combine(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return a[0] * b[0], a[1] * b[0] + b[1]

    def function(x: Tensor, forget: Tensor) -> Tensor:
        return scan(combine, (forget, x), dim=1, combine_mode="generic")[1]

    torch._dynamo.reset()  # it keeps a few compilations of a function only
    return entry(case, torch.compile(function, dynamic=False), gates=True)


def _accelerated_scan(case: Case) -> Entry:
    scan = peers.load("accelerated_scan.ref", "accelerated-scan").scan
    return entry(case, lambda x, forget: scan(forget, x), into=_turned, back=_turned, gates=True)


def _mambapy(case: Case) -> Entry:
    pscan = peers.load("mambapy.pscan").pscan
    return entry(case, lambda x, forget: pscan(forget[..., None], x[..., None])[..., 0], gates=True)


def _jax_scan(case: Case) -> Entry:
    jax = peers.load("jax")
    given = problem(case)
    time_first = [x.transpose(0, 1).contiguous().numpy() for x in (given.inputs["x"], given.inputs["log_forget"].exp())]
    x, forget = (jax.device_put(y) for y in time_first)
    cotangent = jax.device_put(given.cotangent.transpose(0, 1).contiguous().numpy())

    def scan(x: Any, forget: Any) -> Any:
        def step(h: Any, now: tuple[Any, Any]) -> tuple[Any, Any]:
            h = now[0] * h + now[1]
            return h, h

        return jax.lax.scan(step, jax.numpy.zeros_like(x[0]), (forget, x))[1]

    def both(x: Any, forget: Any, cotangent: Any) -> Any:
        out, back = jax.vjp(scan, x, forget)
        return (out, *back(cotangent))

    forward, whole = jax.jit(lambda *y: (scan(*y),)), jax.jit(both)

    def run() -> Any:
        got = forward(x, forget) if case.mode == "fwd" else whole(x, forget, cotangent)
        return jax.block_until_ready(got)

    def check() -> float:
        got = [torch.tensor(jax.device_get(y)).transpose(0, 1) for y in run()]
        if len(got) > 1:
            got[2] = got[2] * given.inputs["log_forget"].exp()
        return relative_error(given.part(got), given.exact)

    return Entry(run, check, given.oracle)


def by_fft(x: Tensor, filters: Tensor, skip: Tensor) -> Tensor:
    """The convolution as in Hyena's code (arXiv:2302.10866), time last inside."""
    T, x = x.shape[1], x.transpose(1, 2)
    spectrum = torch.fft.rfft(x, 2 * T) * torch.fft.rfft(filters, 2 * T)
    return (torch.fft.irfft(spectrum, 2 * T)[..., :T] + x * skip[:, None]).transpose(1, 2)


def _two_sided_by_fft(x: Tensor, filters: Tensor, filters_reverse: Tensor, skip: Tensor) -> Tensor:
    """As in Hyena's code: the two filters joined into one, the other way round at the end."""
    T, x = x.shape[1], x.transpose(1, 2)
    joined = F.pad(filters, (0, T)) + F.pad(filters_reverse.flip(-1), (T, 0)).roll(1, -1)
    spectrum = torch.fft.rfft(x, 2 * T) * torch.fft.rfft(joined, 2 * T)
    return (torch.fft.irfft(spectrum, 2 * T)[..., :T] + x * skip[:, None]).transpose(1, 2)


def _conv1d(case: Case) -> Entry:

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv1d(x, weight[:, None], bias, padding=TAPS - 1, groups=D)[..., : case.T]

    return entry(case, function, into=_turned, back=_turned)


WHOLE, STEP = ("fwd", "fwd+bwd"), ("step",)  # others have no state to go on from, or are a single step
OTHERS: dict[str, list[Contestant]] = {
    "gated_scan": [
        Contestant("jax.lax.scan, jit", "jax", _jax_scan, WHOLE),
        Contestant("torch associative_scan, compiled", "torch", _higher_order, WHOLE),
        Contestant("mambapy pscan", "mambapy", _mambapy, WHOLE),
        Contestant("accelerated-scan ref", "accelerated-scan", _accelerated_scan, WHOLE),
        Contestant("torch by hand", "torch", _by_hand, STEP),
    ],
    "gated_scan_complex": [Contestant("torch by hand", "torch", _by_hand, STEP)],
    "gla": [Contestant("torch by hand", "torch", _by_hand, STEP)],
    "long_conv": [Contestant("torch.fft, Hyena's code", "torch", lambda case: entry(case, by_fft))],
    "long_conv_two_sided": [
        Contestant("torch.fft, Hyena's code", "torch", lambda case: entry(case, _two_sided_by_fft))
    ],
    "short_conv": [Contestant("torch conv1d", "torch", _conv1d, WHOLE)],
}
