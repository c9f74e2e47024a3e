"""Build the executor of a run and try one step before the run begins."""

from __future__ import annotations

import torch

from fastlocal import kernels

from ..common.errors import UsageError, one_line
from ..config.schema import RunConfig
from ..executors.base import LocalProblem
from ..executors.cuda_graphs import CudaGraphs, GraphedExecutor
from ..executors.interface import Executor
from ..executors.registry import EXECUTORS
from ..executors.round_plan import LocalStep, RoundPlan
from ..executors.stacked import StackedExecutor
from ..executors.tuning.conv_strategy import format_strategies, parse_strategies
from ..executors.tuning.conv_timing import conv_choices
from ..kernel_trial import verdicts
from ..kernel_trial.kernels_tried import disable_failing_op

FEW = 2
"""Clients of a first capture; torch does not free the memory of a capture that fails, so that this one is small."""


def try_executor(config: RunConfig, problem: LocalProblem) -> tuple[Executor, RunConfig, list[str]]:
    """Build the executor of a run and try one step with it.

    If a Triton kernel fails that no flag demands, plain torch replaces it.

    Args:
        config: Settings with executor and chunk resolved.
        problem: The local step.

    Returns:
        The executor, the settings with the executor's options resolved, and log lines.

    Raises:
        UsageError: A setting of the user cannot be met.
    """
    notes: list[str] = []
    while True:
        try:
            executor, resolved, more = _try_executor(config, problem)
            return executor, resolved, notes + more
        except UsageError:
            raise
        except Exception as error:
            op = disable_failing_op(error, problem.numerics.device)
            if op is None:
                raise
            notes += verdicts.lines([op], "triton")


def _try_executor(config: RunConfig, problem: LocalProblem) -> tuple[Executor, RunConfig, list[str]]:
    machine, device = config.machine, problem.numerics.device
    kind = EXECUTORS[machine.executor]
    requested = parse_strategies(machine.conv_strategy, problem.module, device)
    flags = {
        "conv_strategy": machine.conv_strategy != "auto" and f"--conv-strategy {machine.conv_strategy}",
        "compile": machine.compile and "--compile 1",
        "cuda_graph": machine.cuda_graph and "--cuda-graph 1",
    }
    for name, flag in flags.items():
        if flag and name not in kind.flags:
            raise UsageError(f"{flag}: is for --executor stacked, and this run's is {machine.executor}")
    missing = kind.prepare(problem)
    if kind is not StackedExecutor:
        return kind.from_config(machine, problem), config.with_values(compile=False, cuda_graph=False), missing
    assert machine.chunk is not None
    choices = conv_choices(problem, config.client.batch_size, machine.chunk, requested, machine.tune_seconds)
    notes = choices.table().splitlines()
    strategies = choices.by_layer or requested
    stacked = StackedExecutor(problem, conv_strategy=strategies, compile=bool(machine.compile))
    config = config.with_values(conv_strategy=format_strategies(strategies), compile=bool(machine.compile))
    if machine.compile:
        try:
            try_step(stacked, config)
        except RuntimeError as error:
            if kernels.is_device_fault(error):
                raise
            reason = f"torch.compile cannot take this model ({one_line(error, 200)})"
            raise UsageError(f"--compile 1: {reason}; use --compile 0") from error
    if device.type == "cuda":
        try_step(stacked, config)  # compile and tune kernels for the chunk of the run
    graphed, why = _graphed(stacked, config)
    if why is not None and machine.cuda_graph:
        raise UsageError(f"--cuda-graph 1: {why}; use --cuda-graph 0")
    if why is not None and device.type == "cuda" and machine.cuda_graph is None:
        notes.append(f"local steps are launched one kernel after the other: {why}")
    return graphed or stacked, config.with_values(cuda_graph=graphed is not None), notes


def _graphed(stacked: StackedExecutor, config: RunConfig) -> tuple[GraphedExecutor | None, str | None]:
    """Return an executor that replays steps, or None with the reason; (None, None) with --cuda-graph 0."""
    machine, problem = config.machine, stacked.problem
    if machine.cuda_graph is False:
        return None, None
    if problem.numerics.device.type != "cuda":
        return None, f"the run is on {problem.numerics.device}, not on a CUDA GPU"
    graphs, rows = CudaGraphs(), _greatest_chunk(config)
    for clients in sorted({min(FEW, rows), rows}):
        try:
            _one_step(GraphedExecutor(stacked, graphs), clients, config.client.batch_size)
        except torch.OutOfMemoryError:
            return None, "the GPU's memory has no room for a captured step"
        except RuntimeError as error:
            if kernels.is_device_fault(error) or kernels.failing_op(error) is not None:
                raise
            return None, f"a local step cannot be captured ({one_line(error, 200)})"
    return GraphedExecutor(stacked, graphs), None


def try_step(executor: StackedExecutor, config: RunConfig) -> None:
    """Take a step of a chunk of throw-away clients; raise UsageError if it does not fit into memory."""
    batch = config.client.batch_size
    try:
        _one_step(executor, _greatest_chunk(config), batch)
    except torch.OutOfMemoryError as error:
        place = executor.problem.numerics.device
        raise UsageError(
            f"--batch-size {batch}: one client's step does not fit into the memory of {place}; lower it or take a "
            "smaller --model"
        ) from error


def _greatest_chunk(config: RunConfig) -> int:
    """Return the rows of the greatest chunk of a round, whose chunks are as equal as can be."""
    assert config.machine.chunk is not None
    chunks = -(-config.clients // config.machine.chunk)
    return -(-config.clients // chunks)


def _one_step(executor: StackedExecutor | GraphedExecutor, clients: int, batch: int) -> None:
    """Take one step of throw-away clients at rate 0, which compiles its kernels; random states are restored."""
    problem = executor.problem
    device = problem.numerics.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        stack = problem.stack(clients)
        ids = torch.arange(clients, device=device)
        rates = torch.zeros(1, dtype=stack.params.dtype, device=device).expand(1, clients)
        sample_ids = torch.zeros(1, clients, batch, dtype=torch.int64, device=problem.source.index_device)
        if isinstance(executor, GraphedExecutor):
            executor.run_round(stack, RoundPlan(ids, 0, rates, sample_ids))
        else:
            number = torch.zeros_like(ids[0])
            samples, targets = problem.batch_at(sample_ids[0], ids, number)
            executor.local_step(stack, LocalStep(samples, targets, rates[0], ids, number))
