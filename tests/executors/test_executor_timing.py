"""How candidates are timed: which rounds count, on what shapes, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastlocal.executors.round_plan import RoundPlan, RoundResult
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.executors.tuning.executor_timing import TuningBudget, tune
from fastlocal.params.client_stack import ClientStack
from tests.executors.problems import EXECUTORS, problem_of


def test_random_states_and_the_model_are_left_alone() -> None:
    problem = problem_of("batchnorm", torch.float32)
    before, state = problem.module.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in before.items()}
    options = [{"executor": name} for name in ("looped", "threaded")]
    budget = TuningBudget(3, 5, 2, 10**9)
    timings = tune(problem, budget, options, lambda p, v: EXECUTORS[v["executor"]](p), 0.1).timings
    assert {timing.values["executor"] for timing in timings} == {"looped", "threaded"}
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in problem.module.state_dict().items())


def test_a_candidate_that_fails_is_left_out() -> None:
    def make(problem: Any, values: Any) -> Any:
        if values["executor"] == "bad":
            raise RuntimeError("out of memory")
        return ThreadedExecutor(problem, workers=1)

    problem, work = problem_of("perceptron", torch.float32), TuningBudget(3, 5, 2, 10**9)
    timings = tune(problem, work, [{"executor": "good"}, {"executor": "bad"}], make, 0.1).timings
    assert [timing.values["executor"] for timing in timings] == ["good"]
    assert tune(problem, work, [{"executor": "bad"}, {"executor": "good"}], make, 0.1).timings == []


def test_compiled_steps_are_timed_in_whole_chunks() -> None:
    stepped: list[tuple[bool, int]] = []

    def make(problem: Any, values: Any) -> Any:
        executor = ThreadedExecutor(problem, workers=1)
        train = executor.run_round
        executor.run_round = lambda stack, plan: (  # type: ignore[method-assign]
            stepped.append((bool(values.get("compile")), len(stack.params))) or train(stack, plan)
        )
        return executor

    work = TuningBudget(7, 5, 2, 10**9)
    tune(problem_of("perceptron", torch.float32), work, [{"compile": False}, {"compile": True}], make, 0.1)
    assert {clients for compiled, clients in stepped if compiled} == {7}
    assert min(clients for compiled, clients in stepped if not compiled) < 7


class Clock:
    """The time as executors under a test let it pass, whatever else the machine does."""

    def __init__(self) -> None:
        self.passed, self.computed = 0.0, 0.0

    def wait(self, seconds: float) -> None:
        self.passed += seconds

    def compute(self, seconds: float) -> None:
        self.passed, self.computed = self.passed + seconds, self.computed + seconds

    def perf_counter(self) -> float:
        return self.passed

    def process_time(self) -> float:
        return self.computed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fastlocal.executors.tuning.executor_timing.time", clock)
    return clock


class Paced:
    """Takes a round as long as `pace` says, given its samples, and trains nothing."""

    def __init__(self, pace: Callable[[int], None]) -> None:
        self.pace, self.batches = pace, set[int]()

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        self.batches.add(plan.sample_ids.shape[-1])
        self.pace(plan.sample_ids.numel())
        return RoundResult(torch.zeros(plan.sample_ids.shape[:2]), None)


def order_of(paces: dict[str, Callable[[int], None]], work: TuningBudget, seconds: float) -> list[tuple[str, float]]:
    """The names of executors of these paces and their seconds per client-step, as tuned."""
    made = {name: Paced(pace) for name, pace in paces.items()}
    options = [{"executor": name} for name in paces]
    timings = tune(problem_of("perceptron"), work, options, lambda p, v: made[v["executor"]], seconds).timings
    return [(timing.values["executor"], timing.seconds) for timing in timings]


def test_one_lucky_round_decides_nothing(clock: Clock) -> None:
    lucky = iter([4e-3] * 3)
    paces = {
        "rule": lambda samples: clock.compute(3e-2 * samples),
        "steady": lambda samples: clock.compute(1e-2 * samples),
        "lucky": lambda samples: clock.compute(next(lucky, None) or 2e-2 * samples),
    }
    (name, seconds), *_ = order_of(paces, TuningBudget(1, 1, 1, 10**12), 0.5)
    assert name == "steady" and seconds == pytest.approx(1e-2)


def test_one_round_that_was_held_up_rules_nothing_out(clock: Clock) -> None:
    held_up = iter([1e-3, 0.1])
    paces = {
        "rule": lambda samples: clock.compute(2e-2 * samples),
        "held up": lambda samples: clock.compute(next(held_up, 5e-3)),
    }
    assert order_of(paces, TuningBudget(1, 1, 1, 10**12), 0.1)[0][0] == "held up"


def test_a_busy_machine_makes_no_run_long(clock: Clock) -> None:
    """Waiting for a core is not counted: the run of 4,000 steps takes 0.4 s of the processor's time, 40 s as timed."""

    def slow(samples: int) -> None:
        clock.compute(1e-4)
        clock.wait(1e-2)

    paces, work = {"rule": slow, "other": slow}, TuningBudget(1, 1, 1, 4000)
    assert order_of(paces, work, 1.0) == []
    assert len(order_of(paces, work, 0.01)) == 2


def test_steps_that_take_long_are_timed_on_smaller_batches(clock: Clock) -> None:
    """A step of a whole batch takes 10 s."""
    made = [Paced(lambda samples: clock.compute(1e-3 * samples)), Paced(lambda samples: clock.compute(2e-3 * samples))]
    options = [{"executor": place} for place in range(2)]
    budget = TuningBudget(2, 10_000, 4, 10**6)
    timings = tune(problem_of("perceptron"), budget, options, lambda p, v: made[v["executor"]], 0.5).timings
    assert clock.passed < 5.0
    assert all(max(one.batches) < 1000 for one in made)
    assert [timing.values["executor"] for timing in timings] == [0, 1]
    assert timings[0].seconds == pytest.approx(10.0), "of a whole batch"
