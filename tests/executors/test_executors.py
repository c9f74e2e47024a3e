"""Every executor takes the same steps, which are those of torch.optim on copies of the module."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlocal.executors import fused_loss
from fastlocal.executors.round_plan import RoundPlan
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.params.client_optimizer import AdamW
from fastlocal.params.client_stack import ClientStack
from fastlocal.params.label_noise import LabelNoise
from fastlocal.params.param_layout import param_layout
from tests.executors.problems import (
    BATCH,
    EXECUTORS,
    assert_same,
    in_plain_torch,
    problem_of,
    run,
    source_of,
    start,
)
from tests.helpers import small_models

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0, "weight_decay": 0.0},
    "decay": {"momentum": 0.0},
    "momentum": {},
    "nesterov": {"nesterov": True},
    "noise": {"noise": LabelNoise(p=0.5, classes=4, seed=2)},
    "clipped": {"clip_norm": 0.1},
    "adamw": {"momentum": 0.0, "adamw": AdamW(0.8, 0.95, 1e-6)},
    "adamw, clipped": {"momentum": 0.0, "adamw": AdamW(0.9, 0.999, 1e-8), "clip_norm": 0.1, "weight_decay": 0.0},
}


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


def by_executor(*cases: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Name of the problem, optimizer and executor; the steps of `threaded` are those of SGD."""
    kinds = [(*case, kind) for case in cases for kind in EXECUTORS]
    return [
        (name, optimizer, kind) for name, optimizer, kind in kinds if (optimizer[:5], kind) != ("adamw", "threaded")
    ]


@pytest.mark.parametrize(
    ("name", "optimizer", "kind"),
    by_executor(
        *(("odd", optimizer) for optimizer in OPTIMIZERS),
        *(("groupnorm", optimizer) for optimizer in ("plain", "nesterov", "clipped", "adamw")),
        *(("batchnorm", optimizer) for optimizer in ("momentum", "adamw, clipped")),
        ("perceptron", "noise"),
        ("words", "decay"),
        *(("sums", optimizer) for optimizer in ("decay", "nesterov", "clipped", "adamw", "adamw, clipped")),
    ),
)
def test_steps_are_those_of_torch(name: str, optimizer: str, kind: str) -> None:
    module = Sums().double() if name == "sums" else None
    problem = problem_of(name, module=module, **OPTIMIZERS[optimizer])
    assert_same(run(kind, problem), in_plain_torch(problem), 1e-11)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("module", [None, Sums().double()], ids=["odd", "sums"])
def test_large_parameters_take_the_same_steps(
    module: nn.Module | None, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastlocal.executors.sgd_update.LARGE", 4)  # biases too
    problem = problem_of("odd", module=module, **OPTIMIZERS[optimizer])
    assert_same(run("stacked", problem), in_plain_torch(problem), 1e-11)


@pytest.mark.parametrize("large", [30, 10**6])
@pytest.mark.parametrize("kind", ["stacked", "stacked by rows"])
def test_client_adamw_takes_the_same_steps(kind: str, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parameters of several clients take client_adamw, and large ones torch's fused AdamW."""
    monkeypatch.setattr("fastlocal.executors.adamw_update.FEW", 0)
    monkeypatch.setattr("fastlocal.executors.adamw_update.LARGE", large)
    for optimizer in ("adamw", "adamw, clipped"):
        problem = problem_of("odd", **OPTIMIZERS[optimizer])
        assert_same(run(kind, problem), in_plain_torch(problem), 1e-11)


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
        monkeypatch.setattr(fused_loss, "MAX_CLASSES", 3)
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
