"""All clients of a chunk in one vmapped forward and one backward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ..losses import count_correct
from ..stack import ClientStack
from ..telemetry.trace import span
from .base import LocalProblem, RoundPlan, RoundResult
from .conv_strategy import Stacking, Strategies
from .update import Update


class StackedExecutor:
    """One local step of every resident client is one program over their flat buffers."""

    def __init__(self, problem: LocalProblem, *, conv_strategy: Strategies = "auto") -> None:
        self.problem = problem
        self._stacking = Stacking(problem.module, conv_strategy)
        self._update = Update(problem)
        self._buffers = dict(problem.module.named_buffers())
        self._forward = vmap(self._forward_one, randomness="different")

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        problem = self.problem
        losses, correct = [], []
        for step in range(plan.local_steps):
            batch, targets = problem.batch(plan, step, slice(None))
            params = stack.params.detach().requires_grad_()
            with span("forward"), self._stacking.mode():
                step_losses, outputs = self._forward(params, batch.inputs, targets)
            with span("backward"):
                (grads,) = torch.autograd.grad(step_losses.sum(), params)
            self._update(stack.params, stack.momentum, grads, plan.learning_rates[step])
            losses.append(step_losses.detach())
            if problem.topk:
                correct.append(count_correct(outputs, batch.targets, problem.topk))
        return RoundResult(torch.stack(losses), torch.stack(correct).sum(dim=0) if correct else None)

    def _forward_one(self, row: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        problem = self.problem
        # every step starts from the module's own buffers, and what becomes of them is forgotten
        values = problem.layout.views(row) | {name: value.clone() for name, value in self._buffers.items()}
        with problem.numerics.autocast():
            outputs = functional_call(self._stacking.module, values, (inputs,))
        return problem.loss(problem.numerics.full(outputs), targets), outputs
