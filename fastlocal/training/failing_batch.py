"""Find the local step, client and sample at which a round fails."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastlocal import kernels

from ..common.errors import UsageError, one_line
from ..executors.base import LocalProblem
from ..executors.round_plan import RoundPlan
from ..module_checks.plain_steps import FAILURES


@torch.no_grad()
def find_failing_batch(problem: LocalProblem, plan: RoundPlan, error: BaseException) -> UsageError | None:
    """Find the first batch of a chunk's round that the model or the loss cannot take.

    Each batch goes through the plain module with its start weights. This finds a number without a row in an embedding
    and a label without an output, as neither depends on the weights.

    Args:
        problem: The module and its loss.
        plan: The chunk's round.
        error: What the round raised.

    Returns:
        An error that names step, client and sample, or None if no batch fails.
    """
    if isinstance(error, UsageError | torch.OutOfMemoryError) or kernels.is_device_fault(error):
        return None
    module = copy.deepcopy(problem.module)
    for client, number in enumerate(plan.client_ids.tolist()):
        for step, (batch, targets) in enumerate(problem.batches_of(plan, client)):
            fault = _fault(problem, module, batch.inputs, targets)
            if fault is None:
                continue
            where = f"step {plan.start + step}, client {number}"
            wrong = [place for place in range(len(targets)) if _fails(problem, module, batch.inputs, targets, place)]
            if 0 < len(wrong) < len(targets):
                where += f", sample {int(plan.sample_ids[step, client, wrong[0]])}"
                target = targets[wrong[0]]
                where += f" (target {target.item()})" if target.numel() == 1 else ""
            return UsageError(f"{where}: {fault}")
    return None


def _fails(problem: LocalProblem, module: nn.Module, inputs: Tensor, targets: Tensor, place: int) -> bool:
    sample = slice(place, place + 1)
    return _fault(problem, module, inputs[sample], targets[sample]) is not None


def _fault(problem: LocalProblem, module: nn.Module, inputs: Tensor, targets: Tensor) -> str | None:
    """Return the error of the model or the loss on a batch in one line, or None."""
    try:
        with problem.numerics.autocast():
            outputs = problem.numerics.to_param_dtype(module(inputs))
    except FAILURES as error:
        return f"the model fails: {one_line(error)}"
    try:
        problem.loss(outputs, targets)
    except FAILURES as error:
        return f"the loss fails: {one_line(error)}"
    return None
