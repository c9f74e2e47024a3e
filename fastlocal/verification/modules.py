"""Compare a few local steps of a module across the executors of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastlocal import kernels

from ..common.errors import UsageError
from ..executors.base import LocalProblem
from ..executors.cuda_graphs import CudaGraphs, GraphedExecutor
from ..executors.interface import Executor
from ..executors.looped import LoopedExecutor
from ..executors.round_plan import RoundPlan
from ..executors.stacked import StackedExecutor
from ..executors.threaded import ThreadedExecutor
from ..executors.tuning.conv_strategy import parse_strategies
from ..kernel_trial.jobs import line
from .checks import Check

CLIENTS, STEPS = 3, 3
FLOORS = {"fp64": 1e-7, "fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}
"""Distance that is always accepted, by precision."""
TIMES = 3.0
"""Otherwise a distance is accepted up to TIMES the distance of the plain module from itself in float64."""


@dataclasses.dataclass(frozen=True)
class ModuleCase:
    """Module of a run in one precision.

    Attributes:
        precision: Name of the precision.
        problem: Model, data and numerics in that precision.
        clients: Number of clients of the run.
        batch: Samples per client and step.
        rate: Learning rate of a client.
        random: Whether the module draws random numbers.
        no_vmap: Reason why vmap cannot run the module, or None.
        conv_strategy: --conv-strategy.
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
        """Return a stacked executor with the run's convolution strategies."""
        problem = self.problem
        strategies = parse_strategies(self.conv_strategy, problem.module, problem.numerics.device)
        return StackedExecutor(problem, conv_strategy=strategies)


def plain_steps(case: ModuleCase) -> Tensor:
    """Return the changes of the plain module's steps in plain torch, [clients, n_params] in float64."""
    return _changes(case, LoopedExecutor(case.problem))


def check_exact(case: ModuleCase, plain: Tensor) -> Iterator[Check]:
    """Compare stacked with looped steps in float64."""
    yield _compare(case, "stacked, looped", plain, FLOORS["fp64"], lambda: StackedExecutor(case.problem))


def check_own(case: ModuleCase, exact: Tensor) -> Iterator[Check]:
    """Compare the executors in the run's own precision.

    Args:
        case: In the run's precision.
        exact: `plain_steps` in float64.
    """
    problem = case.problem
    plain = plain_steps(case)
    allowed = max(FLOORS[case.precision], TIMES * _distance(plain, exact))

    def graphed() -> Executor:
        return GraphedExecutor(case.stacked(), CudaGraphs())

    if case.no_vmap is None:
        yield _compare(case, "stacked, looped", plain, allowed, case.stacked)
        yield _compare(case, "chunks of 2 + 1, looped", plain, allowed, case.stacked, chunks=(2, 1))
        if problem.numerics.device.type == "cuda" and problem.source.resident:
            yield _compare(case, "CUDA graph, looped", plain, allowed, graphed)
    if ThreadedExecutor.refusal(problem) is None:
        yield _compare(case, "threaded, looped", plain, allowed, lambda: ThreadedExecutor(problem, workers=2))


def _compare(
    case: ModuleCase,
    pair: str,
    expected: Tensor,
    allowed: float,
    make: Callable[[], Executor],
    chunks: Sequence[int] = (CLIENTS,),
) -> Check:
    name = f"{pair} {case.precision}"
    try:
        distance = _distance(_changes(case, make(), chunks), expected)
    except UsageError:
        raise
    except torch.OutOfMemoryError as error:
        return Check("module", name, None, f"not compared: {line(error)}")
    except Exception as error:
        if kernels.is_device_fault(error):
            raise  # the device cannot run later checks
        return Check("module", name, f"fails: {line(error)}")
    words = f"distance {distance:.2g}, allowed {allowed:.2g}"
    return Check("module", name, None if distance <= allowed else words, words)


def _distance(changes: Tensor, expected: Tensor) -> float:
    """Return the largest relative distance of a client's changes from the expected ones."""
    sizes = expected.norm(dim=1).clamp(min=1e-30)
    return float(((changes - expected).norm(dim=1) / sizes).max())


def _changes(case: ModuleCase, executor: Executor, chunks: Sequence[int] = (CLIENTS,)) -> Tensor:
    """Return the changes of the parameters in STEPS steps of CLIENTS clients on different samples, run in chunks."""
    problem = case.problem
    device, source = problem.numerics.device, problem.source
    stack = problem.stack(CLIENTS)
    params, row = stack.params, stack.params[0].clone()
    ids = torch.arange(STEPS * CLIENTS * case.batch, device=source.index_device) % len(source)
    ids = ids.view(STEPS, CLIENTS, case.batch)
    rates = torch.full((STEPS, CLIENTS), case.rate, dtype=params.dtype, device=device)
    begin = 0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for size in chunks:
            part = slice(begin, begin + size)
            clients = torch.arange(part.start, part.stop, device=device)
            plan = RoundPlan(clients, 0, rates[:, part], ids[:, part], first_row=begin)
            executor.run_round(stack.part(part), plan)
            begin += size
    return (params - row).double()
