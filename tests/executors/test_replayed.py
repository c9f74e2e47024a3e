"""Stacked steps on a CPU are replayed from the list of their operations, with the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastlocal
from fastlocal.commands.flags import parse
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.replayed.steps import WARM_UP_STEPS, ReplayedSteps
from fastlocal.executors.round_plan import RoundPlan
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.params.label_noise import LabelNoise
from fastlocal.runs.from_config import run_from_config
from tests.executors.problems import CLIENTS, assert_same, problem_of, start

ROUNDS = 3
QUICKSTART_OPERATIONS = 45


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def trained(problem: LocalProblem) -> tuple[list[Tensor], StackedExecutor]:
    """Parameters, losses and counts after some rounds."""
    executor, values = StackedExecutor(problem), list[Tensor]()
    stack, plan = start(problem)
    for number in range(ROUNDS):
        result = executor.run_round(stack, dataclasses.replace(plan, first_step=plan.start + number * plan.local_steps))
        assert result.correct is not None
        values += [result.losses, result.correct]
    return [stack.params, *values], executor


def is_replayed(executor: StackedExecutor) -> bool:
    assert executor._replayed is not None
    return all(kind.replay is not None for kind in executor._replayed._kinds.values())


class InPlace(nn.Module):
    """Writes to its own activations, and takes one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(90, 90), nn.Linear(90, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        x[:, :4].mul_(2.0)
        return self.last(torch.relu_(self.first(torch.relu_(x))))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(90, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("perceptron", {}),
        ("perceptron", {"noise": LabelNoise(p=0.5, classes=4, seed=2)}),
        ("groupnorm", {"nesterov": True}),
        ("batchnorm", {"clip_norm": 0.1}),
        ("odd", {"momentum": 0.0}),
        ("words", {}),
        ("in place", {"module": InPlace()}),
        ("dropping", {"module": Dropping(), "draws": True}),
    ],
)
def test_a_replay_has_the_bits_of_the_step(
    name: str, given: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**given, "module": given["module"].to(dtype)} if "module" in given else given
    problem = problem_of(name, dtype, **given)
    values, executor = trained(problem)
    assert is_replayed(executor)
    monkeypatch.setattr(ReplayedSteps, "can_replay", lambda problem: False)
    wanted, plain = trained(problem)
    assert plain._replayed is None
    for one, other in zip(values, wanted, strict=True):
        assert torch.equal(one, other)


class Counting(nn.Module):
    """Scales by the number of its calls, as a number or as a tensor that it keeps nowhere."""

    def __init__(self, tensor: bool) -> None:
        super().__init__()
        self.linear, self.tensor, self.calls = nn.Linear(90, 4), tensor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scale = torch.tensor(float(self.calls), dtype=x.dtype) if self.tensor else float(self.calls)
        return self.linear(x.flatten(1)) * scale


@pytest.mark.parametrize("tensor", [False, True])
def test_steps_that_differ_are_not_replayed(tensor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Counting(tensor).double()
    values, executor = trained(problem_of("counting", module=module))
    assert not is_replayed(executor)
    monkeypatch.setattr(ReplayedSteps, "can_replay", lambda problem: False)
    wanted, _ = trained(problem_of("counting", module=module))
    assert all(torch.equal(one, other) for one, other in zip(values, wanted, strict=True))


def test_each_number_of_clients_has_its_own_replay() -> None:
    problem = problem_of("perceptron")
    executor = StackedExecutor(problem)
    for clients in (CLIENTS, 2, CLIENTS, 2, CLIENTS, 2):
        stack, plan = start(problem, clients)
        result = executor.run_round(stack, plan)
        wanted, _ = start(problem, clients)
        assert_same((stack, result), (wanted, StackedExecutor(problem).run_round(wanted, plan)), 1e-12)
    assert is_replayed(executor) and executor._replayed is not None and len(executor._replayed._kinds) == 2


def test_the_quickstart_takes_no_more_operations() -> None:
    words = ["quickstart", "--executor", "stacked", "--device", "cpu", "--log-pth", "unused"]
    problem = run_from_config(parse(words).run, lambda text: None).problem
    executor, stack = StackedExecutor(problem), problem.stack(32)

    def operations(steps: int) -> int:
        ids = torch.arange(steps * 32 * 8).view(steps, 32, 8)
        rates = torch.full((steps, 1), 0.1).expand(-1, 32)
        with Counter() as counter:
            executor.run_round(stack, RoundPlan(torch.arange(32), 0, rates, ids))
        return counter.calls

    operations(WARM_UP_STEPS)
    assert operations(3) - operations(2) == operations(2) - operations(1) <= QUICKSTART_OPERATIONS


class Complex(nn.Module):
    """A linear map of complex values, whose gradients have conjugates in them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.complex(x, 2 * x), torch.view_as_complex(self.weight)).abs()


class ForwardMode(nn.Module):
    """A derivative in forward mode through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        outputs, tangents = torch.func.jvp(self.linear, (x,), (x.tanh(),))
        return outputs + tangents


@pytest.mark.parametrize("make", [Complex, ForwardMode])
def test_linear_maps_have_all_their_derivatives(make: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(1)
    module, data = make(), (torch.randn(24, 6, dtype=torch.float64), torch.randint(0, 3, (24,)))
    settings: dict[str, Any] = {"clients": 2, "local_steps": 4, "batch_size": 4, "lr": 0.1, "rounds": 2}
    losses = [
        fastlocal.train(
            module, data, data, **settings, executor=executor, precision="fp64", directory=tmp_path / executor,
            progress=False,
        ).history[-1]["val_loss"]
        for executor in ("stacked", "looped")
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


def test_hooks_are_called_in_every_step() -> None:
    problem = problem_of("perceptron")
    problem.module.register_forward_hook(lambda module, inputs, output: None)
    assert not ReplayedSteps.can_replay(problem)
