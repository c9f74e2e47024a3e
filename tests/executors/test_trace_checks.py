"""A trace is refused where it would be another model's, and taken where only its text has to be another."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from fastlocal.common.errors import UsageError
from fastlocal.executors.base import LocalProblem
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.round_plan import RoundPlan
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.params.client_stack import ClientStack
from tests.executors.problems import assert_same, start
from tests.executors.test_threaded import problem_with

BEYOND_ROUNDING = 1e-4


class Gated(nn.Module):
    """Whether its second layer is there is for `gate` to say."""

    def __init__(self, gate: Callable[[Gated, Tensor], bool]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(90, 40), nn.Linear(40, 40), nn.Linear(40, 4)
        self.gate = gate
        self.calls = 0
        self.mean = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1)))
        if self.gate(self, x.detach()):
            x = x + torch.tanh(self.second(x))
        out: Tensor = self.last(x)
        return out


def counted(module: Gated, x: Tensor) -> bool:
    module.calls += 1
    return module.calls > 100


def averaged(module: Gated, x: Tensor) -> bool:
    module.mean.lerp_(x.mean(), 0.1)
    return False


def worst(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of the losses that are near the largest: of as many as there are."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses[losses >= losses.detach().max() - 0.05].mean()


def kept(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[targets != 0], targets[targets != 0])


def scripted_steps(executor: ThreadedExecutor) -> bool:
    return all(executor._scripts.values())


def begin(problem: LocalProblem) -> tuple[ClientStack, RoundPlan]:
    """With batches of 16, which fill a vector."""
    stack, plan = start(problem)
    return stack, dataclasses.replace(plan, sample_ids=plan.sample_ids.repeat(1, 1, 4)[..., :16])


def compare(problem: LocalProblem, *, scripted: bool, channels_last: bool = False) -> None:
    stack, plan = begin(problem)
    executor = ThreadedExecutor(problem, workers=2, channels_last=channels_last)
    got = stack, executor.run_round(stack, plan)
    assert scripted_steps(executor) == scripted
    assert ("cannot be traced" in str(got[1].notes)) != scripted
    assert executor.run_round(begin(problem)[0], plan).notes == (), "said once"
    other, plan = begin(problem)
    assert_same(got, (other, LoopedExecutor(problem).run_round(other, plan)), BEYOND_ROUNDING)


@pytest.mark.parametrize(
    "gate",
    [
        lambda module, x: x.mean().tolist() > 0,
        lambda module, x: bool(x.mean().numpy() > 0),
        lambda module, x: bool(np.asarray(x.mean()) > 0),
    ],
    ids=["tolist", "numpy", "asarray"],
)
def test_values_decide_which_way_it_goes(gate: Callable[[Gated, Tensor], bool]) -> None:
    torch.manual_seed(0)
    compare(problem_with(Gated(gate)), scripted=False)


@pytest.mark.parametrize("loss", [worst, kept])
def test_values_decide_how_much_there_is(loss: Any) -> None:
    torch.manual_seed(0)
    compare(problem_with(Gated(lambda module, x: True), loss=loss), scripted=False)


@pytest.mark.parametrize("gate", [counted, averaged])
def test_a_module_that_remembers(gate: Callable[[Gated, Tensor], bool]) -> None:
    problem = problem_with(Gated(gate))
    executor = ThreadedExecutor(problem, workers=1)
    with pytest.raises(UsageError, match="changes the attribute"):
        executor.run_round(*start(problem))
    assert not scripted_steps(executor)


@pytest.mark.parametrize("draw", [random.random, np.random.random], ids=["python", "numpy"])
def test_draws_that_are_not_torchs_are_noticed(draw: Callable[[], float], tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples = torch.randn(64, 90), torch.randint(0, 4, (64,))
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r'executor="threaded": .*random numbers'):
        fastlocal.train(
            Gated(lambda module, x: module.training and draw() > 0.1),
            *(samples, samples),
            clients=2,
            batch_size=8,
            directory=tmp_path / "run",
            executor="threaded",
        )
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]


class Residual(nn.Module):
    """What was added to a norm is changed afterwards; the norm's weight is zero at the start and would hide it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.last = nn.GroupNorm(4, 16), nn.Linear(32, 4)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.before(x)
        out = F.relu(self.norm(self.inner(1.0 * residual)) + residual)
        residual = F.relu(residual, inplace=True)
        both: Tensor = self.last(torch.cat([out.mean((2, 3)), residual.mean((2, 3))], 1))
        return both


class Sliced(nn.Module):
    """The gradient of one weight is a product with a part of another, which is updated first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(40, 90)), nn.Parameter(0.3 * torch.randn(40, 40))
        self.last = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x.flatten(1), self.first) / 10
        out: Tensor = self.last(torch.tanh(inner @ (self.first.detach()[:, :40] @ self.second) / 20))
        return out


@pytest.mark.parametrize("make", [Residual, Sliced])
def test_what_changes_in_place_is_not_read_afterwards(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    compare(problem_with(make()), scripted=True, channels_last=True)


class OneBias(nn.Module):
    """A bias that all outputs share, which lies in memory once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(40, 90)), nn.Parameter(torch.zeros(1))
        self.last = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(F.linear(x.flatten(1), self.weight, self.bias.expand(40))))
        return out


def in_bytes(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets.to(torch.uint8))


@pytest.mark.parametrize(("make", "loss"), [(OneBias, F.cross_entropy), (lambda: Gated(lambda *_: True), in_bytes)])
def test_unusual_operands(make: Callable[[], nn.Module], loss: Any) -> None:
    torch.manual_seed(0)
    compare(problem_with(make(), loss=loss), scripted=True)
