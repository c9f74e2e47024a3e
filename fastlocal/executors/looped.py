"""One client after the other through the plain module: the oracle for every other executor."""

from __future__ import annotations

import copy

import torch

from fastlocal import kernels

from ..losses import count_correct
from ..stack import ClientStack
from .base import LocalProblem, RoundPlan, RoundResult


class LoopedExecutor:
    """A copy of the module whose parameters and gradients are views of two flat rows takes each client's steps."""

    def __init__(self, problem: LocalProblem) -> None:
        self.problem = problem
        self._sgd = kernels.get("client_sgd")
        source, layout = problem.source, problem.layout
        self._decay_mask = layout.decay_mask.to(source.device, source.dtype)
        self._row = torch.zeros(1, layout.n_params, device=source.device, dtype=source.dtype)
        self._grads = torch.zeros_like(self._row)
        self._module = copy.deepcopy(problem.module)
        params, grads = layout.views(self._row[0]), layout.views(self._grads[0])
        for name, parameter in self._module.named_parameters():
            if name in params:
                parameter.data, parameter.grad = params[name], grads[name]

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        losses = torch.zeros(plan.sample_ids.shape[:2], device=self._row.device, dtype=self._row.dtype)
        correct = torch.zeros(len(self.problem.topk), device=self._row.device, dtype=torch.float64)
        for client in range(stack.params.shape[0]):
            self._row.copy_(stack.params[client])
            for step in range(plan.local_steps):
                self._local_step(stack, plan, client, step, losses, correct)
            stack.params[client] = self._row[0]
        return RoundResult(losses, correct if self.problem.topk else None)

    def _local_step(
        self,
        stack: ClientStack,
        plan: RoundPlan,
        client: int,
        step: int,
        losses: torch.Tensor,
        correct: torch.Tensor,
    ) -> None:
        problem = self.problem
        here = slice(client, client + 1)
        batch, targets = problem.batch(plan, step, here)
        self._grads.zero_()
        with problem.numerics.autocast():
            outputs = self._module(batch.inputs[0])
        loss = problem.loss(problem.numerics.full(outputs), targets[0])
        loss.backward()
        self._sgd(
            self._row,
            None if stack.momentum is None else stack.momentum[here],
            self._grads,
            plan.learning_rates[step, here],
            self._decay_mask,
            mu=problem.momentum,
            weight_decay=problem.weight_decay,
            nesterov=problem.nesterov,
        )
        losses[step, client] = loss.detach()
        if problem.topk:
            correct += count_correct(outputs, batch.targets[0], problem.topk)
