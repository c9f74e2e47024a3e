"""Train one client after the other with the plain module: the reference for every other executor."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..config.schema import MachineConfig, RunConfig
from ..data.sources.base import Batch
from ..models.client_random.mode import ClientRandom
from ..models.mirror import Mirror
from ..models.own_tensors import OwnTensors, places_of, tensors_of
from ..models.unchanged import StateGuard
from ..params.client_stack import ClientStack
from ..params.losses import count_correct
from ..telemetry.trace import span
from .adamw_update import make_update
from .base import LocalProblem
from .interface import ExecutorKind, Values
from .round_plan import RoundPlan, RoundResult

CHECKED_CLIENT, CHECKED_STEP = 2, 3
"""Numbers of the client and of the local step whose random draws `check_step` takes."""


class LoopedExecutor(ExecutorKind):
    """Take each client's steps with a copy of the module whose parameters are views of one flat row.

    Attributes:
        row: [1, n_params], parameters of the current client.
        without_gradient: Places of the parameters without a gradient in the last step.
    """

    name = "looped"
    in_order = True

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """See ExecutorKind.options; none if a GPU may replay stacked steps, because they are not timed as graphs."""
        replayed = problem.numerics.device.type != "cpu" and requested.cuda_graph is not False
        return [] if replayed and problem.no_vmap is None else [{"executor": "looped"}]

    def __init__(self, problem: LocalProblem) -> None:
        self.problem = problem
        self._update = make_update(problem)
        layout, numerics = problem.layout, problem.numerics
        self.row = torch.zeros(1, layout.n_params, device=numerics.device, dtype=numerics.dtype)
        self._grads = torch.zeros_like(self.row)
        self._module = copy.deepcopy(problem.module)
        params, grads = layout.views(self.row[0]), layout.views(self._grads[0])
        self.without_gradient: list[slice] = []
        self._trained = []
        for name, parameter in self._module.named_parameters():
            if name in params:
                parameter.data = params[name]
                place = layout.places[layout.names.index(name)]
                self._trained.append((parameter, parameter.data, grads[name], place))
        self._mirror = Mirror(self._module, problem.user_module, problem.recomputed)
        self._guards: dict[torch.Size, StateGuard] = {}
        self._shape = torch.Size()
        places = list(places_of(self._module))
        start = {place.name: place.value for place in places}
        self._state = {name: [place for place in places if place.value is start[name]] for name in problem.state}

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """See Executor.run_round."""
        losses = torch.zeros(plan.sample_ids.shape[:2], device=self.row.device, dtype=self.row.dtype)
        clients = range(stack.params.shape[0])
        correct = torch.zeros(len(clients), self.problem.counts, device=self.row.device, dtype=torch.float64)
        for client in clients:
            correct[client] = self.run_client(stack, plan, client, losses[:, client])
        self.check()
        return RoundResult(losses, correct if self.problem.topk else None)

    def run_client(self, stack: ClientStack, plan: RoundPlan, client: int, losses: Tensor) -> Tensor:
        """Take all local steps of one client.

        Args:
            stack: Rows of the chunk's clients, updated in place.
            plan: Round of the chunk.
            client: Row of the client.
            losses: [local_steps], overwritten up to the client's last step.

        Returns:
            Counts of losses.count_correct, float64 [problem.counts].
        """
        own = slice(plan.steps_of(client))
        return self._run(stack, plan, client, own, self.problem.batches_of(plan, client), losses)

    @torch.enable_grad()
    def take_block(
        self,
        stack: ClientStack,
        plan: RoundPlan,
        client: int,
        steps: slice,
        batch: Batch,
        targets: Tensor,
        losses: Tensor,
    ) -> Tensor:
        """Take some local steps of one client, whose batches are gathered.

        Args:
            stack: Rows of the chunk's clients, updated in place.
            plan: Round of the chunk.
            client: Row of the client.
            steps: The steps, counted from the round's first.
            batch: Their batches, [steps, batch, ...].
            targets: Targets of the loss.
            losses: [steps], overwritten.

        Returns:
            Counts of losses.count_correct, float64 [problem.counts].
        """
        each = zip(batch.inputs, batch.targets, targets, strict=True)
        batches = ((Batch(inputs, labels), wanted) for inputs, labels, wanted in each)
        return self._run(stack, plan, client, steps, batches, losses)

    def _run(
        self,
        stack: ClientStack,
        plan: RoundPlan,
        client: int,
        own: slice,
        batches: Iterable[tuple[Batch, Tensor]],
        losses: Tensor,
    ) -> Tensor:
        correct = torch.zeros(self.problem.counts, device=self.row.device, dtype=torch.float64)
        rates = plan.learning_rates[own, client : client + 1]
        steps = self.steps(stack, client, batches, rates, plan.client_ids[client], plan.steps[own])
        for step, (loss, outputs, batch) in enumerate(steps):
            losses[step] = loss
            if self.problem.topk:
                one = outputs.unsqueeze(0), batch.targets.unsqueeze(0)
                correct += count_correct(*one, self.problem.topk, self.problem.ignored)[0]
        return correct

    def check(self) -> None:
        """Raise UsageError if the steps changed state that clients share and that the first steps did not change."""
        if self._shape in self._guards:
            self._guards[self._shape].check()

    def steps(
        self,
        stack: ClientStack,
        client: int,
        batches: Iterable[tuple[Batch, Tensor]],
        rates: Iterable[Tensor],
        number: Tensor,
        steps: Iterable[Tensor],
    ) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """Take local steps of one client, and yield loss, outputs and batch of each.

        Args:
            stack: Rows of the clients, updated after the last step.
            client: Row of the client.
            batches: Batch and targets of the loss for each step, without a client axis.
            rates: Learning rate of each step, [1].
            number: int64 [], number of the client.
            steps: Global number of each step, int64 [].
        """
        own = self._own(stack.part(slice(client, client + 1)))
        self._load_buffers(stack, client)
        for (batch, targets), rate, step in zip(batches, rates, steps, strict=True):
            yield *self._local_step(batch.inputs, targets, own, rate, number, step), batch
        stack.params[client] = self.row[0]
        self._store_buffers(stack, client)

    def check_step(self, params: Tensor, momentum: Tensor | None, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one step at rate 1 on rows [n_params] in place, and return its loss."""
        rate = torch.ones(1, device=params.device, dtype=params.dtype)
        client, number = (torch.tensor(value, device=params.device) for value in (CHECKED_CLIENT, CHECKED_STEP))
        own = self._own(ClientStack(params.unsqueeze(0), None if momentum is None else momentum.unsqueeze(0)))
        loss, _ = self._local_step(inputs, targets, own, rate, client, number)
        params.copy_(self.row[0])
        return loss

    def _own(self, one: ClientStack) -> ClientStack:
        """Copy the parameters of a client into the row, and return its stack with the row in their place."""
        self.row.copy_(one.params)
        return dataclasses.replace(one, params=self.row)

    @torch.no_grad()
    def _load_buffers(self, stack: ClientStack, client: int) -> None:
        """Copy the buffers of a client into the module, each under all its names."""
        for name, places in self._state.items():
            value = stack.state[name][client].clone()
            for place in places:
                place.tensors[place.key] = value

    @torch.no_grad()
    def _store_buffers(self, stack: ClientStack, client: int) -> None:
        """Copy the module's buffers back to the client's rows."""
        for name, (place, *_) in self._state.items():
            stack.state[name][client] = place.tensors[place.key].detach()

    def _local_step(
        self,
        inputs: Tensor,
        targets: Tensor,
        own: ClientStack,
        rate: Tensor,
        client: Tensor,
        number: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Take one step of the client whose parameters are in the row; return its loss and outputs."""
        problem = self.problem
        with span("forward"), contextlib.ExitStack() as modes:
            if problem.draws:
                modes.enter_context(ClientRandom(problem.seed, client, number))
            if problem.tensor_names:
                modes.enter_context(OwnTensors(problem.tensor_names, tensors_of(self._module)))
            with problem.numerics.autocast():
                outputs = self._module(inputs)
            with self._mirror.expose():
                loss = problem.loss(problem.numerics.to_param_dtype(outputs), targets)
        with span("backward"):
            for parameter, *_ in self._trained:
                parameter.grad = None
            loss.backward()
        if inputs.shape != self._shape:
            self._watch(inputs.shape)
        elif problem.no_vmap is not None:
            self._guards[self._shape].check(values=False)
        with self._gather_grads(own):
            self._update(own, self._grads, rate)
        return loss.detach(), outputs.detach()

    def _watch(self, shape: torch.Size) -> None:
        """Record the module's state after a step with a new input shape, since modules cache masks by shape."""
        self._shape = shape
        if shape not in self._guards:
            problem = self.problem
            changing = {*problem.state, *problem.layout.names}
            loss = None if problem.stateful_loss else problem.loss
            self._guards[shape] = StateGuard(self._module, changing, loss, problem.recomputed)

    @contextlib.contextmanager
    def _gather_grads(self, own: ClientStack) -> Iterator[None]:
        """Gather the gradients; afterwards restore parameters without one, which torch.optim skips too."""
        self.without_gradient = [place for parameter, _, _, place in self._trained if parameter.grad is None]
        for parameter, value, gradient, _ in self._trained:
            if parameter.data_ptr() != value.data_ptr():  # the forward pass replaced its data
                value.copy_(parameter.detach())
                parameter.data = value
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
        rows = [own.params, *(rows for rows in (own.momentum, own.square) if rows is not None)]
        copies = [(row[:, place], row[:, place].clone()) for row in rows for place in self.without_gradient]
        yield
        for values, before in copies:
            values.copy_(before)
