"""Parts that the user's module keeps in evaluation mode: they train as they are, and are the same in tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.strangers.judge import EXECUTORS, TWO, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, images, seeded, table


def with_statistics(norm: Any) -> Any:
    """A norm whose running statistics are not those that it starts with."""
    norm.running_mean.copy_(torch.linspace(-0.5, 0.5, len(norm.running_mean)))
    norm.running_var.copy_(torch.linspace(0.5, 2.0, len(norm.running_var)))
    return norm


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = with_statistics(nn.BatchNorm1d(COLUMNS))

    def between(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class FrozenByTrain(Normed):
    """Its norm stays in evaluation mode, whatever mode is set."""

    def train(self, mode: bool = True) -> FrozenByTrain:
        super().train(mode)
        self.norm.eval()
        return self


class FrozenNorm(nn.BatchNorm1d):
    """A norm that knows no training mode."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class OfFrozenNorm(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.norm = with_statistics(FrozenNorm(COLUMNS))


class HalfFrozen(Normed):
    """One norm is frozen, another of the same kind is not."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm1d(COLUMNS)

    def train(self, mode: bool = True) -> HalfFrozen:
        super().train(mode)
        self.norm.eval()
        return self

    def between(self, hidden: Tensor) -> Tensor:
        return self.other(self.norm(hidden))


class FrozenWhole(FrozenByTrain):
    """The norm's parameters are frozen too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm.requires_grad_(False)


def evaluated() -> nn.Module:
    module = Normed()
    module.norm.eval()
    return module


def backbone() -> nn.Module:
    """A frozen feature extractor with a norm and dropout, in evaluation mode, and a head that trains."""
    body = nn.Sequential(nn.Linear(COLUMNS, 8), with_statistics(nn.BatchNorm1d(8)), nn.ReLU(), nn.Dropout(0.5))
    module = nn.Sequential(body, nn.Linear(8, CLASSES))
    body.requires_grad_(False).eval()
    return module


def without_dropout() -> nn.Module:
    module = nn.Sequential(nn.Linear(COLUMNS, 8), nn.Dropout(0.9), nn.Linear(8, CLASSES))
    module[1].eval()
    return module


def layer_norm() -> nn.Module:
    module = nn.Sequential(nn.Linear(COLUMNS, 8), nn.LayerNorm(8), nn.Dropout1d(0.5), nn.Linear(8, CLASSES))
    module[1].eval()
    module[2].eval()
    return module


def momentum_none() -> nn.Module:
    """Frozen, with the statistics of all batches so far, and without scales."""
    norm = with_statistics(nn.BatchNorm1d(8, momentum=None, affine=False))
    module = nn.Sequential(nn.Linear(COLUMNS, 8), norm, nn.Tanh(), nn.Linear(8, CLASSES))
    module[1].eval()
    return module


def without_statistics() -> nn.Module:
    """Evaluation mode makes no difference to a norm that keeps no statistics."""
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    module = nn.Sequential(nn.Linear(COLUMNS, 8), norm, nn.Linear(8, CLASSES))
    module[1].eval()
    return module


class FrozenByFlag(Net):
    """Reads the mode of a part in its own forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Identity()
        self.gate.eval()

    def between(self, hidden: Tensor) -> Tensor:
        return hidden if self.gate.training else 0.5 * hidden


class Functional(Net):
    """Calls the functional norm with statistics that never change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.5, 0.5, COLUMNS))
        self.register_buffer("spread", torch.linspace(0.5, 2.0, COLUMNS))

    def between(self, hidden: Tensor) -> Tensor:
        return F.batch_norm(hidden, self.mean, self.spread, training=False)


class AsksItself(Net):
    """Does another thing in training than in tests."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * 0.5 if self.training else hidden


MODULES = {
    "by train()": FrozenByTrain,
    "by the part's own train()": OfFrozenNorm,
    "one of two norms": HalfFrozen,
    "a norm with frozen parameters": FrozenWhole,
    "by eval() before": evaluated,
    "a frozen backbone with dropout": backbone,
    "dropout": without_dropout,
    "layer norm and dropout": layer_norm,
    "a norm of all batches": momentum_none,
    "a norm without statistics": without_statistics,
    "a flag that forward reads": FrozenByFlag,
    "the functional norm": Functional,
    "forward asks for its mode": AsksItself,
}


@pytest.mark.parametrize("kind", MODULES)
def test_parts_in_evaluation_mode(kind: str) -> None:
    executors = EXECUTORS if kind in ("by train()", "a frozen backbone with dropout") else TWO
    assert_trains_as_plain(seeded(MODULES[kind]), table(), executors=executors, momentum=0.9, weight_decay=0.01)


def convolutions() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        with_statistics(nn.BatchNorm2d(4)),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    module[1].eval()
    module[3].eval()
    return module


def instances() -> nn.Module:
    """An instance norm that uses the statistics it has."""
    norm = with_statistics(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    module = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Flatten(), nn.Linear(16, CLASSES))
    module[1].eval()
    return module


def test_a_frozen_norm_of_images() -> None:
    assert_trains_as_plain(seeded(convolutions), images(), executors=EXECUTORS)


def test_an_instance_norm_with_statistics_trains_as_plain_or_is_refused() -> None:
    assert_trains_as_plain(seeded(instances), images(), may_refuse=EXECUTORS)
