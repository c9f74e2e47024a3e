"""Losses and hooks that hold the memory of a parameter, or change the model that they hold."""

from __future__ import annotations

import functools
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from tests.helpers.plain_loop import Loss, LossOf
from tests.strangers.judge import EXECUTORS, assert_refused, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table
from tests.strangers.test_closures import STRENGTH, Hooked, Lambda, norm


def of_detached(model: nn.Module) -> Loss:
    weights = [value.detach() for value in model.parameters()]
    return lambda out, y: F.cross_entropy(out, y) * (1 + STRENGTH * norm(weights))


def of_data(model: nn.Module) -> Loss:
    weights = [model.a.weight.data]
    return lambda out, y: F.cross_entropy(out, y) * (1 + STRENGTH * norm(weights))


def of_a_row(model: nn.Module) -> Loss:
    row = model.a.weight.detach()[0]
    return lambda out, y: F.cross_entropy(out, y) * (1 + STRENGTH * row.abs().sum())


def of_an_array(model: nn.Module) -> Loss:
    array = model.a.weight.detach().numpy()
    return lambda out, y: F.cross_entropy(out, y) * (1 + STRENGTH * float(abs(array).sum()))


class DataOfAnObject:
    def __init__(self, model: nn.Module) -> None:
        self.values = {"a": (model.a.weight.data,)}

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) * (1 + STRENGTH * norm(self.values["a"]))


class DataOfAModule(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("weight", model.a.weight.data)

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) * (1 + STRENGTH * norm([self.weight]))


@pytest.mark.parametrize("make", [of_detached, of_data, of_a_row, of_an_array, DataOfAnObject, DataOfAModule])
def test_a_loss_that_holds_the_memory_of_a_parameter_is_refused(make: Any) -> None:
    """It would follow the parameter in a plain loop, and stay at the start here."""
    assert_refused(seeded(Net), table(), LossOf(make), executors=("auto",), says="shares the memory")


def with_data_in_a_hook() -> nn.Module:
    module: Any = seeded(Net)()
    weight = module.b.weight.data
    module.a.register_forward_hook(lambda part, inputs, out: out + weight.sum())
    return module


def test_a_hook_that_holds_the_memory_of_a_parameter_is_refused() -> None:
    assert_refused(with_data_in_a_hook, table(), executors=("auto",), says="shares the memory")


class WithBuffer(Net):
    c: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("c", torch.ones(COLUMNS))

    def between(self, hidden: Tensor) -> Tensor:
        return hidden + self.c


def assigning(model: nn.Module) -> Loss:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        model.c = model.c * 0.9
        return F.cross_entropy(out, y)

    return loss


def adding(model: nn.Module) -> Loss:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        model.c += 0.1
        return F.cross_entropy(out, y)

    return loss


def in_place(model: nn.Module) -> Loss:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        model.c.mul_(0.9)
        return F.cross_entropy(out, y)

    return loss


def through_data(model: nn.Module) -> Loss:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        model.c.data.mul_(0.9)
        return F.cross_entropy(out, y)

    return loss


def counting(model: nn.Module) -> Loss:
    model.calls = 0

    def loss(out: Tensor, y: Tensor) -> Tensor:
        model.calls += 1
        return F.cross_entropy(out, y) / model.calls

    return loss


@pytest.mark.parametrize("make", [assigning, adding, in_place, through_data, counting])
def test_a_loss_that_changes_the_model_changes_the_clients_or_is_refused(make: Any) -> None:
    assert_trains_as_plain(seeded(WithBuffer), table(), LossOf(make), EXECUTORS, may_refuse=EXECUTORS)


def assigning_late(model: nn.Module) -> Loss:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        if float(model.n) > 4:
            model.c = model.c * 0.9
        return F.cross_entropy(out, y)

    return loss


class WithCount(WithBuffer):
    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def between(self, hidden: Tensor) -> Tensor:
        self.n += 1
        return super().between(hidden)


def test_a_loss_that_changes_the_model_late_is_refused() -> None:
    assert_trains_as_plain(seeded(WithCount), table(), LossOf(assigning_late), EXECUTORS, may_refuse=EXECUTORS)


def scaling_in_place() -> nn.Module:
    module: Any = Net()
    module.register_buffer("scale", torch.ones(COLUMNS))

    def hook(part: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        module.scale.mul_(0.9)
        return out + module.scale

    module.a.register_forward_hook(hook)
    return module


def clamping() -> nn.Module:
    module: Any = Net()

    def hook(part: nn.Module, inputs: Any) -> None:
        with torch.no_grad():
            module.b.weight.clamp_(-0.1, 0.1)

    module.a.register_forward_pre_hook(hook)
    return module


@pytest.mark.parametrize("make", [scaling_in_place, clamping])
def test_a_hook_that_changes_tensors_in_place_leaves_the_users_alone(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS, may_refuse=("stacked", "threaded"))


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(COLUMNS)

    def between(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


def consistent(model: nn.Module) -> Loss:
    noise = torch.linspace(-1, 1, 4 * COLUMNS, dtype=torch.float64).view(4, COLUMNS)
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * model(noise.to(out.dtype)).square().mean()


def test_a_loss_that_calls_a_model_with_norms_again() -> None:
    """Its statistics would be the user's: refused before the first round, with the cause."""
    assert_refused(seeded(Normed), table(), LossOf(consistent), ("looped", "auto"), says="by calling it")


def by_a_hook() -> nn.Module:
    module = nn.Sequential(nn.Linear(COLUMNS, CLASSES), nn.Identity())
    layer: Any = module[0]
    module[1].register_forward_hook(lambda part, inputs, out: out + layer.bias)
    return module


def by_a_method() -> nn.Module:
    module = Net()
    module.forward = lambda x: module.b(torch.tanh(x @ module.a.weight.T))  # type: ignore[method-assign]
    return module


class InAnObject(Net):
    """A recursive function in an object."""

    def __init__(self) -> None:
        super().__init__()

        def times(hidden: Tensor, left: int) -> Tensor:
            return hidden if left == 0 else times(hidden @ self.a.weight, left - 1)

        self.own = types.SimpleNamespace(functions=[functools.partial(times, left=2)])

    def between(self, hidden: Tensor) -> Tensor:
        return self.own.functions[0](hidden)


def by_functions_that_call_each_other() -> nn.Module:
    module: Any = Net()

    def even(hidden: Tensor, left: int) -> Tensor:
        return hidden if left == 0 else odd(hidden * module.b.bias.sum(), left - 1)

    def odd(hidden: Tensor, left: int) -> Tensor:
        return even(hidden @ module.a.weight, left - 1)

    module.between = lambda hidden: even(hidden, 4)
    return module


def by_a_tensors_method() -> nn.Module:
    module: Any = Net()
    module.total = module.b.weight.sum
    module.between = types.MethodType(lambda own, hidden: hidden * own.total(), module)
    return module


def by_an_attribute_of_a_function() -> nn.Module:
    module: Any = Net()

    def between(hidden: Tensor) -> Tensor:
        return hidden * between.weight.sum()  # type: ignore[attr-defined]

    between.weight = module.b.weight  # type: ignore[attr-defined]
    module.between = between
    return module


REBOUND = [by_functions_that_call_each_other, by_a_tensors_method, by_an_attribute_of_a_function]


@pytest.mark.parametrize("make", [*REBOUND, InAnObject, by_a_hook, by_a_method, Hooked, Lambda])
def test_the_returned_model_computes_with_its_own_parameters(make: Any, tmp_path: Path) -> None:
    """Not with those of the user's module, which a hook or a function of the module holds."""
    inputs, targets = (half[:24] for half in table())
    module = seeded(make)()
    run = fastlocal.train(
        module, (inputs, targets), (inputs, targets), clients=2, batch_size=4, rounds=2, lr=0.3,
        executor="looped", precision="fp64", directory=tmp_path / "run", device="cpu", progress=False,
    )  # fmt: skip
    outputs = run.model(inputs)
    assert F.cross_entropy(outputs, targets).item() == pytest.approx(run.history[-1]["val_loss"], rel=1e-12)
    before = module(inputs)
    module.load_state_dict(run.model.state_dict())
    assert not torch.equal(before, module(inputs))
    assert torch.allclose(outputs, module(inputs), rtol=1e-12)
