"""A few local steps of a module by every way in which a run could take them: they must end in the same place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastlocal import kernels

from ..common.errors import UsageError
from ..executors.base import Executor, LocalProblem
from ..executors.cuda_graphs import CudaGraphs, GraphedExecutor
from ..executors.looped import LoopedExecutor
from ..executors.round_plan import RoundPlan
from ..executors.stacked import StackedExecutor
from ..executors.threaded import ThreadedExecutor
from ..executors.tuning.conv_strategy import parse_strategies
from ..kernel_trial.jobs import line
from .checks import Check

CLIENTS, STEPS = 3, 3
FLOORS = {"fp64": 1e-7, "fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}
"""Distances that are never wrong, by precision; else three times that of the plain module from itself in float64."""
TIMES = 3.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's module as it can be trained in one precision.

    Attributes:
        precision: Its name.
        problem: With that precision.
        clients: Of the run.
        batch: Samples of a step.
        rate: The learning rate of a client.
        random: Whether the module draws random numbers.
        no_vmap: What keeps vmap from taking the module, or None.
        conv_strategy: As the run is told.
    """

    precision: str
    problem: LocalProblem
    clients: int
    batch: int
    rate: float
    random: bool
    no_vmap: str | None
    conv_strategy: str

    def stacked(self) -> StackedExecutor:
        """The executor with the run's own way of its convolutions."""
        problem = self.problem
        strategies = parse_strategies(self.conv_strategy, problem.module, problem.numerics.device)
        return StackedExecutor(problem, conv_strategy=strategies)


def plain_steps(trained: Trained) -> Tensor:
    """What the plain module's steps change, [clients, n_params] in float64: client after client, in plain torch."""
    return _changes(trained, LoopedExecutor(trained.problem))


def check_exact(trained: Trained, plain: Tensor) -> Iterator[Check]:
    """Stacked steps against looped ones in float64."""
    yield _compared(trained, "stacked, looped", plain, FLOORS["fp64"], lambda: StackedExecutor(trained.problem))


def check_own(trained: Trained, exact: Tensor) -> Iterator[Check]:
    """The ways of a run in its own precision.

    Args:
        trained: In the run's precision.
        exact: `plain_steps` in float64.
    """
    problem = trained.problem
    plain = plain_steps(trained)
    allowed = max(FLOORS[trained.precision], TIMES * _distance(plain, exact))

    def graphed() -> Executor:
        return GraphedExecutor(trained.stacked(), CudaGraphs())

    if trained.no_vmap is None:
        yield _compared(trained, "stacked, looped", plain, allowed, trained.stacked)
        yield _compared(trained, "chunks of 2 + 1, looped", plain, allowed, trained.stacked, chunks=(2, 1))
        if problem.numerics.device.type == "cuda" and problem.source.resident:
            yield _compared(trained, "CUDA graph, looped", plain, allowed, graphed)
    if problem.numerics.device.type == "cpu":
        yield _compared(trained, "threaded, looped", plain, allowed, lambda: ThreadedExecutor(problem, workers=2))


def _compared(
    trained: Trained,
    ways: str,
    wanted: Tensor,
    allowed: float,
    make: Callable[[], Executor],
    chunks: Sequence[int] = (CLIENTS,),
) -> Check:
    name = f"{ways} {trained.precision}"
    try:
        distance = _distance(_changes(trained, make(), chunks), wanted)
    except UsageError:
        raise
    except torch.OutOfMemoryError as error:
        return Check("module", name, None, f"not compared: {line(error)}")
    except Exception as error:
        if kernels.is_device_fault(error):
            raise  # nothing after it would say anything
        return Check("module", name, f"fails: {line(error)}")
    words = f"distance {distance:.2g}, allowed {allowed:.2g}"
    return Check("module", name, None if distance <= allowed else words, words)


def _distance(changes: Tensor, wanted: Tensor) -> float:
    """The largest distance of a client's changes from those that are wanted, as a fraction of them."""
    sizes = wanted.norm(dim=1).clamp(min=1e-30)
    return float(((changes - wanted).norm(dim=1) / sizes).max())


def _changes(trained: Trained, executor: Executor, chunks: Sequence[int] = (CLIENTS,)) -> Tensor:
    """What STEPS steps change of CLIENTS clients, on samples that differ, `chunks` of them at a time."""
    problem = trained.problem
    device, source = problem.numerics.device, problem.source
    stack = problem.stack(CLIENTS)
    params, row = stack.params, stack.params[0].clone()
    ids = torch.arange(STEPS * CLIENTS * trained.batch, device=source.index_device) % len(source)
    ids = ids.view(STEPS, CLIENTS, trained.batch)
    rates = torch.full((STEPS, CLIENTS), trained.rate, dtype=params.dtype, device=device)
    begin = 0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for size in chunks:
            part = slice(begin, begin + size)
            clients = torch.arange(part.start, part.stop, device=device)
            plan = RoundPlan(clients, 0, rates[:, part], ids[:, part], first_client=begin)
            executor.run_round(stack.part(part), plan)
            begin += size
    return (params - row).double()
