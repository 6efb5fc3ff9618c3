"""The figures that streaming is required to reach, from rows that were never measured."""

from dataclasses import replace

from longstream.bench import step_figures
from longstream.bench.measure import OURS
from longstream.bench.step_rollback import Cost
from longstream.bench.step_run import StepRow, fastest


def figure_row(name: str, p50: float, group: str = "g", **more) -> StepRow:
    about = {"package": OURS, "version": "", "rate": 0.0, "pinned": "", "threads": 2, "batch": 1}
    return StepRow(**{"group": group, "name": name, "p50": p50, "p99": p50, "worst": p50, "steps": 9, **about, **more})


def reaching_rows() -> list[StepRow]:
    rows = []
    for subject, _ in step_figures.figure_subjects():
        gain = step_figures.LEAST_GAIN.get(subject.hidden_size, 2.5)
        rows += [
            figure_row(name, p50, subject.title, over_limit=1.2, allocations=0.0, mallocs=9.0)
            for name, p50 in (
                ("Stream, float32", 40.0),
                ("Stream, bfloat16", 30.0),
                ("Stream, int8", 15.0),
                ("eager step", 41 * gain),
                ("minGRU", 90.0),
                ("nn.GRU", 90.0),
            )
        ]
    at_rate = figure_row("Stream, float32", 50.0, step_figures.EDIFICE.title, rate=60.0, misses=0)
    return [*rows, at_rate, replace(at_rate, pinned="0,1")]


COSTS = {step_figures.EDIFICE.title: [Cost("the state of one frame kept: x", 1.0, 1.0), Cost("rollback(10)", 4.0, 9.0)]}


def test_figures_that_are_reached():
    found = step_figures.step_figures(reaching_rows(), COSTS)
    assert len(found) == 18
    assert [figure for figure in found if not figure.reached] == []


def test_figures_that_are_not():
    slow = [replace(row, p50=500.0, p99=500.0, worst=5e4, over_limit=9.0, allocations=2.0) for row in reaching_rows()]
    costs = {group: [cost._replace(p50=99.0) for cost in some] for group, some in COSTS.items()}
    assert {figure.reached for figure in step_figures.step_figures(slow, costs)} == {False}
    assert {figure.reached for figure in step_figures.step_figures([], {})} == {None}
    assert {figure.measured for figure in step_figures.step_figures([], {})} == {"not measured"}


def test_each_contender_counts_with_what_is_best_for_it():
    rows = [figure_row("a", 5.0, threads=1), figure_row("a", 4.0, pinned="0"), figure_row("b", 9.0)]
    rows += [figure_row("a", 1.0, rate=60.0), replace(rows[0], p50=None, note="no")]
    assert [(row.name, row.p50) for row in fastest(rows)] == [("a", 4.0), ("b", 9.0)]
