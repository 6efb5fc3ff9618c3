"""The contestants of the layers: ours with every backend, their projections alone. mixers.py has those of others.

A layer is checked against itself in float64, ours with the
reference backend (past LOOP tokens with the torch backend, which the ops' own cases hold to the loop at every length);
a step against the last output of a whole pass in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longstream import HGRN, HGRN2, Hyena
from longstream.bench.measure import PLAIN_LOOP, Case, Contestant, Entry, Skip, relative_error
from longstream.layers import SlidingWindowAttention
from longstream.ops import available_backends

D = 256
WINDOW = 256  # of sliding-window attention
LOOP = 512  # tokens up to which the reference backend is the oracle


class Mixer(NamedTuple):
    """A layer and how it is called."""

    module: nn.Module
    forward: Callable[[Any, Tensor], Tensor]  # (module, x (B, T, D)) -> (B, T, D)
    prefill: Callable[[Any, Tensor], Any] | None = None  # (module, x) -> what a step goes on from
    step: Callable[[Any, Tensor, Any], Tensor] | None = None  # (module, x_t (B, 1, D), state) -> (B, 1, D)
    has_float64: bool = True


def entry(case: Case, make: Callable[[Case], Mixer]) -> Entry:
    """A contestant from the function that makes its layer."""
    torch.manual_seed(0)
    mixer = make(case)
    count = sum(p.numel() for p in mixer.module.parameters())
    return (_step if case.mode == "step" else _whole)(case, mixer, count)


def _whole(case: Case, mixer: Mixer, count: int) -> Entry:
    x, cotangent = torch.randn(case.B, case.T, D, requires_grad=True), torch.randn(case.B, case.T, D)

    def results(module: nn.Module, x: Tensor, cotangent: Tensor) -> list[Tensor]:
        if case.mode == "fwd":
            with torch.no_grad():
                return [mixer.forward(module, x)]
        out = mixer.forward(module, x)
        wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
        gradients = torch.autograd.grad(out, wanted, cotangent, allow_unused=True)
        return [out.detach(), *(g for g in gradients if g is not None)]

    def check() -> float:
        got = results(mixer.module, x, cotangent)
        if not mixer.has_float64:
            return 0.0 if all(bool(y.isfinite().all()) for y in got) else float("inf")
        exact = results(_double(mixer.module, case.T), x.detach().double().requires_grad_(), cotangent.double())
        return relative_error(got, exact)

    oracle = _oracle(mixer, case.T) if mixer.has_float64 else "finite outputs only: it has no float64"
    return Entry(lambda: results(mixer.module, x, cotangent), check, oracle, count)


def _step(case: Case, mixer: Mixer, count: int) -> Entry:
    if mixer.prefill is None or mixer.step is None:
        raise Skip("no step")
    prefill, step, x = mixer.prefill, mixer.step, torch.randn(case.B, case.T + 1, D)
    with torch.no_grad():
        state = prefill(mixer.module, x[:, : case.T])

    def run() -> Tensor:
        with torch.no_grad():
            return step(mixer.module, x[:, case.T :], state)

    def check() -> float:
        got = run()
        if not mixer.has_float64:
            return 0.0 if bool(got.isfinite().all()) else float("inf")
        with torch.no_grad():
            exact = mixer.forward(_double(mixer.module, case.T), x.double())
        return relative_error([got], [exact[:, case.T :]])

    return Entry(run, check, _oracle(mixer, case.T) + ", whole pass", count)


def _double(module: nn.Module, T: int) -> nn.Module:
    exact = copy.deepcopy(module).double()
    for part in exact.modules():
        if hasattr(part, "backend"):
            part.backend = _exact_backend(T)  # type: ignore[assignment]
    return exact


def _exact_backend(T: int) -> str:
    return "reference" if T <= LOOP else "torch"


def _oracle(mixer: Mixer, T: int) -> str:
    ours = any(hasattr(part, "backend") for part in mixer.module.modules())
    return f"itself in float64{f', backend {_exact_backend(T)}' if ours else ''}"


# Ours


def _ours(build: Callable[[str, int], nn.Module], op: str, backend: str) -> Callable[[Case], Entry]:
    def step(module: Any, x: Tensor, state: Any) -> Tensor:
        return module.step(x[:, 0], state)[0][:, None]

    def make(case: Case) -> Mixer:
        module = build(backend, case.T + (case.mode == "step")).eval()
        return Mixer(module, lambda m, x: m(x)[0], lambda m, x: m(x)[1], step)

    def ready(case: Case) -> Entry:
        why = available_backends(op)[backend] if op else None
        if why is not None:
            raise Skip(f"backend {backend}: {why}")
        if backend == "reference" and case.mode != "step" and case.B * case.T > PLAIN_LOOP:
            raise Skip(f"left out: the loop is measured to {PLAIN_LOOP} tokens")
        return entry(case, make)

    return ready


class Projections(nn.Module):
    """The matrix products of HGRN or HGRN2 and nothing else: three of the input, and one of what they give.

    Their sum goes into the last one, so that each has a gradient; nothing that joins them costs less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        first, second, third, last = self.parts
        return last(first(x) + second(x) + third(x))


def projections(case: Case) -> Entry:
    """The projections as a contestant."""
    return entry(case, lambda case: Mixer(Projections(), lambda m, x: m(x)))


def our_contestants() -> list[Contestant]:
    """HGRN2, HGRN, Hyena and sliding-window attention; the first row is what all are compared with."""
    builders: dict[str, tuple[str, Callable[[str, int], nn.Module]]] = {
        "HGRN2": ("gla", lambda backend, T: HGRN2(D, backend=backend)),
        "HGRN": ("gated_scan", lambda backend, T: HGRN(D, backend=backend)),
        "Hyena": ("long_conv", lambda backend, T: Hyena(D, max_seq_len=T, backend=backend)),
    }
    found = [
        Contestant(f"{name} {backend}", "longstream", _ours(build, op, backend))
        for name, (op, build) in builders.items()
        for backend in available_backends(op)
    ]

    def window(backend: str, T: int) -> nn.Module:
        return SlidingWindowAttention(D, num_heads=4, window_size=WINDOW)

    return [*found, Contestant(f"window attention {WINDOW}", "longstream", _ours(window, "", ""))]
