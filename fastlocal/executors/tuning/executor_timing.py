"""Choose the fastest executor by timing local steps on the shapes of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastlocal import kernels

from ...common.torch_threads import torch_threads
from ...data.sources.resident import ResidentSource
from ...data.types import Split
from ..base import LocalProblem
from ..interface import Executor, ExecutorKind, Values
from ..round_plan import RoundPlan

MIN_RUN_RATIO, MAX_SHARE = 4.0, 0.1
"""Executors are timed only if the expected run takes MIN_RUN_RATIO times the timing; the timing then takes at most
MAX_SHARE of the run, without the start of the candidates."""
FEW, SMALL = 4, 8
"""Clients and samples of a first, rough timing."""
MAX_ROUGH_RATIO, MAX_RATIO = 3.0, 1.3
"""A candidate that exceeds the best time by this factor is dropped, after the rough timing and after MIN_REPEATS."""
REPEATS, MIN_REPEATS = 5, 3
"""Timings of every candidate: the number that the time is divided for, and the minimum."""
MIN_CANDIDATES = 2
"""Candidates that are started even after the deadline."""


@dataclass(frozen=True)
class Timing:
    """Median time of one candidate.

    Attributes:
        values: Settings of the candidate.
        seconds: Time per client and local step.
    """

    values: Values
    seconds: float


class Tuning(NamedTuple):
    """Result of `tune`.

    Attributes:
        timings: Times of the candidates, the fastest first; empty if the run is too short for timing.
        default_seconds: Rough time of the first candidate per client and local step; None if it fails.
    """

    timings: list[Timing]
    default_seconds: float | None


@dataclass(frozen=True)
class TuningBudget:
    """Sizes of a run.

    Attributes:
        clients: Clients of a chunk, the maximum of a timing.
        batch: Samples per client and step.
        local_steps: Local steps per round.
        total: Local steps of all clients in the whole run.
        workers: Number of clients that threads step at once.
    """

    clients: int
    batch: int
    local_steps: int
    total: int
    workers: int = 1


@dataclass
class _Candidate:
    values: Values
    executor: Executor
    times: list[float]

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)


def worthwhile(budget: TuningBudget, step_s: float, seconds: float) -> bool:
    """Return True if a run at `step_s` seconds per client-step is long enough to time executors for `seconds`."""
    return step_s * budget.total >= MIN_RUN_RATIO * seconds


def tune(
    problem: LocalProblem,
    budget: TuningBudget,
    candidates: Sequence[Values],
    make: Callable[[LocalProblem, Values], Executor],
    seconds: float,
    prepare: Callable[[], object] = lambda: None,
) -> Tuning:
    """Time the candidates interleaved and compare medians, so that other load on the machine affects all alike.

    Random states are restored. A candidate that fails is left out.

    Args:
        problem: The local step.
        budget: Sizes of the run.
        candidates: Settings of the candidates, the default first.
        make: Makes the executor of a candidate.
        seconds: Approximate time limit. All candidates are timed on smaller batches if a step of a whole batch is too
            slow for it.
        prepare: Called before the candidates are timed, for work that a machine does once, such as compiling.
    """
    device = problem.numerics.device
    problem = _in_memory(problem)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            default = make(problem, candidates[0])
            slice_s = seconds / (REPEATS * len(candidates))
            rough, step_s = _measure(default, problem, budget, slice_s)
        except kernels.failures() as error:
            if kernels.is_device_fault(error):
                raise
            return Tuning([], None)  # the run itself reports a default that fails
        if not worthwhile(budget, step_s, seconds):
            return Tuning([], step_s)
        prepare()
        seconds = min(seconds, MAX_SHARE * step_s * budget.total)
        deadline = time.perf_counter() + seconds
        started: list[_Candidate] = []
        for values in candidates:
            if len(started) >= MIN_CANDIDATES and time.perf_counter() > deadline:
                break
            try:
                executor = default if values is candidates[0] else make(problem, values)
                clients = _clients(values, rough, max(FEW, budget.workers))
                if started:
                    with _one_thread(device):
                        _warm_up(executor, problem, clients, 1, rough.batch)
                elapsed = _time_round(executor, problem, clients, 1, rough.batch)
                # repeat a slow time once, which may be due to other load
                if started and elapsed > MAX_ROUGH_RATIO * min(candidate.seconds for candidate in started):
                    elapsed = min(elapsed, _time_round(executor, problem, clients, 1, rough.batch))
                started.append(_Candidate(values, executor, [elapsed]))
            except kernels.failures() as error:
                if kernels.is_device_fault(error):
                    raise
        _interleave(problem, rough, started, deadline, slice_s)
    scale = budget.batch / rough.batch
    timings = [Timing(candidate.values, scale * candidate.seconds) for candidate in started]
    return Tuning(sorted(timings, key=lambda timing: timing.seconds), step_s)


def _one_thread(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Leave one intra-op thread on a CPU, as several are slow on a busy machine."""
    return torch_threads(1 if device.type == "cpu" else None)


def _measure(
    executor: Executor, problem: LocalProblem, budget: TuningBudget, slice_s: float
) -> tuple[TuningBudget, float]:
    """Measure the default executor roughly.

    Returns:
        The budget with a batch for which one step of every worker fits into `slice_s`, and the seconds per client-step
        of the run. On a CPU they are processor time of one core, which other load does not affect.
    """
    clients, batch = min(FEW, budget.clients), min(SMALL, budget.batch)
    device = problem.numerics.device
    with _one_thread(device):
        _warm_up(executor, problem, clients, 1, batch)
        step_s = min(_time_round(executor, problem, clients, 1, batch, process_time=True) for _ in range(2))
        fits = min(budget.batch, int(batch * slice_s / (step_s * max(1, min(budget.workers, budget.clients)))))
        if fits > batch:
            batch = fits
            _warm_up(executor, problem, clients, 1, batch, done=1)
            step_s = min(_time_round(executor, problem, clients, 1, batch, process_time=True) for _ in range(2))
    return dataclasses.replace(budget, batch=batch), step_s * budget.batch / batch


def _interleave(
    problem: LocalProblem, budget: TuningBudget, candidates: list[_Candidate], deadline: float, slice_s: float
) -> None:
    """Time the candidates that may be the fastest in turn, with as many clients and steps as fit into a slice."""
    fastest = min((candidate.seconds for candidate in candidates), default=0.0)
    close = [candidate for candidate in candidates if candidate.seconds < MAX_ROUGH_RATIO * fastest]
    repeat = 0
    while len(close) > 1 and (repeat < MIN_REPEATS or time.perf_counter() < deadline):
        for candidate in close:
            count = max(1, int(slice_s / candidate.seconds))
            steps = max(1, min(budget.local_steps, count // max(FEW, budget.workers)))
            clients = _clients(candidate.values, budget, max(1, count // steps))
            if repeat == 0:
                _warm_up(candidate.executor, problem, clients, steps, budget.batch, done=1)
            elapsed = _time_round(candidate.executor, problem, clients, steps, budget.batch)
            # the rough time was of another size
            candidate.times = [elapsed] if repeat == 0 else [*candidate.times, elapsed]
        repeat += 1
        if repeat >= MIN_REPEATS:
            fastest = min(candidate.seconds for candidate in close)
            close = [candidate for candidate in close if candidate.seconds < MAX_RATIO * fastest]


def _clients(values: Values, budget: TuningBudget, most: int) -> int:
    """Return the number of clients to time at once, about `most`.

    It is a multiple of the workers, because workers seldom idle in a run, or the whole chunk for compiled steps, which
    are compiled for one number of clients.
    """
    chunk = min(budget.clients, values.get("chunk") or budget.clients)
    if values.get("compile"):
        return chunk
    return min(chunk, max(1, most // budget.workers) * budget.workers)


def _warm_up(executor: Executor, problem: LocalProblem, clients: int, steps: int, batch: int, *, done: int = 0) -> None:
    """Take the first, slower steps of a shape, of which `done` may be counted as taken."""
    needed = executor.warm_up_steps if isinstance(executor, ExecutorKind) else 1
    for _ in range(max(0, -(-(needed - done) // steps))):
        _time_round(executor, problem, clients, steps, batch)


def _time_round(
    executor: Executor, problem: LocalProblem, clients: int, steps: int, batch: int, *, process_time: bool = False
) -> float:
    """Return the seconds per client and local step of one round at rate 0, on a CPU optionally as processor time."""
    device, dtype = problem.numerics.device, problem.numerics.dtype
    stack = problem.stack(clients)
    ids = torch.arange(steps * clients * batch, device=problem.source.index_device) % len(problem.source)
    plan = RoundPlan(
        client_ids=torch.arange(clients, device=device),
        first_step=0,
        learning_rates=torch.zeros(steps, clients, device=device, dtype=dtype),
        sample_ids=ids.view(steps, clients, batch),
    )
    _wait(device)
    clock = time.process_time if process_time and device.type == "cpu" else time.perf_counter
    start = clock()
    executor.run_round(stack, plan)
    _wait(device)
    return (clock() - start) / (clients * steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _in_memory(problem: LocalProblem) -> LocalProblem:
    """Return the problem on 256 resident samples, so that timing does not start to read ahead."""
    source = problem.source
    if source.resident:
        return problem
    batch = source.read_range(0, 256)
    resident = ResidentSource(
        Split(batch.inputs, batch.targets),
        mean=None,
        std=None,
        augment=False,
        seed=0,
        device=problem.numerics.device,
        dtype=problem.numerics.dtype,
    )
    return dataclasses.replace(problem, source=resident, ahead=None)
