"""Stacked steps of clients that take different numbers of steps, or short batches at the ends of their epochs.

Clients with more steps come first, so that those that still step are the first rows. A plain program takes a step of
just these rows. A captured or compiled one has a few numbers of rows; rows of it that have no step are masked. Steps of
short batches are plain, those with batches of one size at once.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlocal.kernels.transfers import to_device

from ..data.sources.base import Batch
from ..params.client_stack import ClientStack
from .round_plan import LocalStep, RoundPlan, RoundResult

if TYPE_CHECKING:
    from .base import LocalProblem
    from .stacked import StackedExecutor

ROW_COUNTS = 4
"""Numbers of rows of a chunk's captured and compiled steps: all, and lower powers of two from an eighth of all on."""


def fixed_rows(plan: RoundPlan, step: int) -> int:
    """Return the least of the chunk's fixed numbers of rows that holds those with a whole batch; 0 if none has one."""
    assert plan.sizes is not None
    whole = (plan.sizes[step] == plan.batch).nonzero()
    if len(whole) == 0:
        return 0
    rows, clients = int(whole[-1]) + 1, len(plan.client_ids)
    least = max(rows, -(-clients >> ROW_COUNTS - 1))
    return min(clients, 1 << (least - 1).bit_length())


def whole_batches(plan: RoundPlan, steps: slice, rows: slice) -> Tensor:
    """Return bool [steps, rows] on the plan's device: whether a row has a whole batch at a step."""
    device = plan.client_ids.device
    if plan.sizes is None:
        return torch.ones(plan.sample_ids[steps, rows].shape[:2], dtype=torch.bool, device=device)
    return to_device(plan.sizes[steps, rows] == plan.batch, device)


def no_results(problem: LocalProblem, plan: RoundPlan, stack: ClientStack) -> RoundResult:
    """Return losses and counts of zero, which `add` changes in place."""
    params = stack.params
    losses = torch.zeros(plan.local_steps, len(params), dtype=params.dtype, device=params.device)
    correct = torch.zeros(len(params), problem.counts, dtype=torch.float64, device=params.device)
    return RoundResult(losses, correct if problem.topk else None)


def run_unequal(executor: StackedExecutor, stack: ClientStack, plan: RoundPlan) -> RoundResult:
    """Take all steps of a plan with `sizes`; steps of resident samples are compiled if those of the executor are."""
    result = no_results(executor.problem, plan, stack)
    fixed = executor.compiler is not None and executor.problem.ahead is None
    for step in range(plan.local_steps):
        if fixed and (count := fixed_rows(plan, step)):
            rows = slice(count)
            batch, targets = executor.problem.batch(plan, step, rows)
            masked = _local_step(plan, step, rows, batch, targets)
            masked = dataclasses.replace(masked, active=whole_batches(plan, slice(step, step + 1), rows)[0])
            add(result, step, rows, *executor.local_step(stack.part(rows), masked))
        take_parts(executor, stack, plan, step, result, short=fixed)
    return dataclasses.replace(result, notes=executor.take_notes())


def take_parts(
    executor: StackedExecutor, stack: ClientStack, plan: RoundPlan, step: int, result: RoundResult, *, short: bool
) -> None:
    """Take a step of the rows that have one as plain programs, those with batches of one size at once.

    Args:
        executor: Takes the steps.
        stack: Rows of the chunk, changed in place.
        plan: Its round.
        step: The step, counted from the round's first.
        result: Takes the losses and counts.
        short: Whether to take the steps of short batches alone.
    """
    for rows, size in plan.parts(step):
        if short and size == plan.batch:
            continue
        batch, targets = executor.problem.batch(plan, step, rows, size)
        local_step = _local_step(plan, step, rows, batch, targets)
        add(result, step, rows, *executor.local_step(stack.part(rows), local_step, plain=True))


def _local_step(plan: RoundPlan, step: int, rows: slice, batch: Batch, targets: Tensor) -> LocalStep:
    rates, ids = plan.learning_rates[step, rows], plan.client_ids[rows]
    return LocalStep(batch, targets, rates, ids, plan.steps[step], plan.values.part(rows))


def only(active: Tensor | None, rows: Tensor, others: Tensor | int) -> Tensor:
    """Return rows [clients, ...] where `active` [clients] is true, else `others`; without a mask all rows."""
    if active is None:
        return rows
    return torch.where(active.view(-1, *[1] * (rows.dim() - 1)), rows, others)


def add(result: RoundResult, step: int, rows: slice, losses: Tensor, correct: Tensor | None) -> None:
    """Add the losses [rows] and counts [rows, counts] of a step of some rows to a result."""
    result.losses[step, rows] = losses
    if result.correct is not None and correct is not None:
        result.correct[rows] += correct
