"""All clients of a chunk in one vmapped forward and one backward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ..data.sources.base import Batch
from ..losses import count_correct
from ..stack import ClientStack
from ..telemetry.trace import span
from .base import LocalProblem, RoundPlan, RoundResult
from .compiled import Compiler
from .conv_strategy import Stacking, Strategies
from .update import Update


class StackedExecutor:
    """One local step of every resident client is one program over their flat buffers.

    compile: whether torch.compile makes that program, one for each number of clients and batch size
    Where memory runs out, fewer clients are stepped at once from then on, with the same result.
    """

    def __init__(self, problem: LocalProblem, *, conv_strategy: Strategies = "auto", compile: bool = False) -> None:
        self.problem = problem
        self._stacking = Stacking(problem.module, conv_strategy)
        self._buffers = dict(problem.module.named_buffers())
        self._stacked = vmap(self._forward_one, randomness="different")
        self._update = Update(problem)
        self.compiler = Compiler() if compile else None
        self._program = self._forward if self.compiler is None else self.compiler.compile(self._forward)
        if self.compiler is not None and problem.source.device.type == "cpu":  # elsewhere it is one kernel already
            self._update.step = self.compiler.compile(self._update.step)  # type: ignore[method-assign]
        self._most: int | None = None
        self._notes: list[str] = []

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """As Executor.run_round."""
        losses, correct = [], []
        for step in range(plan.local_steps):
            batch, targets = self.problem.batch(plan, step, slice(None))
            step_losses, hits = self.local_step(stack, batch, targets, plan.learning_rates[step])
            losses.append(step_losses)
            correct.append(hits)
        return RoundResult(torch.stack(losses), _sum(correct), self.take_notes())

    def local_step(
        self, stack: ClientStack, batch: Batch, targets: Tensor, learning_rates: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """One local step of the clients of the stack, whose buffers change in place.

        targets: what the loss sees, [clients, batch, ...]        learning_rates: [clients]
        Returns losses [clients] and right predictions, float64 [len(topk)] or None.
        """
        clients = len(stack.params)
        losses, correct = [], []
        begin = 0
        while begin < clients:
            part = slice(begin, min(begin + (self._most or clients), clients))
            given = Batch(batch.inputs[part], batch.targets[part])
            try:
                some, hits = self._step(stack.part(part), given, targets[part], learning_rates[part])
            except torch.OutOfMemoryError:
                if part.stop - part.start == 1:
                    raise
                self._most = (part.stop - part.start + 1) // 2
            else:
                losses.append(some)
                correct.append(hits)
                begin = part.stop
                continue
            # only here, past the exception, is what the step had allocated free
            self._notes.append(f"out of memory: {self._most} of {clients} resident clients are stepped at once now")
            if stack.params.is_cuda:
                torch.cuda.empty_cache()
        return (losses[0] if len(losses) == 1 else torch.cat(losses)), _sum(correct)

    def take_notes(self) -> tuple[str, ...]:
        """Lines for a person since the last call."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def _step(
        self, stack: ClientStack, batch: Batch, targets: Tensor, learning_rates: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        params = stack.params.detach().requires_grad_()
        with span("forward"):
            losses, correct = self._program(params, batch.inputs, targets, batch.targets)
        with span("backward"):
            (grads,) = torch.autograd.grad(losses.sum(), params)
        self._update(stack.params, stack.momentum, grads, learning_rates)
        return losses.detach(), correct

    def _forward(self, params: Tensor, inputs: Tensor, targets: Tensor, clean: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses [clients] of the targets that the loss sees, and how often the outputs are right about clean ones."""
        with self._stacking.mode():
            losses, outputs = self._stacked(params, inputs, targets)
        topk = self.problem.topk
        return losses, count_correct(outputs, clean, topk) if topk else None

    def _forward_one(self, row: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        problem = self.problem
        # every step starts from the module's own buffers, and what becomes of them is forgotten
        values = problem.layout.views(row) | {name: value.clone() for name, value in self._buffers.items()}
        with problem.numerics.autocast():
            outputs = functional_call(self._stacking.module, values, (inputs,))
        return problem.loss(problem.numerics.full(outputs), targets), outputs


def _sum(counts: list[Tensor | None]) -> Tensor | None:
    there = [count for count in counts if count is not None]
    return torch.stack(there).sum(dim=0) if len(there) > 1 else there[0] if there else None
