"""All clients of a chunk in one vmapped forward and one backward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from fastlocal import kernels

from ..config.schema import MachineConfig, RunConfig
from ..models.functional import has_convolution
from ..params.client_stack import ClientStack
from ..params.losses import count_correct, cross_entropy
from ..telemetry.trace import span
from .base import ExecutorKind, LocalProblem, Values
from .forward import Forward
from .inductor import Compiler
from .round_plan import LocalStep, RoundPlan, RoundResult
from .sgd_update import Update
from .tuning.conv_strategy import Stacking, Strategies, parse_strategies

Params = Tensor | dict[str, Tensor]
"""Rows [clients, n_params], or the parameters by name, [clients, *shape]."""
CACHE_BYTES = 2 * 2**20
"""Of a core's own cache: stacked rows that fit in it are a chunk worth timing."""
COMPILE_SECONDS = 30.0
"""Compiled steps are timed only where --tune-seconds is at least this: compiling them takes about as long."""
FUSED_CLASSES = 8192
"""At most, as the kernel of the loss holds a sample's logits in registers."""


def best_by_parameter(device: torch.device, *, compile: bool) -> bool:
    """Whether gradients are best left by parameter: on a CPU, where a row of all takes two more passes over memory.

    A compiled program is left to gather them itself.
    """
    return device.type == "cpu" and not compile


class StackedExecutor(ExecutorKind):
    """One local step of every resident client is one program over their flat buffers.

    compile: whether torch.compile makes that program, one for each number of clients and batch size
    fused_loss: whether cross-entropy is one operation of all clients, which also counts right predictions and makes the
        gradient; None: on a GPU, where nothing else fuses it
    by_parameter: whether every parameter has a gradient of its own, instead of each client a row of them all; None: as
        best_by_parameter says
    Where memory runs out, fewer clients are stepped at once from then on, with the same result.
    """

    name = "stacked"
    in_place = True
    flags = frozenset({"conv_strategy", "compile", "cuda_graph"})

    @classmethod
    def from_config(cls, machine: MachineConfig, problem: LocalProblem) -> StackedExecutor:
        """As ExecutorKind.from_config; its steps are not replayed as a CUDA graph."""
        strategies = parse_strategies(machine.conv_strategy, problem.module, problem.numerics.device)
        return StackedExecutor(problem, conv_strategy=strategies, compile=bool(machine.compile))

    @classmethod
    def refusal(cls, problem: LocalProblem) -> str | None:
        """As ExecutorKind.refusal."""
        if problem.no_vmap is None:
            return None
        return f"vmap cannot take this model ({problem.no_vmap}); --executor looped trains it"

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """As ExecutorKind.options."""
        if requested.conv_strategy != "auto":
            return [{"executor": "stacked"}]
        on_cpu, convolutions = problem.numerics.device.type == "cpu", has_convolution(problem.module)
        found: list[Values] = [{"executor": "stacked"}]
        if on_cpu and convolutions:
            found = [{"executor": "stacked", "conv_strategy": strategy} for strategy in ("loop", "im2col")]
        elif on_cpu and requested.chunk is None:
            rows = 3 if problem.momentum else 2
            cached = max(1, CACHE_BYTES // (rows * problem.layout.n_params * problem.numerics.dtype.itemsize))
            found += [{"executor": "stacked", "chunk": chunk} for chunk in {cached, 8} if chunk < config.clients]
        if requested.compile is None and config.machine.tune_seconds >= COMPILE_SECONDS:
            found.append({"executor": "stacked", "compile": True})
        return found

    def __init__(
        self,
        problem: LocalProblem,
        *,
        conv_strategy: Strategies = "auto",
        compile: bool = False,
        fused_loss: bool | None = None,
        by_parameter: bool | None = None,
    ) -> None:
        self.problem = problem
        self._stacking = Stacking(problem.module, conv_strategy)
        self._one = Forward(problem, self._stacking.module)
        self._stacked = vmap(self._forward_one, (0, 0, 0, 0, 0, None), randomness="different")
        self._outputs = vmap(self._outputs_one, (0, 0, 0, 0, None), randomness="different")
        can_fuse = problem.loss is cross_entropy and bool(problem.topk) and problem.ignored is None
        can_fuse = can_fuse and not problem.held
        wanted = problem.source.device.type == "cuda" and not compile if fused_loss is None else fused_loss
        self._loss = kernels.get("label_noise_loss", device=problem.source.device) if can_fuse and wanted else None
        self._update = Update(problem)
        self.compiler = Compiler() if compile else None
        self._program = self._forward if self.compiler is None else self.compiler.compile(self._forward)
        if self.compiler is not None and problem.source.device.type == "cpu":  # elsewhere it is one kernel already
            self._update.step = self.compiler.compile(self._update.step)  # type: ignore[method-assign]
        best = best_by_parameter(problem.source.device, compile=compile)
        self._by_parameter = best if by_parameter is None else by_parameter
        self._most: int | None = None
        self._notes: list[str] = []

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """As Executor.run_round."""
        losses, correct = [], []
        for step in range(plan.local_steps):
            batch, targets = self.problem.batch(plan, step, slice(None))
            taken = LocalStep(batch, targets, plan.learning_rates[step], plan.client_ids, plan.steps[step])
            step_losses, hits = self.local_step(stack, taken)
            losses.append(step_losses)
            correct.append(hits)
        self._one.constants.check()
        return RoundResult(torch.stack(losses), _sum(correct), self.take_notes())

    def local_step(self, stack: ClientStack, step: LocalStep) -> tuple[Tensor, Tensor | None]:
        """Take one local step of the clients of the stack, whose buffers change in place.

        Returns losses [clients] and right predictions, float64 [problem.counts] or None.
        """
        clients = len(stack.params)
        losses, correct = [], []
        begin = 0
        while begin < clients:
            part = slice(begin, min(begin + (self._most or clients), clients))
            try:
                some, hits = self._step(stack.part(part), step.part(part))
            except torch.OutOfMemoryError:
                # a captured step cannot be begun again: what it has launched stays in the graph
                captured = stack.params.is_cuda and torch.cuda.is_current_stream_capturing()
                if part.stop - part.start == 1 or captured:
                    raise
            else:
                losses.append(some)
                correct.append(hits)
                begin = part.stop
                continue
            # only here, past the exception, is what the step had allocated free
            self.step_fewer(clients)
        return (losses[0] if len(losses) == 1 else torch.cat(losses)), _sum(correct)

    def step_fewer(self, clients: int) -> None:
        """Step half as many of these clients at once from now on, for a step has run out of memory."""
        self._most = (min(self._most or clients, clients) + 1) // 2
        self._notes.append(f"out of memory: {self._most} of {clients} resident clients are stepped at once now")
        if self.problem.numerics.device.type == "cuda":
            torch.cuda.empty_cache()

    def can_step_fewer(self, clients: int) -> bool:
        """Return True if more than one client is stepped at once, so that their number can be halved."""
        return min(self._most or clients, clients) > 1

    def take_notes(self) -> tuple[str, ...]:
        """Lines for a person since the last call."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def _step(self, stack: ClientStack, step: LocalStep) -> tuple[Tensor, Tensor | None]:
        if self._by_parameter:
            values = self.problem.layout.views(stack.params.detach())
            params: Params = {name: value.detach().requires_grad_() for name, value in values.items()}
            leaves = list(params.values())
        else:
            params = stack.params.detach().requires_grad_()
            leaves = [params]
        with span("forward"):
            losses, correct, state = self._program(
                params,
                dict(stack.state),
                step.batch.inputs,
                step.targets,
                step.batch.targets,
                step.client_ids,
                step.number,
            )
        with span("backward"):
            grads = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True)
        if self._by_parameter:
            self._update.by_parameter(stack.params, stack.momentum, grads, step.learning_rates)
        else:
            self._update(stack.params, stack.momentum, grads[0], step.learning_rates)
        for name, rows in stack.state.items():
            rows.copy_(state[name].detach())
        return losses.detach(), correct

    def _forward(
        self,
        params: Params,
        state: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        clean: Tensor,
        client_ids: Tensor,
        number: Tensor,
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """Losses [clients] of the targets that the loss sees, how often the outputs are right about clean ones, and
        what became of the buffers.
        """
        topk = self.problem.topk
        with self._stacking.mode():
            if self._loss is None:
                losses, outputs, state = self._stacked(params, state, inputs, targets, client_ids, number)
            else:
                outputs, state = self._outputs(params, state, inputs, client_ids, number)
        if self._loss is not None and outputs.shape[-1] <= FUSED_CLASSES:
            losses, hits = self._loss(outputs, targets, None, 0, p=0.0, seed=0)
            if topk == (1,) and targets is clean:
                return losses, hits.sum().to(torch.float64).unsqueeze(0), state
        elif self._loss is not None:
            losses = vmap(self.problem.loss)(self.problem.numerics.to_param_dtype(outputs), targets)
        return losses, count_correct(outputs, clean, topk, self.problem.ignored) if topk else None, state

    def _forward_one(
        self,
        params: Params,
        state: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        client: Tensor,
        number: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        values = self._values(params, state)
        loss, outputs = self._one(values, inputs, targets, client, number)
        return loss, outputs, {name: values[name] for name in state}

    def _outputs_one(
        self, params: Params, state: dict[str, Tensor], inputs: Tensor, client: Tensor, number: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        values = self._values(params, state)
        outputs = self._one.outputs(values, inputs, client, number)
        return outputs, {name: values[name] for name in state}

    def _values(self, params: Params, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the module has while it runs; a step begun again for want of memory finds its state as it was."""
        named = self.problem.layout.views(params) if isinstance(params, Tensor) else params
        return {**named, **{name: value.clone() for name, value in state.items()}}


def _sum(counts: list[Tensor | None]) -> Tensor | None:
    there = [count for count in counts if count is not None]
    return torch.stack(there).sum(dim=0) if len(there) > 1 else there[0] if there else None
