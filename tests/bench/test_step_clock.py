"""The clock of `longstream bench step` on steps that only pretend to take time, and what is counted beside it."""

import gc
import os

import numpy as np
import pytest

from longstream.bench import step_clock, step_memory
from longstream.bench.step_clock import Turns, may_pin, no_collector, percentile, pinned, run_frames, summary, verdict


class Pretended:
    """A clock that goes on when somebody sleeps, steps, or asks it."""

    def __init__(self, durations: list[float], tick: float = 1e-6):
        self.now, self.tick, self.durations, self.slept, self.seen = 0.0, tick, durations, [], []

    def clock(self) -> float:
        self.now += self.tick
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def step(self, frame: int) -> None:
        self.now += self.durations[len(self.seen) % len(self.durations)]
        self.seen.append(frame)


def test_steps_one_after_another():
    pretended = Pretended([0.1, 0.2, 0.3])
    turn = run_frames(pretended.step, [7, 8], 6, clock=pretended.clock, sleep=pretended.sleep)
    assert pretended.seen == [7, 8, 7, 8, 7, 8]
    assert not pretended.slept
    np.testing.assert_allclose(turn.steps, [0.1, 0.2, 0.3] * 2, atol=1e-5)
    np.testing.assert_array_equal(turn.steps, turn.answers)
    assert (turn.late == 0).all()


def test_frames_at_a_rate_are_due_at_their_time():
    pretended = Pretended([0.004])
    turn = run_frames(pretended.step, [0], 5, 100.0, clock=pretended.clock, sleep=pretended.sleep)
    np.testing.assert_allclose(turn.steps, 0.004, atol=1e-5)
    np.testing.assert_allclose(turn.answers, 0.004, atol=1e-5)
    assert (turn.late < 1e-5).all()
    assert len(pretended.slept) == 5
    # It sleeps until SPIN before the frame is due, and has worked for 4 of the 10 ms.
    np.testing.assert_allclose(pretended.slept[1:], 0.006 - step_clock.SPIN, atol=1e-5)


def test_a_step_that_is_too_long_makes_the_next_answers_late():
    pretended = Pretended([0.025, 0.001, 0.001, 0.001, 0.001])
    turn = run_frames(pretended.step, [0], 5, 100.0, clock=pretended.clock, sleep=pretended.sleep)
    np.testing.assert_allclose(turn.answers, [0.025, 0.016, 0.007, 0.001, 0.001], atol=1e-5)
    np.testing.assert_allclose(turn.late, [0, 0.015, 0.006, 0, 0], atol=1e-5)
    assert int((turn.answers > 0.01).sum()) == 2


def test_a_sleep_that_ends_late_counts():
    pretended = Pretended([0.001])
    lazy = pretended.sleep
    pretended.sleep = lambda seconds: lazy(seconds + 0.003)
    turn = run_frames(pretended.step, [0], 3, 100.0, clock=pretended.clock, sleep=pretended.sleep)
    np.testing.assert_allclose(turn.late, 0.003 - step_clock.SPIN, atol=1e-5)
    np.testing.assert_allclose(turn.answers, 0.004 - step_clock.SPIN, atol=1e-5)


def test_it_starts_anew_where_it_must():
    pretended, starts = Pretended([0.1]), []
    run_frames(
        pretended.step, [0], 7, longest=3, restart=lambda: starts.append(len(pretended.seen)), clock=pretended.clock
    )
    assert starts == [0, 3, 6]


@pytest.mark.parametrize(
    ("count", "percent", "place"), [(1, 99.9, 1), (100, 50, 50), (100, 99, 99), (1000, 99.9, 999), (7, 50, 4)]
)
def test_percentiles_are_values_that_were_measured(count: int, percent: float, place: int):
    values = np.random.default_rng(0).permutation(np.arange(1, count + 1) / 1e6)
    assert percentile(values, percent) == pytest.approx(place / 1e6)


def test_summary():
    found = summary(np.arange(1, 1001) / 1e6)
    assert found == pytest.approx({"p50": 500, "p99": 990, "p99.9": 999, "mean": 500.5, "worst": 1000})
    with pytest.raises(ValueError, match="got none"):
        percentile(np.zeros(0), 50)


def test_verdict():
    assert verdict(Turns(20000, 0, 0.0005), 60) == (
        "20,000 frames at 60 a second, budget 16.67 ms: none missed, the worst answer after 0.5 ms, 3.0% of the budget"
    )
    assert "3 MISSED (0.30%), the worst answer after 21 ms" in verdict(Turns(1000, 3, 0.021), 60)


@pytest.mark.parametrize("leave_on", [False, True])
def test_the_collector(leave_on: bool):
    with no_collector(leave_on) as said:
        assert gc.isenabled() == leave_on
        assert ("was on" in said) == leave_on
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.skipif(may_pin() is not None, reason=str(may_pin()))
def test_pinned_and_free_again():
    before = os.sched_getaffinity(0)
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
        for task in os.listdir("/proc/self/task"):
            assert os.sched_getaffinity(int(task)) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with pinned([]):
        assert os.sched_getaffinity(0) == before


def test_where_threads_cannot_be_pinned_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert "needs Linux" in str(may_pin())


def test_a_trace_of_malloc():
    lines = [
        "= Start",
        "@ /lib/libstdc++.so.6:(_Znwm+1c)[0xa958c] + 0x5634 0x20",
        "@ /x/libc10.so:(_ZN3c109alloc_cpuEm+6f)[0x91f7f] + 0x5635 0xfa0",
        "@ /lib/libc.so.6:[0x1] - 0x5634",
        "@ /lib/libc.so.6:[0x1] < 0x5634",
        "@ /lib/libc.so.6:[0x1] > 0x5636 0x40",
        "= End",
    ]
    assert step_memory.parse(lines, 2) == (0.5, 1.5, 0xFA0)
    assert step_memory.parse(["= Start", "= End"], 2) == (0, 0, 0)
