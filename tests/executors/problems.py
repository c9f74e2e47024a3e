"""Local problems, a plan for them, and how executors and plain torch solve them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import DataSet
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.interface import Executor
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.round_plan import RoundPlan, RoundResult
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.models.functional import local_module
from fastlocal.models.modes import training_modes
from fastlocal.params.client_stack import MOMENTS, SQUARE, ClientStack
from fastlocal.params.losses import cross_entropy
from fastlocal.params.param_layout import ParamLayout, param_layout
from fastlocal.params.precision import Numerics
from fastlocal.runs.local_problem import without_decay
from tests.helpers import small_models

CPU = torch.device("cpu")
EXECUTORS: dict[str, Callable[[LocalProblem], Executor]] = {
    "stacked": StackedExecutor,
    "stacked by rows": partial(StackedExecutor, by_parameter=False),
    "looped": LoopedExecutor,
    "threaded": partial(ThreadedExecutor, workers=3),
}
CLIENTS, STEPS, BATCH = 4, 3, 5


def problem_of(
    name: str,
    dtype: torch.dtype = torch.float64,
    low: torch.dtype | None = None,
    module: nn.Module | None = None,
    **values: Any,
) -> LocalProblem:
    data = small_models.sentences() if name == "words" else small_models.images()
    module = small_models.make(name).to(dtype) if module is None else module
    given: dict[str, Any] = {"loss": cross_entropy, "noise": None, "momentum": 0.9, "nesterov": False}
    given |= {"weight_decay": 0.03, **values}
    local, source = local_module(module, training_modes(module)), source_of(data, dtype)
    return LocalProblem(
        module=local,
        layout=idle_layout(local, source.read_range(0, 4).inputs, group_weight=True),
        source=source,
        topk=(1, 2),
        numerics=Numerics(CPU, dtype, low),
        **given,
    )


def idle_layout(module: nn.Module, inputs: Tensor, *, group_weight: bool) -> ParamLayout:
    """In which nothing decays that no gradient reaches, as in a run; the module is told the names."""
    trial = copy.deepcopy(module)
    trial(inputs).sum().backward()
    idle = [name for name, value in trial.named_parameters() if value.requires_grad and value.grad is None]
    module.idle = idle  # type: ignore[assignment]
    return without_decay(param_layout(module, group_weight=group_weight), idle)


def source_of(data: DataSet, dtype: torch.dtype, augment: bool = True, device: torch.device = CPU) -> ResidentSource:
    augment = augment and data.mean is not None
    return ResidentSource(data.train, mean=data.mean, std=data.std, augment=augment, seed=9, device=device, dtype=dtype)


def start(problem: LocalProblem, clients: int = CLIENTS) -> tuple[ClientStack, RoundPlan]:
    """Clients that have already drifted apart, their momenta too, and a plan with a rate of its own for each."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(problem.numerics.dtype)

    row = problem.layout.flatten(dict(problem.module.named_parameters()))
    shape = (clients, row.numel())
    params, moments = row + 0.1 * noise(*shape), {name: 0.1 * noise(*shape) for name in MOMENTS[: problem.moments]}
    if problem.adamw is not None:
        moments[SQUARE] = moments[SQUARE].abs()
    for rows in moments.values():
        for name in getattr(problem.module, "idle", ()):
            problem.layout.views(rows)[name].zero_()
    if problem.adamw is not None:
        moments[MOMENTS[-1]] = 1.0 + torch.arange(clients, dtype=torch.float64)
    stack = ClientStack.of(params, moments)
    plan = RoundPlan(
        client_ids=torch.arange(clients),
        first_step=11,
        learning_rates=(0.05 + 0.01 * torch.arange(STEPS * clients).view(STEPS, clients)).to(problem.numerics.dtype),
        sample_ids=torch.randint(0, len(problem.source), (STEPS, clients, BATCH), generator=generator),
    )
    return stack, plan


def run(kind: str, problem: LocalProblem, chunk: int = CLIENTS) -> tuple[ClientStack, RoundResult]:
    """One round of all clients, `chunk` at a time."""
    stack, plan = start(problem)
    losses, correct = [], []
    for begin in range(0, CLIENTS, chunk):
        here = slice(begin, begin + chunk)
        part = stack.part(here)
        part_plan = dataclasses.replace(
            plan,
            client_ids=plan.client_ids[here],
            learning_rates=plan.learning_rates[:, here],
            sample_ids=plan.sample_ids[:, here],
        )
        executor = EXECUTORS[kind](problem)
        result = executor.run_round(part, part_plan)
        assert result.correct is not None
        losses.append(result.losses)
        correct.append(result.correct)
    return stack, RoundResult(torch.cat(losses, dim=1), torch.cat(correct))


def in_plain_torch(problem: LocalProblem) -> tuple[ClientStack, RoundResult]:
    """Train the same round with torch.optim, on one deep copy after the other."""
    stack, plan = start(problem)
    losses, correct = torch.zeros(STEPS, CLIENTS, dtype=torch.float64), torch.zeros(CLIENTS, 2, dtype=torch.float64)
    for client in range(CLIENTS):
        module = copy.deepcopy(problem.module)
        named = {name: value for name, value in module.named_parameters() if value.requires_grad}
        for name, value in problem.layout.views(stack.params[client]).items():
            named[name].data = value.clone()
        masks = problem.layout.views(problem.layout.decay_mask)
        groups = [
            {"params": [value], "weight_decay": problem.weight_decay * float(masks[name].flatten()[0])}
            for name, value in named.items()
        ]
        optimizer = optimizer_of(problem, groups)
        for key, rows in kept(problem, stack).items():
            for name, value in problem.layout.views(rows[client]).items():
                optimizer.state[named[name]][key] = value.clone()
        if stack.steps is not None:
            for value in named.values():
                optimizer.state[value]["step"] = stack.steps[client].float().clone()
        for step in range(STEPS):
            batch, targets = problem.batch(plan, step, slice(client, client + 1))
            for group in optimizer.param_groups:
                group["lr"] = float(plan.learning_rates[step, client])
            outputs = module(batch.inputs[0])
            loss = problem.loss(outputs, targets[0])
            for value in named.values():
                value.grad = None
            loss.backward()
            if problem.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(named.values(), problem.clip_norm)
            optimizer.step()
            losses[step, client] = loss.detach()
            order = outputs.argsort(dim=1, descending=True)
            hits = order[:, :2] == batch.targets[0][:, None]
            correct[client] += torch.stack([hits[:, :1].sum(), hits.sum()])
        stack.params[client] = problem.layout.flatten(named)
        for key, rows in kept(problem, stack).items():
            rows[client] = problem.layout.flatten({name: optimizer.state[value][key] for name, value in named.items()})
        if stack.steps is not None:
            stack.steps[client] += STEPS
    return stack, RoundResult(losses, correct)


def optimizer_of(problem: LocalProblem, groups: Any) -> torch.optim.Optimizer:
    if problem.adamw is None:
        return torch.optim.SGD(groups, lr=1.0, momentum=problem.momentum, nesterov=problem.nesterov)
    settings = problem.adamw
    return torch.optim.AdamW(groups, lr=1.0, betas=(settings.beta1, settings.beta2), eps=settings.eps)


def kept(problem: LocalProblem, stack: ClientStack) -> dict[str, Tensor]:
    """The rows that torch's optimizer keeps under these names."""
    if stack.momentum is None:
        return {}
    if stack.square is None:
        return {"momentum_buffer": stack.momentum}
    return {"exp_avg": stack.momentum, "exp_avg_sq": stack.square}


def assert_same(
    got: tuple[ClientStack, RoundResult], expected: tuple[ClientStack, RoundResult], tolerance: float
) -> None:
    (stack, result), (wanted_stack, wanted) = got, expected
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(stack.params, wanted_stack.params, **close)
    assert stack.moments.keys() == wanted_stack.moments.keys()
    for name, rows in wanted_stack.moments.items():
        torch.testing.assert_close(stack.moments[name], rows, **close)
    torch.testing.assert_close(result.losses, wanted.losses.to(result.losses.dtype), **close)
    assert result.correct is not None and wanted.correct is not None
    assert torch.equal(result.correct, wanted.correct)
