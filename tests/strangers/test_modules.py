"""Modules as strangers bring them, in every executor against the plain loop, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastlocal
from tests.strangers.judge import EXECUTORS, TWO, assert_refused, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, images, seeded, table

LOOP_ALONE = ("stacked", "threaded")


RECIPES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "nesterov and decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adamw": {"client_optimizer": "adamw", "weight_decay": 0.1, "lr": 0.02},
    "one client": {"clients": 1, "batch_size": 7},
    "samples that are left over": {"clients": 3, "batch_size": 5, "seed": 11},
    "one sample": {"clients": 7, "batch_size": 1, "local_steps": 1},
    "epochs within a round": {"clients": 8, "batch_size": 6, "local_steps": 5, "rounds": 2},
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes(kind: str) -> None:
    executors = EXECUTORS if kind in ("nesterov and decay", "epochs within a round") else TWO
    settings = {"chunk": 2} if kind == "samples that are left over" else {}
    assert_trains_as_plain(seeded(Net), table(101), executors=executors, settings=settings, **RECIPES[kind])


def normed() -> nn.Module:
    """Norms in training mode, with and without statistics."""
    norms = nn.BatchNorm1d(8), nn.BatchNorm1d(8, track_running_stats=False), nn.LayerNorm(8), nn.GroupNorm(2, 8)
    return nn.Sequential(nn.Linear(COLUMNS, 8), *norms, nn.ReLU(), nn.Linear(8, CLASSES))


class Branches(Net):
    def between(self, hidden: Tensor) -> Tensor:
        return hidden if hidden.sum() > 0 else 2 * hidden


class Repeats(Net):
    """How often is a number in a tensor."""

    def between(self, hidden: Tensor) -> Tensor:
        for _ in range(1 + int(hidden.abs().max().item() * 3)):
            hidden = torch.tanh(self.a(hidden))
        return hidden


class Masks(Net):
    """Writes to the rows that a mask selects."""

    def between(self, hidden: Tensor) -> Tensor:
        out = hidden.clone()
        out[hidden > 0.5] = 0.5
        return out


class Checkpointed(Net):
    def between(self, hidden: Tensor) -> Tensor:
        return checkpoint(lambda value: torch.tanh(self.a(value)), hidden, use_reentrant=False)


class Turns(torch.autograd.Function):
    """Turns the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return -0.5 * grad


class OwnFunction(Net):
    def between(self, hidden: Tensor) -> Tensor:
        return Turns.apply(hidden)


class InPlace(Net):
    def between(self, hidden: Tensor) -> Tensor:
        hidden = hidden * 2
        hidden[:, 0] += 1
        return hidden.add_(0.1).relu_()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(len(x), 3, 2))[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(COLUMNS, 2, batch_first=True)
        self.head = nn.Linear(COLUMNS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, x.flip(1)], dim=1)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(dim=1))


class Slope(Net):
    """Its outputs hold a derivative of a layer."""

    def between(self, hidden: Tensor) -> Tensor:
        with torch.enable_grad():
            point = hidden if hidden.requires_grad else hidden.requires_grad_()
            (grad,) = torch.autograd.grad(torch.tanh(self.a(point)).sum(), point, create_graph=True)
        return hidden + grad


class Containers(nn.Module):
    """Parameters in torch's own list and dictionary, and one of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.ParameterList([torch.randn(COLUMNS, CLASSES), torch.randn(CLASSES)])
        self.named = nn.ParameterDict({"gain": torch.tensor(0.5), "shift": torch.zeros(1)})

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.many[0]) * self.named["gain"] + self.many[1] + self.named["shift"]


def parallel() -> nn.Module:
    return nn.DataParallel(Net())


def lazy() -> nn.Module:
    """A lazy layer that has seen a batch."""
    module = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(CLASSES))
    module(table()[0][:2].float())
    return module


MODULES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "norms": (normed, ()),
    "a branch": (Branches, LOOP_ALONE),
    "a number of times": (Repeats, LOOP_ALONE),
    "a mask": (Masks, LOOP_ALONE),
    "checkpoint": (Checkpointed, LOOP_ALONE),
    "a function of its own": (OwnFunction, LOOP_ALONE),
    "in place": (InPlace, LOOP_ALONE),
    "recurrent": (Recurrent, LOOP_ALONE),
    "attention": (Attention, ()),
    "autograd in forward": (Slope, LOOP_ALONE),
    "containers": (Containers, ()),
    "DataParallel": (parallel, EXECUTORS),
    "a lazy layer": (lazy, ()),
}


@pytest.mark.parametrize("kind", MODULES)
def test_modules(kind: str) -> None:
    make, may_refuse = MODULES[kind]
    executors = EXECUTORS if kind in ("norms", "a branch", "containers") else TWO
    assert_trains_as_plain(seeded(make), table(), executors=executors, may_refuse=may_refuse, momentum=0.5)


def convolutions() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    layers = nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.GroupNorm(3, 6)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, CLASSES))


def test_images() -> None:
    assert_trains_as_plain(seeded(convolutions), images(), executors=EXECUTORS, momentum=0.9, nesterov=True)


def uninitialised() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, CLASSES))


def meta() -> nn.Module:
    return nn.Linear(COLUMNS, CLASSES, device="meta")


def several() -> nn.Module:
    class Several(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    return Several()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (uninitialised, "has no shape yet"),
        (meta, "on the device meta"),
        (several, "returns tuple, not one tensor"),
        (lambda: Net, "is the class Net"),
        (lambda: torch.tanh, "not an nn.Module"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(make: Any, says: str, tmp_path: Path) -> None:
    inputs, targets = table()
    pair = (inputs.float(), targets)
    with pytest.raises(ValueError) as raised:
        fastlocal.train(make(), pair, pair, clients=4, batch_size=4, directory=tmp_path / "run")
    assert "\n" not in str(raised.value) and says in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_returns_several_numbers_is_refused() -> None:
    assert_refused(seeded(Net), table(), lambda out, y: F.cross_entropy(out, y, reduction="none"), says="one number")
