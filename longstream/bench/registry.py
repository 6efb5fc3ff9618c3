"""Which cases there are, and who takes part in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longstream.bench import decoding, layers, mixers, ops, training
from longstream.bench.measure import OURS, Case, Contestant

LENGTHS = (128, 512, 1024, 4096, 16384, 32768)
BATCHES = (1, 8)
QUICK_LENGTHS = (128, 512)
QUICK_BATCHES = (1,)
MOST_TOKENS = 65536  # of a case, B T
STEP_AFTER = 4096  # tokens, the most before a step of a layer
STEP_TRAIN = 8192  # tokens of a training step, or one sequence where that is longer
TRAIN_LENGTHS = (256, 1024, 4096, 8192, 65536)
SLOW_TO_COMPILE = {
    "gated_scan/torch associative_scan, compiled": "left out with --quick: it compiles for 15 s and more"
}
OP_GROUPS = (*ops.OPS, "long_conv_decoding")

GROUPS: dict[str, Callable[[], list[Contestant]]] = {
    **{name: lambda name=name: [*ops.our_contestants(name), *ops.OTHERS[name]] for name in ops.OPS},
    "long_conv_decoding": decoding.conv_contestants,
    "layer": lambda: [*layers.our_contestants(), *mixers.other_contestants()],
    "hyena_decoding": decoding.layer_contestants,
    "train": training.contestants,
}


def contestants(case: Case, backends: Sequence[str] = (), ours_only: bool = False) -> list[Contestant]:
    """Who takes part in a case; of ours, only those of some backends, if any are named."""
    found = [one for one in GROUPS[case.group]() if case.mode in one.modes]
    if ours_only:
        return [one for one in found if one.package == OURS and (not backends or _backend(one.name) in backends)]
    return [one for one in found if one.package != OURS or not backends or _backend(one.name) in (*backends, "")]


def _backend(name: str) -> str:
    """The backend that a row of ours is about; "" where it is about none."""
    last = name.rpartition(" ")[2]
    return last if last in ("native", "torch", "reference") else ""


def op_cases(lengths: Sequence[int], batches: Sequence[int], only: Sequence[str] = ()) -> list[Case]:
    """Forward and backward at every length, a step, and decoding."""
    found = []
    for group in only or OP_GROUPS:
        if group == "long_conv_decoding":
            found += [Case(group, "token", 1, T) for T in lengths if 1024 <= T <= 16384]
            continue
        modes = ("fwd",) if group == "long_conv_two_sided" else ("fwd", "fwd+bwd")
        found += [Case(group, mode, B, T) for mode in modes for B in batches for T in lengths]
        if not group.startswith("long_conv"):
            found += [Case(group, "step", B, 1) for B in batches]
    return in_order(found)


def layer_cases(lengths: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Forward and backward at every length, a step after some, and decoding with Hyena."""
    found = [Case("layer", mode, B, T) for mode in ("fwd", "fwd+bwd") for B in batches for T in lengths]
    found += [Case("layer", "step", B, T) for B in batches for T in lengths if T <= STEP_AFTER]
    found += [Case("hyena_decoding", "token", 1, T) for T in lengths if 4096 <= T <= 16384]
    return in_order(found)


def train_cases(lengths: Sequence[int]) -> list[Case]:
    """A training step at every length."""
    return [Case("train", "train", max(1, STEP_TRAIN // T), T) for T in lengths]


def figure_cases() -> list[Case]:
    """What `figures` reads."""
    both = ("fwd", "fwd+bwd")
    found = [Case("gla", mode, 1, T) for mode in both for T in (512, 4096, 16384)]
    found += [Case("gated_scan", mode, B, T) for mode in both for B, T in ((8, 4096), (1, 32768))]
    found += [Case("long_conv", mode, 1, T) for mode in both for T in (1024, 8192, 65536)]
    found += [Case("layer", "fwd+bwd", 1, T) for T in (512, 4096, 16384)]
    return in_order(found) + train_cases(TRAIN_LENGTHS)


def limit_cases(lengths: Sequence[int], only: Sequence[str] = ()) -> list[Case]:
    """The ops whose least work is known."""
    groups = [name for name in only or ops.OPS if ops.work_of(name, "fwd", 1, 1)[1]]
    return in_order([Case(name, mode, 1, T) for name in groups for mode in ("fwd", "fwd+bwd") for T in lengths])


def in_order(cases: Sequence[Case]) -> list[Case]:
    """Short ones first, so that who is too slow is known before the long ones; each once, none past MOST_TOKENS."""
    fitting = dict.fromkeys(case for case in cases if case.B * case.T <= MOST_TOKENS)
    return sorted(fitting, key=lambda case: (case.T, case.B))
