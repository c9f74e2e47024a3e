"""Activations that a module keeps for its loss, inputs that it changes, derivatives that it takes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastlocal
from tests.helpers.plain_loop import Loss, LossOf
from tests.strangers.judge import EXECUTORS, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table

ACTIVATIONS: dict[str, Tensor] = {}


class Balance(nn.Module):
    """A part that keeps a penalty, as mixtures of experts do."""

    def forward(self, hidden: Tensor) -> Tensor:
        self.penalty = hidden.softmax(1).mean(0).square().sum()
        return hidden


class KeepsPenalty(Net):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Balance(), Balance()])

    def between(self, hidden: Tensor) -> Tensor:
        for part in self.parts:
            hidden = part(hidden)
        return hidden


class BeginsWithNone(KeepsPenalty):
    """Has a penalty before the first forward pass too, which a loss could go on adding."""

    def __init__(self) -> None:
        super().__init__()
        for part in self.parts:
            part.penalty = torch.zeros(())


class KeepsList(Net):
    """Begins a list of activations anew in each call."""

    def between(self, hidden: Tensor) -> Tensor:
        self.kept = [hidden]
        self.kept.append(torch.tanh(hidden))
        return self.kept[-1]


def of_parts(model: Any) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + sum(part.penalty for part in model.parts)


def of_a_list(model: Any) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * sum(value.square().mean() for value in model.kept)


def into_a_dictionary() -> nn.Module:
    module = Net()
    module.a.register_forward_hook(lambda part, inputs, out: ACTIVATIONS.update(hidden=out))
    return module


def of_a_dictionary(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * ACTIVATIONS["hidden"].square().mean()


class FillsDictionary(Net):
    """Fills a dictionary and a list that __init__ made."""

    def __init__(self) -> None:
        super().__init__()
        self.feats: dict[str, Tensor] = {}
        self.kept: list[Tensor] = []

    def between(self, hidden: Tensor) -> Tensor:
        self.feats["hidden"] = hidden
        self.kept.clear()
        self.kept.append(torch.tanh(hidden))
        return self.kept[0]


def of_features(model: Any) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * (model.feats["hidden"] * model.kept[0]).square().mean()


LOSS_OF = {
    FillsDictionary: of_features,
    KeepsPenalty: of_parts,
    BeginsWithNone: of_parts,
    KeepsList: of_a_list,
    into_a_dictionary: of_a_dictionary,
}


@pytest.mark.parametrize("make", LOSS_OF)
def test_a_loss_that_reads_what_forward_keeps(make: Any) -> None:
    refused = assert_trains_as_plain(seeded(make), table(), LossOf(LOSS_OF[make]), EXECUTORS, may_refuse=("threaded",))
    assert "threads would share" in refused["threaded"]


def test_its_test_loss_is_that_of_the_test_samples(tmp_path: Path) -> None:
    """Not with the penalty of the last training batch."""
    inputs, targets = (half[:24] for half in table())
    module: Any = seeded(KeepsPenalty)()
    run = fastlocal.train(
        module, (inputs, targets), (inputs, targets), clients=2, batch_size=4, rounds=2, loss=of_parts(module),
        precision="fp64", directory=tmp_path / "run", device="cpu", progress=False,
    )  # fmt: skip
    model: Any = run.model
    wanted = F.cross_entropy(model(inputs), targets) + sum(part.penalty for part in model.parts)
    assert run.history[-1]["val_loss"] == pytest.approx(wanted.item(), rel=1e-12)
    assert not hasattr(module.parts[0], "penalty"), "the user's module has changed"


class Shifts(Net):
    """Changes its input."""

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.1)
        return super().forward(x)


class ShiftsTestSamples(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            x.sub_(0.1)
        return super().forward(x)


class Rectifies(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.ReLU(inplace=True), nn.Linear(COLUMNS, CLASSES))


class Reentrant(Net):
    """Its backward pass refuses torch.autograd.grad."""

    def between(self, hidden: Tensor) -> Tensor:
        return checkpoint(lambda value: torch.tanh(self.a(value)), hidden, use_reentrant=True)


class ByInputs(Net):
    """Adds its derivative by its inputs, which are leaves of the graph and no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            out = super().forward(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            return out + 0.1 * slope.square().sum(1, keepdim=True)


class ByZeros(Net):
    """Takes a derivative by a tensor that each call makes."""

    def between(self, hidden: Tensor) -> Tensor:
        with torch.enable_grad():
            shift = torch.zeros(COLUMNS, requires_grad=True, dtype=hidden.dtype)
            (slope,) = torch.autograd.grad(self.b(hidden + shift).square().sum(), shift, create_graph=True)
            return hidden - 0.01 * slope


@pytest.mark.parametrize("make", [Shifts, ShiftsTestSamples, Rectifies, Reentrant, ByInputs, ByZeros])
def test_inputs_that_change_and_derivatives_in_forward(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS, may_refuse=("stacked",))


@pytest.mark.parametrize("make", [ShiftsTestSamples, Rectifies])
def test_an_evaluation_leaves_the_test_samples_alone(make: Any, tmp_path: Path) -> None:
    inputs, targets = (half[:24] for half in table())
    run = fastlocal.train(
        seeded(make)(), (inputs, targets), (inputs.clone(), targets), clients=2, batch_size=4, rounds=3, lr=1e-12,
        precision="fp64", directory=tmp_path / "run", device="cpu", progress=False,
    )  # fmt: skip
    losses = [row["val_loss"] for row in run.history]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-9)


class SlopeWithoutCare(Net):
    """Takes a derivative in forward, also where an evaluation would be within no_grad()."""

    def between(self, hidden: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(hidden.square().sum(), self.a.weight, create_graph=True)
        return hidden + 0.1 * slope.sum(1)


class NormedSlope(SlopeWithoutCare):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(COLUMNS)

    def between(self, hidden: Tensor) -> Tensor:
        return self.norm(super().between(hidden))


def on_gradients(model: nn.Module) -> Loss:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        slopes = torch.autograd.grad(out.sum(), list(model.parameters()), create_graph=True)
        return F.cross_entropy(out, y) + 0.01 * sum(slope.square().sum() for slope in slopes)

    return loss


@pytest.mark.parametrize("make", [SlopeWithoutCare, NormedSlope])
def test_derivatives_in_an_evaluation(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS, may_refuse=("stacked",))


def test_a_loss_with_derivatives() -> None:
    assert_trains_as_plain(seeded(Net), table(), LossOf(on_gradients), executors=EXECUTORS, may_refuse=("stacked",))
