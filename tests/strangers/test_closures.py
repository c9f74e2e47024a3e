"""Losses, functions and attributes that hold the user's own module or its parameters: they mean the client's."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from tests.helpers.plain_loop import Loss, LossOf
from tests.strangers.judge import EXECUTORS, TWO, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table

HELD: dict[str, nn.Module] = {}
STRENGTH = 0.05


def norm(parameters: Any) -> Tensor:
    return torch.stack([value.abs().sum() for value in parameters]).sum()


def over_all(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + STRENGTH * sum(p.abs().sum() for p in model.parameters())


def over_one_layer(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + STRENGTH * model.a.weight.square().sum()


def of_a_default(model: nn.Module) -> Loss:
    return lambda out, y, weight=model.b.weight: F.cross_entropy(out, y) + STRENGTH * weight.abs().sum()


def of_captured(model: nn.Module) -> Loss:
    parameters = [model.a.weight, model.b.bias]
    return lambda out, y: F.cross_entropy(out, y) + STRENGTH * norm(parameters)


def penalised(model: nn.Module, out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y) + STRENGTH * norm(model.parameters())


def of_a_partial(model: nn.Module) -> Loss:
    return functools.partial(penalised, model)


def of_a_bound_method(model: nn.Module) -> Loss:
    return types.MethodType(penalised, model)


class Penalty:
    """A loss that is an object and holds the module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return penalised(self.model, out, y)


class PenaltyModule(nn.Module):
    """A loss that is a module and has the user's as a part."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return penalised(self.model, out, y)


def of_a_global(model: nn.Module) -> Loss:
    HELD["model"] = model
    return lambda out, y: penalised(HELD["model"], out, y)


def of_the_distance_from_the_start(model: nn.Module) -> Loss:
    start = [value.detach().clone() for value in model.parameters()]

    def loss(out: Tensor, y: Tensor) -> Tensor:
        away = zip(model.parameters(), start, strict=True)
        return F.cross_entropy(out, y) + sum((p - s.to(p.dtype)).square().sum() for p, s in away)

    return loss


def of_values_without_gradients(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) * (1 + STRENGTH * model.state_dict()["a.weight"].abs().mean())


def of_the_module_called_again(model: nn.Module) -> Loss:
    fixed = table()[0][:3]
    return lambda out, y: F.cross_entropy(out, y) + STRENGTH * model(fixed).square().mean()


LOSSES: dict[str, Callable[[nn.Module], Loss]] = {
    "over all parameters": over_all,
    "over one layer": over_one_layer,
    "a default argument": of_a_default,
    "captured parameters": of_captured,
    "a partial": of_a_partial,
    "a bound method": of_a_bound_method,
    "an object": Penalty,
    "a module": PenaltyModule,
    "a global": of_a_global,
    "the distance from the start": of_the_distance_from_the_start,
    "values without gradients": of_values_without_gradients,
    "the module called again": of_the_module_called_again,
}
MUST_TRAIN = ("over all parameters", "over one layer", "a default argument", "captured parameters", "a partial")


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_that_holds_the_module_sees_the_clients(kind: str) -> None:
    may_refuse = ("stacked", "threaded") if kind in MUST_TRAIN else EXECUTORS
    executors = EXECUTORS if kind == "over all parameters" else TWO
    assert_trains_as_plain(seeded(Net), table(), LossOf(LOSSES[kind]), executors, may_refuse=may_refuse)


class Headless(nn.Module):
    """Leaves its last layer to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(COLUMNS, COLUMNS)
        self.head = nn.Linear(COLUMNS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x)).reshape(len(x), 2, 3)


def through_the_head(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(model.head(out.flatten(1)), y)


def test_a_layer_that_the_loss_alone_reaches() -> None:
    assert_trains_as_plain(seeded(Headless), table(), LossOf(through_the_head), may_refuse=EXECUTORS)


class Lambda(Net):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda hidden: hidden @ self.a.weight

    def between(self, hidden: Tensor) -> Tensor:
        return self.function(hidden)


class Partial(Lambda):
    def __init__(self) -> None:
        super().__init__()
        self.function = functools.partial(torch.matmul, other=self.a.weight)


class Bound(Lambda):
    def __init__(self) -> None:
        super().__init__()
        self.function = self.twice

    def twice(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.a(hidden))


class Hooked(Net):
    """A hook that was made by a function around the module."""

    def __init__(self) -> None:
        super().__init__()
        self.a.register_forward_hook(lambda part, inputs, out: out + self.b.weight.sum())


class Captured(Net):
    """A parameter in a closure alone has no name: torch.optim.SGD(model.parameters()) does not train it."""

    def __init__(self) -> None:
        super().__init__()
        gain = nn.Parameter(torch.full((COLUMNS,), 1.5, dtype=torch.float64))
        self.function = lambda hidden: hidden * gain

    def between(self, hidden: Tensor) -> Tensor:
        return self.function(hidden)


@pytest.mark.parametrize("make", [Lambda, Partial, Bound, Hooked, Captured])
def test_functions_that_a_module_keeps_see_the_clients_parameters(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS if make is Lambda else TWO, may_refuse=EXECUTORS)


@pytest.mark.parametrize("reached_by", ["the loss", "a hook"])
@pytest.mark.parametrize("executor", ["looped", "stacked"])
def test_the_test_loss_is_that_of_the_averaged_parameters(executor: str, reached_by: str, tmp_path: Path) -> None:
    """Not that of the user's own parameters, which the loss or the hook holds and which are not trained."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(COLUMNS, CLASSES))
    layer: Any = module[0]
    inputs, targets = torch.randn(24, COLUMNS), torch.arange(24) % CLASSES

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        own = layer.weight.square().sum() if reached_by == "the loss" else 0.0
        return F.cross_entropy(outputs, labels) + own

    if reached_by == "a hook":
        layer.register_forward_hook(lambda part, given, outputs: outputs + layer.bias)
    run = fastlocal.train(
        module, (inputs, targets), (inputs, targets), clients=2, batch_size=4, rounds=2, lr=0.3, loss=loss,
        executor=executor, precision="fp64", directory=tmp_path / "run", device="cpu", progress=False,
    )  # fmt: skip
    trained = {name: value.double() for name, value in run.model.state_dict().items()}
    outputs = inputs.double() @ trained["0.weight"].T + trained["0.bias"] * (1 if reached_by == "the loss" else 2)
    wanted = F.cross_entropy(outputs, targets)
    wanted += trained["0.weight"].square().sum() if reached_by == "the loss" else 0.0
    assert run.history[-1]["val_loss"] == pytest.approx(wanted.item(), rel=1e-9)
