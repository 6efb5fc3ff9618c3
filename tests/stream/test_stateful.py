"""Random calls of a stream against a simple model of them; `tests.stream.long_run` makes as many as one likes."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.stream.calls import Calls

seeds = st.integers(0, 1 << 30)
numbers = st.lists(st.integers(0, 4), min_size=1, max_size=5)


class Machine(RuleBasedStateMachine):
    """Rules are the calls; numbers that are no row of the stream as it is now are taken modulo its rows."""

    name, backend = "hgrn2", "native"
    calls: Calls

    @initialize(
        rows=st.integers(1, 4),
        history=st.sampled_from([0, 1, 3, 8]),
        nonfinite=st.sampled_from(["raise", "hold", "pass"]),
    )
    def begin(self, rows: int, history: int, nonfinite: str) -> None:
        self.calls = Calls(self.name, self.backend, batch_size=rows, history=history, nonfinite=nonfinite)

    def rows(self, numbers: list[int]) -> list[int]:
        return sorted({number % self.calls.B for number in numbers})

    @rule(seed=seeds, count=st.integers(1, 6))
    def step(self, seed: int, count: int) -> None:
        for i in range(count):
            self.calls.step(seed + i, [], [])

    @rule(seed=seeds, resets=numbers)
    def step_with_resets(self, seed: int, resets: list[int]) -> None:
        self.calls.step(seed, self.rows(resets), [])

    @rule(seed=seeds, bad=numbers, resets=st.just([]) | numbers)
    def step_with_bad_numbers(self, seed: int, bad: list[int], resets: list[int]) -> None:
        self.calls.step(seed, self.rows(resets), self.rows(bad))

    @rule(seed=seeds, frames=st.integers(1, 12), masked=st.booleans())
    def prefill(self, seed: int, frames: int, masked: bool) -> None:
        self.calls.prefill(seed, frames, masked)

    @rule(frames=st.integers(0, 9), rows=numbers)
    def rollback(self, frames: int, rows: list[int]) -> None:
        self.calls.rollback(frames, self.rows(rows))

    @rule(frames=st.integers(1, 9))
    def replay(self, frames: int) -> None:
        self.calls.replay(frames)

    @rule(rows=numbers)
    def reset(self, rows: list[int]) -> None:
        self.calls.reset(self.rows(rows))

    @rule(indices=numbers)
    def select(self, indices: list[int]) -> None:
        self.calls.select([i % self.calls.B for i in indices])

    @rule(source=st.integers(0, 4), others=numbers)
    def copy_rows(self, source: int, others: list[int]) -> None:
        self.calls.copy_rows(source % self.calls.B, self.rows(others))

    @rule(order=numbers)
    def save_and_load(self, order: list[int]) -> None:
        self.calls.save_and_load([i % self.calls.B for i in order])

    @rule()
    def load_the_models_own(self) -> None:
        self.calls.load_the_models_own()

    @invariant()
    def is_as_it_should_be(self) -> None:
        if hasattr(self, "calls"):
            self.calls.look()

    def teardown(self) -> None:
        if hasattr(self, "calls"):
            self.calls.check_all()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("hgrn2", "native"),
        ("hyena", "native"),
        ("hybrid", "eager"),
        *(
            pytest.param(name, "native", marks=pytest.mark.slow)
            for name in ("hgrn", "hybrid", "edifice-hgrn", "edifice-hyena", "modal", "language", "hyena-language")
        ),
        *(pytest.param(name, "eager", marks=pytest.mark.slow) for name in ("hgrn2", "hyena", "language")),
    ],
)
def test_any_calls_mean_what_they_say(name: str, backend: str):
    machine = type(f"Machine of {name}, {backend}", (Machine,), {"name": name, "backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
