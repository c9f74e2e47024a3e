"""Which way of taking local steps is the fastest here: by timing them on the shapes at hand."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastlocal import kernels

from ...data.sources.resident import ResidentSource
from ...data.types import Split
from ..base import Executor, LocalProblem, Values
from ..round_plan import RoundPlan

WORTHWHILE, SHARE = 4.0, 0.1
"""Nothing is timed where the whole run is expected to take less than the first many times the timing, and then the
timing takes at most this share of it; what a candidate takes to start comes on top."""
FEW, SMALL = 4, 8
"""Clients and samples of a first, rough timing."""
HOPELESS, CLOSE = 3.0, 1.3
"""A candidate that is this many times slower than the best is not timed on, after one timing and after several."""
TURNS, LEAST_TURNS = 5, 3
"""How many timings of every candidate the time is meant for, and how many there are however long they take."""
ALWAYS = 2
"""Candidates that are begun however long the ones before took."""


@dataclass(frozen=True)
class Timing:
    """values: what was timed        seconds: per client and local step, the median of several times"""

    values: Values
    seconds: float


class Tuning(NamedTuple):
    """What a tuning has found.

    timings: of the candidates, the fastest first; none if the run is too short to be worth it
    default_seconds: per client and local step of the first candidate, roughly; None if it fails
    """

    timings: list[Timing]
    default_seconds: float | None


@dataclass(frozen=True)
class TuningBudget:
    """What is to be done: clients at most per timing, samples of a batch, steps of a round, client-steps of the run.

    workers: clients that threads step at once, so that fewer would leave some without work
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


def worthwhile(work: TuningBudget, each: float, seconds: float) -> bool:
    """Whether a run at `each` seconds per client-step is long enough to time executors for `seconds` first."""
    return each * work.total >= WORTHWHILE * seconds


def tune(
    problem: LocalProblem,
    work: TuningBudget,
    candidates: Sequence[Values],
    make: Callable[[LocalProblem, Values], Executor],
    seconds: float,
    prepare: Callable[[], object] = lambda: None,
) -> Tuning:
    """Time the candidates in turns and compare medians, so that other load of the machine falls on all of them alike.

    Random states are left as they were. A candidate that fails is left out.

    Args:
        problem: Of the run.
        work: Sizes of the run.
        candidates: The default comes first.
        make: Makes the executor of a candidate.
        seconds: Of timing, about; a candidate that is begun is finished. If a step of a whole batch takes too long, all
            are timed on smaller batches.
        prepare: Called before the candidates are timed, for what starts once on a machine and is no part of a step.
    """
    device = problem.numerics.device
    problem = _in_memory(problem)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            by_rule = make(problem, candidates[0])
            slice_s = seconds / (TURNS * len(candidates))
            timed, each = _measure(by_rule, problem, work, slice_s)
        except kernels.failures() as error:
            if kernels.is_device_fault(error):
                raise
            return Tuning([], None)  # a default that fails is for the run itself to report
        if not worthwhile(work, each, seconds):
            return Tuning([], each)
        prepare()
        seconds = min(seconds, SHARE * each * work.total)
        deadline = time.perf_counter() + seconds
        found: list[_Candidate] = []
        for values in candidates:
            if len(found) >= ALWAYS and time.perf_counter() > deadline:
                break
            try:
                executor = by_rule if values is candidates[0] else make(problem, values)
                clients = _clients(values, timed, max(FEW, work.workers))
                if found:
                    with _one_thread(device):  # what starts up is slow to share between threads on a busy machine
                        _once(executor, problem, clients, 1, timed.batch)
                took = _once(executor, problem, clients, 1, timed.batch)
                if found and took > HOPELESS * min(one.seconds for one in found):  # or it was held up
                    took = min(took, _once(executor, problem, clients, 1, timed.batch))
                found.append(_Candidate(values, executor, [took]))
            except kernels.failures() as error:
                if kernels.is_device_fault(error):
                    raise
        _take_turns(problem, timed, found, deadline, slice_s)
    whole = work.batch / timed.batch
    timings = [Timing(one.values, whole * one.seconds) for one in found]
    return Tuning(sorted(timings, key=lambda timing: timing.seconds), each)


def _measure(
    executor: Executor, problem: LocalProblem, work: TuningBudget, slice_s: float
) -> tuple[TuningBudget, float]:
    """The work with a batch of which a step of each worker fits into a slice, and seconds per client-step of the run.

    On a CPU those of one core by the processor's clock, which others on the machine do not move.
    """
    clients, batch = min(FEW, work.clients), min(SMALL, work.batch)
    device = problem.numerics.device
    with _one_thread(device):
        _once(executor, problem, clients, 1, batch)
        each = min(_once(executor, problem, clients, 1, batch, by_processor=True) for _ in range(2))
        fits = min(work.batch, int(batch * slice_s / (each * max(1, min(work.workers, work.clients)))))
        if fits > batch:
            batch = fits
            each = min(_once(executor, problem, clients, 1, batch, by_processor=True) for _ in range(2))
    return dataclasses.replace(work, batch=batch), each * work.batch / batch


def _take_turns(
    problem: LocalProblem, work: TuningBudget, found: list[_Candidate], deadline: float, slice_s: float
) -> None:
    """Time with as many clients and steps as a slice allows those that may turn out the fastest."""
    fastest = min((one.seconds for one in found), default=0.0)
    close = [one for one in found if one.seconds < HOPELESS * fastest]
    turn = 0
    while len(close) > 1 and (turn < LEAST_TURNS or time.perf_counter() < deadline):
        for one in close:
            count = max(1, int(slice_s / one.seconds))
            steps = max(1, min(work.local_steps, count // max(FEW, work.workers)))
            clients = _clients(one.values, work, max(1, count // steps))
            took = _once(one.executor, problem, clients, steps, work.batch)
            one.times = [took] if turn == 0 else [*one.times, took]  # the rough one was of another size
        turn += 1
        if turn >= LEAST_TURNS:
            fastest = min(one.seconds for one in close)
            close = [one for one in close if one.seconds < CLOSE * fastest]


def _clients(values: Values, work: TuningBudget, most: int) -> int:
    """How many clients to time at once: a multiple of the workers, as a run has few rounds in which one waits; a whole
    chunk of compiled steps, as they are compiled for it alone."""
    chunk = min(work.clients, values.get("chunk") or work.clients)
    if values.get("compile"):
        return chunk
    return min(chunk, max(1, most // work.workers) * work.workers)


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU without intra-op threads, which take 25 times as long while something else has one of their cores."""
    threads = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _once(
    executor: Executor, problem: LocalProblem, clients: int, steps: int, batch: int, *, by_processor: bool = False
) -> float:
    """Seconds per client and local step of one round at rate 0; on a CPU, if wanted, of the processor's time."""
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
    clock = time.process_time if by_processor and device.type == "cpu" else time.perf_counter
    start = clock()
    executor.run_round(stack, plan)
    _wait(device)
    return (clock() - start) / (clients * steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _in_memory(problem: LocalProblem) -> LocalProblem:
    """The problem on samples that need not be read, so that no reading ahead is begun."""
    source = problem.source
    if source.resident:
        return problem
    rows = source.read_range(0, 256)
    resident = ResidentSource(
        Split(rows.inputs, rows.targets),
        mean=None,
        std=None,
        augment=False,
        seed=0,
        device=problem.numerics.device,
        dtype=problem.numerics.dtype,
    )
    return dataclasses.replace(problem, source=resident, ahead=None)
