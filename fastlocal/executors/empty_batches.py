"""Batches in which no target counts: torch's mean loss of them is NaN, and their gradient zero."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LocalProblem
from .round_plan import RoundPlan


def clear_empty(losses: Tensor, plan: RoundPlan, problem: LocalProblem) -> int:
    """Set the loss of every batch without a target that counts to 0, where it is NaN.

    Only batches whose loss is NaN are looked up again, as what else is NaN ends the run.

    Args:
        losses: [local_steps, clients] on the CPU, changed in place.
        plan: The round that they are of.
        problem: Says which targets do not count.

    Returns:
        How many there are.
    """
    found = 0
    if problem.ignored is None:
        return found
    for step, client in losses.isnan().nonzero().tolist():
        one = slice(client, client + 1)
        number = torch.tensor(plan.first_step + step, device=plan.sample_ids.device)
        _, seen = problem.batch_at(plan.sample_ids[step, one], plan.client_ids[one], number)
        if bool((seen != problem.ignored).any()):
            break
        losses[step, client] = 0
        found += 1
    return found
