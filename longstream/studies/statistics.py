"""Means with their 95 % intervals, the choice of what was tuned, and the paired tests that answer claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from longstream.studies.study import Claim, Metric, Result

LEVEL = 0.95  # of every interval
Verdict = Literal["supported", "contradicted", "not resolved at this scale"]
SUPPORTED: Verdict = "supported"
CONTRADICTED: Verdict = "contradicted"
NOT_RESOLVED: Verdict = "not resolved at this scale"


class Summary(NamedTuple):
    """A metric of a variant over seeds."""

    values: tuple[float, ...]  # of the runs that did not diverge
    diverged: int
    mean: float  # nan without values
    half: float | None  # of the 95 % t-interval; None: fewer than two values, so there is none

    @property
    def runs(self) -> int:
        """Of both kinds."""
        return len(self.values) + self.diverged

    @property
    def low(self) -> float:
        """The lower end of the interval; nan where there is none."""
        return math.nan if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval; nan where there is none."""
        return math.nan if self.half is None else self.mean + self.half


class Answer(NamedTuple):
    """What the runs say to a claim."""

    claim: Claim
    verdict: Verdict
    difference: Summary  # in the claimed direction, over seeds; positive: as claimed
    p: float | None  # of the two-sided paired t-test against ``Claim.least``
    why: str = ""  # it is not resolved, where there is more to say than that the interval holds ``least``


def summarize(values: Sequence[float], diverged: int = 0) -> Summary:
    """Mean and half the 95 % t-interval, ``t s / sqrt(n)`` with s of n - 1 degrees of freedom."""
    n = len(values)
    if not n:
        return Summary((), diverged, math.nan, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(tuple(values), diverged, mean, None)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Summary(tuple(values), diverged, mean, _quantile(n - 1) * spread / math.sqrt(n))


def summarize_results(results: Sequence[Result], metric: Metric) -> Summary:
    """A metric of a variant's runs, in its own unit; diverged runs are counted, not averaged."""
    done = [result for result in results if result.status == "done" and metric.key in result.measured]
    diverged = sum(result.status == "diverged" for result in results)
    return summarize([result.measured[metric.key] for result in done], diverged)


def choose(results: Sequence[Result], key: str, higher: bool) -> dict[tuple[str, str], str]:
    """The `Run.choice` of each (group, variant): the best mean of ``key`` among the choices with most runs done.

    Those with most runs, because a choice that was tried on one seed only was not chosen then, and because a choice
    whose runs diverge is not to win by those that did not.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in results:
        found = values.setdefault((result.run.group, result.run.variant), {}).setdefault(result.run.choice, [])
        value = result.measured.get(key, math.nan)
        if result.status == "done" and math.isfinite(value):
            found.append(value if higher else -value)
    return {
        variant: max(
            choices, key=lambda choice: (len(choices[choice]), sum(choices[choice]) / max(len(choices[choice]), 1))
        )
        for variant, choices in values.items()
    }


def chosen_runs(results: Sequence[Result], key: str, higher: bool) -> dict[tuple[str, str], list[Result]]:
    """The runs of each (group, variant) with the choice that counts, by seed."""
    choices = choose(results, key, higher)
    found: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.run.seed):
        variant = result.run.group, result.run.variant
        kept = found.setdefault(variant, [])
        if result.run.choice == choices[variant]:
            kept.append(result)
    return found


def answer(claim: Claim, higher: bool, runs: Mapping[tuple[str, str], Sequence[Result]]) -> Answer:
    """The verdict on a claim, by the paired differences of the seeds that both variants have.

    Args:
        higher: is better, of the claim's metric.
        runs:   by (group, variant), as `chosen_runs` gives them.
    Notes: a claim whose ``worse`` is "" is about the metric itself, against 0, as where it is a difference already.
    """
    names = [claim.better, *filter(None, [claim.worse])]
    sides = [list(runs.get((claim.group, variant), ())) for variant in names]
    diverged = sum(result.status == "diverged" for side in sides for result in side)
    better, *others = (
        {r.run.seed: r.measured[claim.metric] for r in side if r.status == "done" and claim.metric in r.measured}
        for side in sides
    )
    worse = others[0] if others else dict.fromkeys(better, 0.0)
    sign = 1 if higher else -1
    differences = [sign * (better[seed] - worse[seed]) for seed in sorted(better.keys() & worse.keys())]
    found = summarize(differences, diverged)
    p = p_value(found, claim.least)
    runs_there = sum(map(len, sides))
    if diverged:
        return Answer(claim, NOT_RESOLVED, found, p, f"{diverged} of its {runs_there} runs diverged")
    if (without := runs_there - len(better) - (len(worse) if others else 0)) > 0:
        return Answer(claim, NOT_RESOLVED, found, p, f"{without} of its {runs_there} runs have no such figure")
    if found.half is None:
        why = "no seed has both sides" if not differences else "one seed has no interval"
        return Answer(claim, NOT_RESOLVED, found, p, why)
    if claim.above is not None and not summarize(list(worse.values())).low > claim.above:
        return Answer(claim, NOT_RESOLVED, found, p, f"{claim.worse} itself is not clear of chance")
    if found.low > claim.least:
        return Answer(claim, SUPPORTED, found, p)
    if found.high < claim.least:
        return Answer(claim, CONTRADICTED, found, p)
    return Answer(claim, NOT_RESOLVED, found, p)


def p_value(differences: Summary, least: float = 0.0) -> float | None:
    """Of the two-sided t-test that the mean difference is ``least``; None where all differences are equal."""
    if not differences.half:
        return None
    from scipy.stats import t

    n = len(differences.values)
    error = differences.half / _quantile(n - 1)  # of the mean
    return float(2 * t.sf(abs(differences.mean - least) / error, n - 1))


def _quantile(freedom: int) -> float:
    """What the t distribution stays below, either side, with probability LEVEL."""
    try:
        from scipy.stats import t
    except ModuleNotFoundError:
        raise ModuleNotFoundError("study: intervals need scipy: pip install 'longstream[studies]'") from None
    return float(t.ppf((1 + LEVEL) / 2, freedom))
