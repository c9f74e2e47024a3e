"""Batches without a counted target: torch's mean loss is NaN, and their gradient is zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LocalProblem
from .round_plan import RoundPlan


def clear_empty(losses: Tensor, plan: RoundPlan, problem: LocalProblem) -> int:
    """Replace the NaN loss of every batch without a counted target by 0.

    Only batches with a NaN loss are read again; the search ends at a NaN of another cause, which ends the run.

    Args:
        losses: [local_steps, clients] on the CPU, changed in place.
        plan: The round of the losses.
        problem: The local step, with the label that does not count.

    Returns:
        The number of samples in such batches.
    """
    count = 0
    if problem.ignored is None:
        return count
    for step, client in losses.isnan().nonzero().tolist():
        one = slice(client, client + 1)
        number = torch.tensor(plan.start + step, device=plan.sample_ids.device)
        size = plan.size_of(client, step)
        _, targets = problem.batch_at(plan.sample_ids[step, one, :size], plan.client_ids[one], number)
        if bool((targets != problem.ignored).any()):
            break
        losses[step, client] = 0
        count += size
    return count
