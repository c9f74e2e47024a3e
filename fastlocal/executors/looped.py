"""One client after the other through the plain module: the oracle for every other executor."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..config.schema import MachineConfig, RunConfig
from ..data.sources.base import Batch
from ..models.client_random.mode import ClientRandom
from ..models.mirror import Mirror
from ..models.own_tensors import OwnTensors, places_of, tensors_of
from ..models.unchanged import Unchanged
from ..params.client_stack import ClientStack
from ..params.losses import count_correct
from ..telemetry.trace import span
from .base import ExecutorKind, LocalProblem, Values
from .round_plan import RoundPlan, RoundResult
from .sgd_update import Update


class LoopedExecutor(ExecutorKind):
    """A copy of the module whose parameters and gradients are views of two flat rows takes each client's steps.

    Attributes:
        row: [1, n_params], the parameters of the client whose turn it is.
        without_gradient: Places of the parameters to which the last step gave no gradient.
    """

    name = "looped"
    in_order = True

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """As ExecutorKind.options: not where a GPU replays stacked steps, which would be timed launched one by one."""
        replayed = problem.numerics.device.type != "cpu" and requested.cuda_graph is not False
        return [] if replayed and problem.source.resident and problem.no_vmap is None else [{"executor": "looped"}]

    def __init__(self, problem: LocalProblem) -> None:
        self.problem = problem
        self._update = Update(problem)
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
        self._unchanged: dict[torch.Size, Unchanged] = {}
        self._shape = torch.Size()
        places = list(places_of(self._module))
        start = {place.name: place.value for place in places}
        self._state = {name: [place for place in places if place.value is start[name]] for name in problem.state}

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        losses = torch.zeros(plan.sample_ids.shape[:2], device=self.row.device, dtype=self.row.dtype)
        correct = torch.zeros(self.problem.counts, device=self.row.device, dtype=torch.float64)
        for client in range(stack.params.shape[0]):
            correct += self.run_client(stack, plan, client, losses[:, client])
        self.check()
        return RoundResult(losses, correct if self.problem.topk else None)

    def run_client(self, stack: ClientStack, plan: RoundPlan, client: int, losses: Tensor) -> Tensor:
        """All local steps of one client of the stack; fills `losses` [local_steps].

        Returns right predictions, float64 [problem.counts].
        """
        correct = torch.zeros(self.problem.counts, device=self.row.device, dtype=torch.float64)
        batches, rates = self.problem.batches_of(plan, client), plan.learning_rates[:, client : client + 1]
        taken = self.steps(stack, client, batches, rates, plan.client_ids[client], plan.steps)
        for step, (loss, outputs, batch) in enumerate(taken):
            losses[step] = loss
            if self.problem.topk:
                correct += count_correct(outputs, batch.targets, self.problem.topk, self.problem.ignored)
        return correct

    def check(self) -> None:
        """Raise UsageError where steps have changed what clients share and the first steps left alone."""
        if self._shape in self._unchanged:
            self._unchanged[self._shape].check()

    def steps(
        self,
        stack: ClientStack,
        client: int,
        batches: Iterable[tuple[Batch, Tensor]],
        rates: Iterable[Tensor],
        number: Tensor,
        steps: Iterable[Tensor],
    ) -> Iterator[tuple[Tensor, Tensor, Batch]]:
        """Local steps of one client of the stack, as they are asked for: loss, outputs and batch of each.

        Args:
            stack: Whose rows change when all steps are taken.
            client: Its place in the stack.
            batches: Without a client axis, and the targets that the loss sees, step by step.
            rates: [1] each.
            number: int64 [], of the client.
            steps: int64 [] each, the global numbers of the steps.
        """
        momentum = None if stack.momentum is None else stack.momentum[client : client + 1]
        self.row.copy_(stack.params[client])
        self._load(stack, client)
        for (batch, targets), rate, step in zip(batches, rates, steps, strict=True):
            yield *self._local_step(batch.inputs, targets, momentum, rate, number, step), batch
        stack.params[client] = self.row[0]
        self._keep(stack, client)

    def check_step(self, params: Tensor, momentum: Tensor | None, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step at rate 1 of a client with these rows [n_params], which change; returns its loss."""
        self.row.copy_(params)
        rate = torch.ones(1, device=params.device, dtype=params.dtype)
        nobody = torch.zeros((), dtype=torch.int64, device=params.device)
        momenta = None if momentum is None else momentum.unsqueeze(0)
        loss, _ = self._local_step(inputs, targets, momenta, rate, nobody, nobody)
        params.copy_(self.row[0])
        return loss

    @torch.no_grad()
    def _load(self, stack: ClientStack, client: int) -> None:
        """Give the module the buffers of a client, each under all its names."""
        for name, places in self._state.items():
            value = stack.state[name][client].clone()
            for place in places:
                place.kept[place.key] = value

    @torch.no_grad()
    def _keep(self, stack: ClientStack, client: int) -> None:
        """Write what became of them to the client's rows."""
        for name, (place, *_) in self._state.items():
            stack.state[name][client] = place.kept[place.key].detach()

    def _local_step(
        self,
        inputs: Tensor,
        targets: Tensor,
        momentum: Tensor | None,
        rate: Tensor,
        client: Tensor,
        number: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One step of the client whose parameters are in the row; returns its loss and outputs."""
        problem = self.problem
        with span("forward"), contextlib.ExitStack() as modes:
            if problem.draws:
                modes.enter_context(ClientRandom(problem.seed, client, number))
            if problem.held:
                modes.enter_context(OwnTensors(problem.held, tensors_of(self._module)))
            with problem.numerics.autocast():
                outputs = self._module(inputs)
            with self._mirror.shown():
                loss = problem.loss(problem.numerics.to_param_dtype(outputs), targets)
        with span("backward"):
            for parameter, *_ in self._trained:
                parameter.grad = None
            loss.backward()
        if inputs.shape != self._shape:
            self._watch(inputs.shape)
        elif problem.no_vmap is not None:
            self._unchanged[self._shape].check(values=False)
        with self._left_alone(momentum):
            self._update(self.row, momentum, self._grads, rate)
        return loss.detach(), outputs.detach()

    def _watch(self, shape: torch.Size) -> None:
        """Note what the module keeps after a step with inputs of this shape, as modules keep masks for each shape."""
        self._shape = shape
        if shape not in self._unchanged:
            problem = self.problem
            changing = {*problem.state, *problem.layout.names}
            loss = None if problem.remembers else problem.loss
            self._unchanged[shape] = Unchanged(self._module, changing, loss, problem.recomputed)

    @contextlib.contextmanager
    def _left_alone(self, momentum: Tensor | None) -> Iterator[None]:
        """Gather the gradients; parameters that a step gives none stay as they are, as torch.optim.SGD leaves them."""
        self.without_gradient = [place for parameter, _, _, place in self._trained if parameter.grad is None]
        for parameter, value, gradient, _ in self._trained:
            if parameter.data_ptr() != value.data_ptr():  # forward has given it other data
                value.copy_(parameter.detach())
                parameter.data = value
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad)
        rows = [self.row] if momentum is None else [self.row, momentum]
        kept = [(row[:, place], row[:, place].clone()) for row in rows for place in self.without_gradient]
        yield
        for values, before in kept:
            values.copy_(before)
