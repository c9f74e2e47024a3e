"""Every executor takes the same steps, which are those of torch.optim.SGD on copies of the module."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import DataSet
from fastlocal.executors import stacked
from fastlocal.executors.base import Executor, LabelNoise, LocalProblem
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.round_plan import RoundPlan, RoundResult
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.models.functional import local_module
from fastlocal.models.modes import training_modes
from fastlocal.params.client_stack import ClientStack
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
    stack = ClientStack(row + 0.1 * noise(*shape), 0.1 * noise(*shape) if problem.momentum else None)
    if stack.momentum is not None:
        for name in getattr(problem.module, "idle", ()):
            problem.layout.views(stack.momentum)[name].zero_()
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
        part = ClientStack(stack.params[here], None if stack.momentum is None else stack.momentum[here])
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
    return stack, RoundResult(torch.cat(losses, dim=1), torch.stack(correct).sum(dim=0))


def in_plain_torch(problem: LocalProblem) -> tuple[ClientStack, RoundResult]:
    """The same round by torch.optim.SGD on one deep copy after the other."""
    stack, plan = start(problem)
    losses, correct = torch.zeros(STEPS, CLIENTS, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
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
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=problem.momentum, nesterov=problem.nesterov)
        if stack.momentum is not None:
            for name, value in problem.layout.views(stack.momentum[client]).items():
                optimizer.state[named[name]]["momentum_buffer"] = value.clone()
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
            correct += torch.stack([hits[:, :1].sum(), hits.sum()])
        stack.params[client] = problem.layout.flatten(named)
        if stack.momentum is not None:
            buffers = {name: optimizer.state[value]["momentum_buffer"] for name, value in named.items()}
            stack.momentum[client] = problem.layout.flatten(buffers)
    return stack, RoundResult(losses, correct)


def assert_same(
    got: tuple[ClientStack, RoundResult], expected: tuple[ClientStack, RoundResult], tolerance: float
) -> None:
    (stack, result), (wanted_stack, wanted) = got, expected
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(stack.params, wanted_stack.params, **close)
    if wanted_stack.momentum is not None:
        assert stack.momentum is not None
        torch.testing.assert_close(stack.momentum, wanted_stack.momentum, **close)
    torch.testing.assert_close(result.losses, wanted.losses.to(result.losses.dtype), **close)
    assert result.correct is not None and wanted.correct is not None
    assert torch.equal(result.correct, wanted.correct)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "weight_decay": 0.0},
    "decay": {"momentum": 0.0},
    "momentum": {},
    "nesterov": {"nesterov": True},
    "noise": {"noise": LabelNoise(p=0.5, classes=4, seed=2)},
    "clipped": {"clip_norm": 0.1},
}


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *(("odd", optimizer) for optimizer in OPTIMIZERS),
        *(("groupnorm", optimizer) for optimizer in ("plain", "nesterov", "clipped")),
        ("batchnorm", "momentum"),
        ("perceptron", "noise"),
        ("words", "decay"),
    ],
)
def test_steps_are_those_of_torch_sgd(name: str, optimizer: str, kind: str) -> None:
    problem = problem_of(name, **OPTIMIZERS[optimizer])
    assert_same(run(kind, problem), in_plain_torch(problem), 1e-11)


class Sums(nn.Module):
    """Parameters whose gradients are one tensor or one number, and a linear map's outputs seen as other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.linspace(-1, 1, 90) * size) for size in (1.0, 2.0))
        self.spread = nn.Parameter(torch.linspace(0, 2, 90))
        self.narrow, self.last = nn.Linear(10, 4), nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) * self.spread.sum() / 90 + (self.first + self.second)
        return self.last(self.narrow(x.view(-1, 9, 10)).view(-1, 36))


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("optimizer", ["decay", "nesterov", "clipped"])
def test_parameters_that_share_a_gradient(optimizer: str, kind: str) -> None:
    problem = problem_of("sums", module=Sums().double(), **OPTIMIZERS[optimizer])
    assert_same(run(kind, problem), in_plain_torch(problem), 1e-11)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("module", [None, Sums().double()], ids=["odd", "sums"])
def test_large_parameters_take_the_same_steps(
    module: nn.Module | None, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlocal.executors.sgd_update.LARGE", 4)  # biases too
    problem = problem_of("odd", module=module, **OPTIMIZERS[optimizer])
    assert_same(run("stacked", problem), in_plain_torch(problem), 1e-11)


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("name", ["batchnorm", "words"])
def test_the_chunking_changes_nothing(name: str, kind: str) -> None:
    """Three clients and one, or all four."""
    problem = problem_of(name, noise=LabelNoise(p=0.5, classes=4, seed=2), nesterov=True)
    assert_same(run(kind, problem, 3), run(kind, problem), 1e-11)


@pytest.mark.parametrize("name", ["perceptron", "batchnorm", "groupnorm", "odd", "words"])
def test_executors_agree_in_float32(name: str) -> None:
    problem = problem_of(name, torch.float32)
    got, expected = run("stacked", problem), run("looped", problem)
    torch.testing.assert_close(got[0].params, expected[0].params, rtol=1e-4, atol=1e-4)
    assert got[1].losses.dtype == expected[1].losses.dtype == torch.float32


@pytest.mark.parametrize("kind", EXECUTORS)
@pytest.mark.parametrize("name", ["perceptron", "groupnorm"])
def test_bfloat16_stays_near_float32(name: str, kind: str) -> None:
    low, full = problem_of(name, torch.float32, torch.bfloat16), problem_of(name, torch.float32)
    (stack, result), (wanted_stack, wanted) = run(kind, low), run(kind, full)
    before, _ = start(full)
    assert stack.params.dtype == torch.float32 and result.losses.dtype == torch.float32
    assert not torch.equal(result.losses, wanted.losses)
    torch.testing.assert_close(result.losses, wanted.losses, rtol=0.03, atol=0.03)
    moved = wanted_stack.params - before.params
    assert (stack.params - wanted_stack.params).norm() < 0.05 * moved.norm()


@pytest.mark.parametrize("kind", EXECUTORS)
def test_the_same_boxes_for_every_executor_and_other_ones_each_step(kind: str) -> None:
    problem = problem_of("perceptron", momentum=0.0, weight_decay=0.0)
    without = dataclasses.replace(problem, source=source_of(small_models.images(), torch.float64, augment=False))
    assert not torch.equal(run(kind, problem)[1].losses, run(kind, without)[1].losses)
    ids = torch.arange(6).expand(2, 6)
    first, later = (problem.source.batch(ids, torch.arange(2), step).inputs for step in (0, 1))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, later)


@pytest.mark.parametrize("kind", EXECUTORS)
def test_noise_reaches_the_loss_and_not_the_accuracy(kind: str) -> None:
    clean = problem_of("perceptron", momentum=0.0, weight_decay=0.0)
    noisy = dataclasses.replace(clean, noise=LabelNoise(p=1.0, classes=4, seed=2))
    stack, plan = start(clean)
    plan = dataclasses.replace(plan, learning_rates=torch.zeros_like(plan.learning_rates))
    results = [EXECUTORS[kind](problem).run_round(stack, plan) for problem in (clean, noisy)]
    assert results[0].correct is not None and results[1].correct is not None
    assert torch.equal(results[0].correct, results[1].correct)
    assert (results[0].losses != results[1].losses).all()


@pytest.mark.parametrize("kind", EXECUTORS)
def test_an_executor_changes_the_stack_alone(kind: str) -> None:
    problem = problem_of("batchnorm")
    before = {name: value.clone() for name, value in problem.module.state_dict().items()}
    executor = EXECUTORS[kind](problem)
    first, second = start(problem), start(problem)
    executor.run_round(*first)
    executor.run_round(*second)
    assert torch.equal(first[0].params, second[0].params)
    assert all(torch.equal(value, before[name]) for name, value in problem.module.state_dict().items())
    assert all(value.grad is None for value in problem.module.parameters())


@pytest.mark.parametrize("low", [None, torch.bfloat16])
@pytest.mark.parametrize("noise", [None, LabelNoise(p=0.5, classes=4, seed=2)])
@pytest.mark.parametrize("topk", [(1,), (1, 2)], ids=["fused", "too many classes"])
def test_a_fused_loss_takes_the_same_steps(
    topk: tuple[int, ...], noise: LabelNoise | None, low: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if topk == (1, 2):
        monkeypatch.setattr(stacked, "FUSED_CLASSES", 3)
    problem = problem_of("groupnorm", torch.float64 if low is None else torch.float32, low, noise=noise)
    problem = dataclasses.replace(problem, topk=topk)
    (stack, plan), (wanted, _) = start(problem), start(problem)
    fused = StackedExecutor(problem, fused_loss=True).run_round(stack, plan)
    apart = StackedExecutor(problem).run_round(wanted, plan)
    assert_same((stack, fused), (wanted, apart), 1e-11 if low is None else 1e-5)


class Dropping(nn.Module):
    """Half of the inputs dropped before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(90, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training))


def test_each_client_has_its_own_dropout() -> None:
    problem = problem_of("perceptron", momentum=0.0)
    module = Dropping().double()
    problem = dataclasses.replace(problem, module=module.train(), layout=param_layout(module, group_weight=False))
    row = problem.layout.flatten(dict(module.named_parameters()))
    stack = ClientStack(row.expand(3, -1).clone(), None)
    same = torch.zeros(1, 3, BATCH, dtype=torch.int64)
    plan = RoundPlan(torch.zeros(3, dtype=torch.int64), 0, torch.full((1, 3), 0.1, dtype=torch.float64), same)
    StackedExecutor(problem).run_round(stack, plan)
    assert not torch.equal(stack.params[0], stack.params[1])
    assert not torch.equal(stack.params[1], stack.params[2])
