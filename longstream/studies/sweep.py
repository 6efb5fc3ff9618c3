"""Learning rates, tuned the same way for all sides of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longstream.studies.statistics import choose
from longstream.studies.study import Plan, Result, Run

TUNED = "Learning rates: the first seed is trained at every rate, the other seeds at the best of them, for each model."


def swept(
    plan: Plan,
    done: Sequence[Result],
    rates: Sequence[float],
    make: Callable[[int, float], Sequence[Run]],
    *,
    key: str,
    higher: bool = True,
) -> list[Run]:
    """The runs of all seeds that can be declared now.

    The first seed has runs at every rate. When they are done, each variant's other seeds have runs at the rate that was
    best by the figure ``key``; where all diverged, at the lowest.

    Args:
        make: the runs of a seed at a rate, whose `Run.choice` is `rate_choice` of it.
    """
    first, *others = plan.seeds
    tried = [run for rate in sorted(rates) for run in make(first, rate)]
    known = {result.run.name: result for result in done}
    if any(run.name not in known for run in tried):
        return tried
    best = choose([known[run.name] for run in tried], key, higher)
    later = [run for seed in others for rate in sorted(rates) for run in make(seed, rate)]
    return tried + [run for run in later if run.choice == best[run.group, run.variant]]


def rate_choice(rate: float) -> str:
    """As "lr=0.003"."""
    return f"lr={rate:g}"
