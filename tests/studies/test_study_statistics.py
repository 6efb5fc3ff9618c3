"""Intervals against numbers worked out by hand and against their promise, verdicts, and what is chosen."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from longstream.studies.statistics import (
    CONTRADICTED,
    NOT_RESOLVED,
    SUPPORTED,
    answer,
    choose,
    chosen_runs,
    p_value,
    summarize,
    summarize_results,
)
from longstream.studies.study import Claim, Metric, Result, Run

LOSS = Metric(key="loss", label="loss", higher=False)


def results(variant: str, values: Sequence[float | None], choice: str = "", key: str = "loss") -> list[Result]:
    """A result a seed; None diverged."""
    runs = [Run(group="g", variant=variant, seed=seed, settings={}, choice=choice) for seed in range(len(values))]
    return [
        Result(run, "diverged", {key: 99.0}) if value is None else Result(run, "done", {key: value})
        for run, value in zip(runs, values, strict=True)
    ]


def claim(least: float = 0.0) -> Claim:
    """That a is better than b."""
    return Claim(text="a is better", source="s", group="g", metric="loss", better="a", worse="b", least=least)


def answer_of(better: Sequence[float | None], worse: Sequence[float | None], least: float = 0.0, higher: bool = False):
    """The verdict on the claim with these values."""
    return answer(claim(least), higher, {("g", "a"): results("a", better), ("g", "b"): results("b", worse)})


def test_an_interval_worked_out_by_hand():
    # 1, 2, 4: mean 7/3, s^2 = 7/3, and the table of Student's t has 4.303 for two degrees of freedom
    found = summarize([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3, abs=1e-12)
    half = 4.303 * math.sqrt(7 / 9)
    assert found.half == pytest.approx(half, rel=2e-4)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=2e-3)


def test_one_value_has_no_interval_and_none_no_mean():
    assert summarize([2.5]) == ((2.5,), 0, 2.5, None)
    found = summarize([], diverged=2)
    assert math.isnan(found.mean)
    assert math.isnan(found.low)
    assert found.runs == 2


@pytest.mark.parametrize("n", [2, 3, 8])
def test_intervals_hold_the_truth_as_often_as_they_say(n: int):
    draws = np.random.default_rng(n).normal(0.3, 2.0, size=(4000, n))
    found = [summarize(row.tolist()) for row in draws]
    hits = sum(each.low <= 0.3 <= each.high for each in found)
    assert stats.binomtest(hits, len(found), 0.95).pvalue > 1e-3


@pytest.mark.parametrize("least", [0.0, 0.7])
def test_p_values_are_those_of_the_paired_test(least: float):
    rng = np.random.default_rng(5)
    worse, better = rng.normal(3, 1, 6), rng.normal(2, 1, 6)
    found = answer_of(better.tolist(), worse.tolist(), least)
    assert found.p == pytest.approx(stats.ttest_rel(worse - least, better).pvalue, rel=1e-9)


def test_a_claim_without_truth_is_seldom_supported_or_contradicted():
    """The two are wrong in at most one of twenty: 2.5 % each."""
    rng = np.random.default_rng(1)
    verdicts = [answer_of(rng.normal(size=3).tolist(), rng.normal(size=3).tolist()).verdict for _ in range(3000)]
    for wrong in (SUPPORTED, CONTRADICTED):
        assert stats.binomtest(verdicts.count(wrong), len(verdicts), 0.025).pvalue > 1e-3


def test_verdicts():
    assert answer_of([1.0, 1.1, 0.9], [2.0, 2.1, 1.9]).verdict == SUPPORTED  # less loss is better
    assert answer_of([2.0, 2.1, 1.9], [1.0, 1.1, 0.9]).verdict == CONTRADICTED
    assert answer_of([1.0, 3.0, 2.0], [2.0, 2.1, 1.9]).verdict == NOT_RESOLVED
    assert answer_of([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], higher=True).verdict == SUPPORTED
    assert answer_of([1.0, 1.1, 0.95], [2.0, 2.1, 1.9], least=1.5).verdict == CONTRADICTED  # better, but not so much
    assert answer_of([1.0, 1.0], [1.0, 1.0]).verdict == NOT_RESOLVED  # no difference at all, and none is claimed


def test_seeds_are_paired():
    """The seeds differ far more than the variants, in which every pair agrees."""
    better, worse = [1.0, 5.0, 9.0], [1.1, 5.12, 9.09]
    found = answer_of(better, worse)
    assert found.verdict == SUPPORTED
    assert found.difference.mean == pytest.approx(0.31 / 3)
    assert summarize(better).half > 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("better", "worse", "why"),
    [
        ([1.0], [2.0], "one seed has no interval"),
        ([], [], "no seed has both sides"),
        ([1.0, 1.1, None], [2.0, 2.1, 1.9], "1 of its 6 runs diverged"),
        ([1.0, 1.1, 1.0], [None, None, None], "3 of its 6 runs diverged"),
    ],
)
def test_what_cannot_be_resolved_says_why(better: list[float | None], worse: list[float | None], why: str):
    found = answer_of(better, worse)
    assert found.verdict == NOT_RESOLVED
    assert found.why == why


def test_a_claim_without_another_side_is_about_the_metric_itself():
    alone = replace(claim(least=0.1), worse="")
    found = answer(alone, True, {("g", "a"): results("a", [0.5, 0.6, 0.55])})
    assert found.verdict == SUPPORTED
    assert found.difference == summarize([0.5, 0.6, 0.55])
    assert answer(alone, True, {("g", "a"): results("a", [0.01, 0.0, 0.02])}).verdict == CONTRADICTED
    assert answer(alone, True, {("g", "a"): results("a", [0.5, None, 0.5])}).verdict == NOT_RESOLVED
    assert answer(alone, True, {}).why == "no seed has both sides"


def test_not_to_be_behind_what_has_learned_nothing_says_nothing():
    close = replace(claim(least=-0.1), metric="accuracy", above=0.2)
    learned, guessed = [0.8, 0.82, 0.79], [0.14, 0.13, 0.15]
    for values, verdict, why in ((learned, SUPPORTED, ""), (guessed, NOT_RESOLVED, "b itself is not clear of chance")):
        runs = {
            ("g", v): [replace(r, measured={"accuracy": r.measured["loss"]}) for r in results(v, values)] for v in "ab"
        }
        found = answer(close, True, runs)
        assert (found.verdict, found.why) == (verdict, why)


def test_equal_differences_have_no_p():
    assert p_value(summarize([0.5, 0.5])) is None
    assert answer_of([1.0, 1.0], [1.5, 1.5]).verdict == SUPPORTED


def test_diverged_runs_are_counted_and_not_averaged():
    found = summarize_results(results("a", [1.0, None, 3.0]), LOSS)
    assert found.values == (1.0, 3.0)
    assert found.diverged == 1
    assert found.runs == 3


def test_the_best_mean_is_chosen():
    tried = results("a", [1.0, 2.0], "lr=1") + results("a", [1.2, 1.1], "lr=2") + results("b", [3.0], "lr=1")
    assert choose(tried, "loss", False) == {("g", "a"): "lr=2", ("g", "b"): "lr=1"}
    assert choose(tried, "loss", True)["g", "a"] == "lr=1"
    kept = chosen_runs(tried, "loss", False)["g", "a"]
    assert [(result.run.choice, result.run.seed) for result in kept] == [("lr=2", 0), ("lr=2", 1)]


def test_a_choice_tried_on_one_seed_or_that_diverged_does_not_win_over_whole_ones():
    whole = results("a", [2.0, 2.0, 2.0], "whole")
    assert choose([*results("a", [1.0], "once"), *whole], "loss", False)["g", "a"] == "whole"
    assert choose([*results("a", [1.0, None, 1.0], "lost"), *whole], "loss", False)["g", "a"] == "whole"


def test_runs_of_a_choice_that_all_diverged_are_still_there():
    kept = chosen_runs(results("a", [None, None], "lr=1"), "loss", False)
    assert [result.status for result in kept["g", "a"]] == ["diverged", "diverged"]
