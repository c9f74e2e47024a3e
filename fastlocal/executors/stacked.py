"""Train all clients of a chunk in one vmapped forward pass and one backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config.schema import MachineConfig, RunConfig
from ..models.functional import has_convolution
from ..params.client_stack import ClientStack
from ..telemetry.trace import span
from .adamw_update import make_update
from .base import LocalProblem
from .fused_loss import Root
from .gradient_rows import GradientRows, best_by_parameter
from .inductor import Compiler
from .interface import Executor, ExecutorKind, Values
from .jobs import ChunkJob
from .joint_rows import JointRows
from .replayed.steps import WARM_UP_STEPS, ReplayedSteps
from .round_plan import LocalStep, RoundPlan, RoundResult
from .stacked_forward import Params, StackedForward
from .tuning.conv_strategy import Strategies, parse_strategies
from .unequal_rows import only, run_unequal

Gradients = tuple[Tensor, Tensor | None, dict[str, Tensor], tuple[Tensor, ...]]
CACHE_BYTES = 2 * 2**20
"""Size of a core's own cache; a chunk whose rows fit into it is timed too."""
COMPILE_SECONDS = 30.0
"""Minimum of --tune-seconds for timing compiled steps, about the time that compiling takes."""


class StackedExecutor(ExecutorKind):
    """Take one local step of all resident clients as one program on their flat buffers.

    If memory runs out, fewer clients step at once from then on, with the same result.
    """

    name = "stacked"
    in_place = True
    flags = frozenset({"conv_strategy", "compile", "cuda_graph"})
    warm_up_steps = WARM_UP_STEPS

    @classmethod
    def from_config(cls, machine: MachineConfig, problem: LocalProblem) -> StackedExecutor:
        """See ExecutorKind.from_config; the steps are not replayed as a CUDA graph."""
        strategies = parse_strategies(machine.conv_strategy, problem.module, problem.numerics.device)
        return StackedExecutor(problem, conv_strategy=strategies, compile=bool(machine.compile))

    @classmethod
    def refusal(cls, problem: LocalProblem) -> str | None:
        """See ExecutorKind.refusal."""
        if problem.no_vmap is None:
            return None
        return f"vmap cannot take this model ({problem.no_vmap}); --executor looped trains it"

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """See ExecutorKind.options."""
        if requested.conv_strategy != "auto":
            return [{"executor": "stacked"}]
        on_cpu, convolutions = problem.numerics.device.type == "cpu", has_convolution(problem.module)
        options: list[Values] = [{"executor": "stacked"}]
        if on_cpu and convolutions:
            options = [{"executor": "stacked", "conv_strategy": strategy} for strategy in ("loop", "im2col")]
        elif on_cpu and requested.chunk is None:
            rows = 2 + problem.moments
            cached = max(1, CACHE_BYTES // (rows * problem.layout.n_params * problem.numerics.dtype.itemsize))
            options += [{"executor": "stacked", "chunk": chunk} for chunk in {cached, 8} if chunk < config.clients]
        if requested.compile is None and config.machine.tune_seconds >= COMPILE_SECONDS:
            options.append({"executor": "stacked", "compile": True})
        return options

    def __init__(
        self,
        problem: LocalProblem,
        *,
        conv_strategy: Strategies = "auto",
        compile: bool = False,
        fused_loss: bool | None = None,
        by_parameter: bool | None = None,
    ) -> None:
        """Prepare the program of a local step.

        Args:
            problem: The local step.
            conv_strategy: Strategies of the convolutions.
            compile: Whether torch.compile makes the program, once per number of clients and batch size.
            fused_loss: Whether one kernel computes cross-entropy, its gradient and the correct predictions of all
                clients; None for without `compile`.
            by_parameter: Whether every parameter has its own gradient, instead of one row for each client; None for
                best_by_parameter, and for rows if an algorithm changes these.
        """
        self.problem = problem
        fuse = not compile if fused_loss is None else fused_loss
        self._forward = StackedForward(
            problem,
            conv_strategy,
            fuse_norms=False if compile else None,
            fused_loss=fuse,
            draws_noise=bool(fused_loss) or problem.source.device.type == "cuda",
        )
        if self._forward.draws_noise:
            self.problem = dataclasses.replace(problem, noise=None)
        self._update = self._plain_update = make_update(problem)
        self.compiler = Compiler() if compile else None
        self._program = self._forward.run if self.compiler is None else self.compiler.compile(self._forward.run)
        if self.compiler is not None and problem.source.device.type == "cpu":  # on a GPU the update is one kernel
            self._plain_update = make_update(problem)
            self._update.compile(self.compiler)
        default = best_by_parameter(problem.source.device, compile=compile) and problem.correction.gradient is None
        self._by_parameter = default if by_parameter is None else by_parameter
        on_gpu = problem.source.device.type == "cuda" and not compile
        self._gather = GradientRows(problem.layout) if on_gpu and not self._by_parameter else None
        self._by_name = self._by_parameter or self._gather is not None
        self._replayed = ReplayedSteps() if ReplayedSteps.can_replay(problem) else None
        self._last_leaves: tuple[Tensor, list[Tensor]] | None = None
        self.joint = JointRows(problem)
        self._max_clients: int | None = None
        self._notes: list[str] = []

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """See Executor.run_round."""
        if plan.sizes is not None:
            result = run_unequal(self, stack, plan)
            self._forward.check_constants()
            return result
        losses, correct = [], []
        for step, (batch, targets) in enumerate(self.problem.batches(plan)):
            rates, number = plan.learning_rates[step], plan.steps[step]
            local_step = LocalStep(batch, targets, rates, plan.client_ids, number, plan.values)
            step_losses, hits = self.local_step(stack, local_step)
            losses.append(step_losses)
            correct.append(hits)
        self._forward.check_constants()
        return RoundResult(torch.stack(losses), _sum(correct), self.take_notes())

    def run_jobs(self, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        """See Executor.run_jobs; one program steps the rows of all runs."""
        return self.joint.run(self.run_round, jobs)

    def replica(self, problem: LocalProblem) -> Executor:
        """See ExecutorKind.replica; the program is shared."""
        return self

    def local_step(self, stack: ClientStack, step: LocalStep, *, plain: bool = False) -> tuple[Tensor, Tensor | None]:
        """Take one local step of all clients of a stack, in place.

        Args:
            stack: The clients.
            step: The step.
            plain: Whether to leave out torch.compile, as for numbers of clients and samples that seldom come again.

        Returns:
            Losses [clients], and counts of correct predictions, [clients, problem.counts] or None.
        """
        clients, begin = len(stack.params), 0
        losses, correct = [], []
        while begin < clients:
            part = slice(begin, min(begin + (self._max_clients or clients), clients))
            own = (stack, step) if part == slice(0, clients) else (stack.part(part), step.part(part))
            try:
                part_losses, hits = self._step(*own, plain)
            except torch.OutOfMemoryError:
                # a step under capture cannot be repeated: its kernels stay in the graph
                captured = stack.params.is_cuda and torch.cuda.is_current_stream_capturing()
                if part.stop - part.start == 1 or captured:
                    raise
            else:
                losses.append(part_losses)
                correct.append(hits)
                begin = part.stop
                continue
            self.step_fewer(clients)  # outside `except`: the exception holds the memory of the step
        if len(losses) == 1:
            return losses[0], correct[0]
        counts = [count for count in correct if count is not None]
        return torch.cat(losses), torch.cat(counts) if counts else None

    def step_fewer(self, clients: int) -> None:
        """Halve the number of clients that step at once, because a step ran out of memory."""
        self._max_clients = (min(self._max_clients or clients, clients) + 1) // 2
        self._notes.append(f"out of memory: {self._max_clients} of {clients} resident clients are stepped at once now")
        if self.problem.numerics.device.type == "cuda":
            torch.cuda.empty_cache()

    def can_step_fewer(self, clients: int) -> bool:
        """Return True if more than one client steps at once, so that the number can be halved."""
        return min(self._max_clients or clients, clients) > 1

    def take_notes(self) -> tuple[str, ...]:
        """Return the log lines since the last call."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def _step(self, stack: ClientStack, step: LocalStep, plain: bool) -> tuple[Tensor, Tensor | None]:
        program, update = (self._forward.run, self._plain_update) if plain else (self._program, self._update)
        active = step.active
        if self._replayed is not None and (plain or self.compiler is None):
            losses, correct, state, grads = self._replay(self._replayed, program, stack, step)
        else:
            losses, correct, state, grads = self._gradients(program, self._leaves(stack.params), stack, step)
        if self._by_parameter:
            assert active is None, "only captured and compiled steps mask rows"
            update.by_parameter(stack, grads, step.learning_rates, step.values)
        else:
            update(stack, grads[0], step.learning_rates, step.values, active)
        for name, rows in stack.state.items():
            rows.copy_(only(active, state[name].detach(), rows))
        return only(active, losses.detach(), 0), None if correct is None else only(active, correct, 0)

    def _leaves(self, params: Tensor) -> list[Tensor]:
        """Return the rows, or a view of each parameter, as leaves of autograd."""
        rows = params.detach()
        parts = self.problem.layout.views(rows).values() if self._by_name else [rows]
        return [part.detach().requires_grad_() for part in parts]

    def _replay(
        self, replayed: ReplayedSteps, program: Callable[..., Any], stack: ClientStack, step: LocalStep
    ) -> Gradients:
        """Return what _gradients does; the steps of a stack share their leaves."""
        if self._last_leaves is None or self._last_leaves[0] is not stack.params:
            self._last_leaves = stack.params, self._leaves(stack.params)
        leaves = self._last_leaves[1]
        return replayed(lambda: self._gradients(program, leaves, stack, step), leaves, step)

    def _gradients(
        self, program: Callable[..., Any], leaves: Sequence[Tensor], stack: ClientStack, step: LocalStep
    ) -> Gradients:
        """Return losses, correct predictions, changed buffers, and the gradients of the parameters or of the rows."""
        names = self.problem.layout.names
        params: Params = dict(zip(names, leaves, strict=True)) if self._by_name else leaves[0]
        with span("forward"):
            losses, correct, state, root = program(
                params,
                dict(stack.state),
                step.batch.inputs,
                step.targets,
                step.batch.targets,
                step.client_ids,
                step.number,
                step.values,
            )
        with span("backward"):
            outputs, grad = (losses.sum(), None) if root is None else root
            if grad is not None and grad.device.type == "cpu":  # on a GPU it would be two more launches
                outputs, grad = Root.apply(outputs, grad), None

            def differentiate() -> tuple[Tensor, ...]:
                return torch.autograd.grad(outputs, leaves, grad, allow_unused=True, materialize_grads=True)

            if self._gather is not None:
                return losses, correct, state, (self._gather(stack.params, differentiate),)
            return losses, correct, state, differentiate()


def _sum(counts: list[Tensor | None]) -> Tensor | None:
    present = [count for count in counts if count is not None]
    return torch.stack(present).sum(dim=0, dtype=torch.float64) if present else None
