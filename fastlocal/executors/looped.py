"""One client after the other through the plain module: the oracle for every other executor."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call

from ..losses import count_correct
from ..stack import ClientStack
from ..telemetry.trace import span
from .base import LocalProblem, RoundPlan, RoundResult
from .update import Update


class LoopedExecutor:
    """A copy of the module whose parameters and gradients are views of two flat rows takes each client's steps."""

    def __init__(self, problem: LocalProblem) -> None:
        self.problem = problem
        self._update = Update(problem)
        source, layout = problem.source, problem.layout
        self._row = torch.zeros(1, layout.n_params, device=source.device, dtype=source.dtype)
        self._grads = torch.zeros_like(self._row)
        self._module = copy.deepcopy(problem.module)
        self._buffers = dict(self._module.named_buffers())
        params, grads = layout.views(self._row[0]), layout.views(self._grads[0])
        for name, parameter in self._module.named_parameters():
            if name in params:
                parameter.data, parameter.grad = params[name], grads[name]

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        losses = torch.zeros(plan.sample_ids.shape[:2], device=self._row.device, dtype=self._row.dtype)
        correct = torch.zeros(self.problem.counts, device=self._row.device, dtype=torch.float64)
        for client in range(stack.params.shape[0]):
            correct += self.run_client(stack, plan, client, losses[:, client])
        return RoundResult(losses, correct if self.problem.topk else None)

    def run_client(self, stack: ClientStack, plan: RoundPlan, client: int, losses: Tensor) -> Tensor:
        """All local steps of one client of the stack; fills `losses` [local_steps].

        Returns right predictions, float64 [problem.counts].
        """
        correct = torch.zeros(self.problem.counts, device=self._row.device, dtype=torch.float64)
        momentum = None if stack.momentum is None else stack.momentum[client : client + 1]
        self._row.copy_(stack.params[client])
        for step, (batch, targets) in enumerate(self.problem.batches_of(plan, client)):
            rate = plan.learning_rates[step, client : client + 1]
            loss, outputs = self._local_step(batch.inputs, targets, momentum, rate)
            losses[step] = loss
            if self.problem.topk:
                correct += count_correct(outputs, batch.targets, self.problem.topk, self.problem.ignored)
        stack.params[client] = self._row[0]
        return correct

    def first_step(self, params: Tensor, momentum: Tensor | None, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step at rate 1 of a client with these rows [n_params], which change; returns its loss."""
        self._row.copy_(params)
        rate = torch.ones(1, device=params.device, dtype=params.dtype)
        loss, _ = self._local_step(inputs, targets, None if momentum is None else momentum.unsqueeze(0), rate)
        params.copy_(self._row[0])
        return loss

    def _forward(self, inputs: Tensor) -> Tensor:
        if not self._buffers:
            outputs: Tensor = self._module(inputs)
            return outputs
        # every step starts from the module's own buffers, as all clients at once would
        copies = {name: value.clone() for name, value in self._buffers.items()}
        outputs = functional_call(self._module, copies, (inputs,))
        return outputs

    def _local_step(
        self, inputs: Tensor, targets: Tensor, momentum: Tensor | None, rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of the client whose parameters are in the row; returns its loss and outputs."""
        problem = self.problem
        with span("forward"):
            with problem.numerics.autocast():
                outputs = self._forward(inputs)
            loss = problem.loss(problem.numerics.full(outputs), targets)
        with span("backward"):
            self._grads.zero_()
            loss.backward()
        self._update(self._row, momentum, self._grads, rate)
        return loss.detach(), outputs.detach()
