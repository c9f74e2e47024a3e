"""Which way of taking local steps is the fastest here: by timing them on the shapes at hand."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.sources.resident import ResidentSource
from ..data.sources.streaming import StreamingSource
from ..data.types import Split
from ..stack import ClientStack
from .base import Executor, LocalProblem, RoundPlan

WORTHWHILE = 4.0
"""Nothing is timed where the whole run is expected to take less than this many times the timing."""
FEW = 4
"""Clients of a first, rough timing."""
HOPELESS, CLOSE = 3.0, 1.5
"""A candidate that is this many times slower than the best is not timed on, and not timed again at the end."""
PASSES = 12
"""How many timings the time is meant for."""

Values = Mapping[str, Any]
"""Fields of MachineConfig by name."""


@dataclass(frozen=True)
class Timing:
    """values: what was timed        seconds: per client and local step, the shortest of several times"""

    values: Values
    seconds: float


@dataclass(frozen=True)
class Work:
    """What is to be done: clients at most per timing, samples of a batch, steps of a round, client-steps of the run."""

    clients: int
    batch: int
    local_steps: int
    total: int


def worthwhile(work: Work, each: float, seconds: float) -> bool:
    """Whether a run at `each` seconds per client-step is long enough to time executors for `seconds` first."""
    return each * work.total >= WORTHWHILE * seconds


def tune(
    problem: LocalProblem,
    work: Work,
    candidates: Sequence[Values],
    make: Callable[[LocalProblem, Values], Executor],
    seconds: float,
) -> list[Timing]:
    """Times of the candidates, the fastest first; none where the run is too short to be worth it.

    candidates: the one that is taken without timing first        make: the executor of a candidate
    seconds: about how long it may take; a candidate that is begun is finished
    Random states are left as they were. What a candidate cannot do leaves it out.
    """
    device = problem.numerics.device
    problem = _in_memory(problem)
    deadline = time.perf_counter() + seconds
    executors: list[Executor] = []
    best: list[Timing] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for values in candidates:
            if best and time.perf_counter() > deadline:
                break
            try:
                executor = make(problem, values)
                clients = _clients(values, work, FEW)
                rough = min(_once(executor, problem, clients, 1, work.batch) for _ in range(2))
            except (RuntimeError, ValueError, MemoryError):
                if not best:
                    return []  # what fails by rule is for the run itself to say
                continue
            if not best and not worthwhile(work, rough, seconds):
                return []
            executors.append(executor)
            best.append(Timing(values, rough))
        _refine(problem, work, executors, best, deadline, seconds / PASSES)
    return sorted(best, key=lambda timing: timing.seconds)


def _refine(
    problem: LocalProblem, work: Work, executors: list[Executor], best: list[Timing], deadline: float, slice_s: float
) -> None:
    """Time in turns, with as many clients and steps as a slice allows, those that may turn out the fastest."""
    fastest = min((timing.seconds for timing in best), default=0.0)
    close = [place for place, timing in enumerate(best) if timing.seconds < HOPELESS * fastest]
    first = True
    while close and (first or time.perf_counter() < deadline):
        for place in close:
            timing = best[place]
            count = max(1, int(slice_s / timing.seconds))
            steps = max(1, min(work.local_steps, count // min(FEW, work.clients)))
            clients = _clients(timing.values, work, max(1, count // steps))
            took = _once(executors[place], problem, clients, steps, work.batch)
            best[place] = Timing(timing.values, took if first else min(timing.seconds, took))
        fastest = min(best[place].seconds for place in close)
        close = [place for place in close if best[place].seconds < CLOSE * fastest]
        first = False


def _clients(values: Values, work: Work, most: int) -> int:
    """How many clients to time at once: a whole chunk of compiled steps, as they are compiled for it alone."""
    chunk = min(work.clients, values.get("chunk") or work.clients)
    return chunk if values.get("compile") else min(chunk, most)


def _once(executor: Executor, problem: LocalProblem, clients: int, steps: int, batch: int) -> float:
    """Seconds per client and local step of one round at rate 0."""
    device, dtype = problem.numerics.device, problem.numerics.dtype
    row = problem.layout.flatten(dict(problem.module.named_parameters()))
    params = row.repeat(clients, 1)
    stack = ClientStack(params, torch.zeros_like(params) if problem.momentum else None)
    ids = torch.arange(steps * clients * batch, device=problem.source.index_device) % len(problem.source)
    plan = RoundPlan(
        client_ids=torch.arange(clients, device=device),
        first_step=0,
        learning_rates=torch.zeros(steps, clients, device=device, dtype=dtype),
        sample_ids=ids.view(steps, clients, batch),
    )
    _wait(device)
    start = time.perf_counter()
    executor.run_round(stack, plan)
    _wait(device)
    return (time.perf_counter() - start) / (clients * steps)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _in_memory(problem: LocalProblem) -> LocalProblem:
    """The problem on samples that need not be read, so that no reading ahead is begun."""
    source = problem.source
    if not isinstance(source, StreamingSource):
        return problem
    rows = source.rows(0, 256)
    resident = ResidentSource(
        Split(rows.inputs, rows.targets),
        mean=None,
        std=None,
        augment=False,
        seed=0,
        device=problem.numerics.device,
        dtype=problem.numerics.dtype,
    )
    return dataclasses.replace(problem, source=resident)
