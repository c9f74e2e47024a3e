"""Losses of all kinds, those with a state or parameters of their own among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.plain_loop import Data, LossOf
from tests.strangers.judge import EXECUTORS, TWO, assert_refused, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table

PLAIN: dict[str, Any] = {
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weights": nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)),
    "a sum": nn.CrossEntropyLoss(reduction="sum"),
    "margins": nn.MultiMarginLoss(),
    "a mean of losses": lambda out, y: F.cross_entropy(out, y, reduction="none").mean(),
    "focal": lambda out, y: ((1 - F.softmax(out, 1).gather(1, y[:, None])) ** 2 * F.cross_entropy(out, y)).mean(),
    "the median": lambda out, y: F.cross_entropy(out, y, reduction="none").median(),
    "entropy": lambda out, y: F.cross_entropy(out, y) + 0.1 * torch.special.entr(F.softmax(out, 1)).sum(1).mean(),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_losses_of_labels(kind: str) -> None:
    executors = EXECUTORS if kind == "weights" else TWO
    assert_trains_as_plain(seeded(Net), table(), PLAIN[kind], executors, may_refuse=("stacked", "threaded"), lr=0.05)


def ignored() -> Data:
    """A third of the labels do not count."""
    inputs, targets = table()
    return inputs, torch.where(torch.arange(len(targets)) % 3 == 0, -100, targets)


def test_ignored_labels() -> None:
    """A batch has eight, so that some count in each."""
    assert_trains_as_plain(seeded(Net), ignored(), nn.CrossEntropyLoss(ignore_index=-100), EXECUTORS, batch_size=8)
    assert_trains_as_plain(seeded(Net), ignored(), may_refuse=EXECUTORS, batch_size=8)


REGRESSIONS: dict[str, Any] = {
    "squares": nn.MSELoss(),
    "Huber's": nn.HuberLoss(delta=0.5),
    "logits": lambda out, y: F.binary_cross_entropy_with_logits(out, (y > 0).to(out.dtype)),
    "weights of the positive": lambda out, y: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0, dtype=out.dtype))(
        out, (y > 0).to(out.dtype)
    ),
    "cosines": lambda out, y: 1 - F.cosine_similarity(out, y).mean(),
    "quantiles": lambda out, y: torch.maximum(0.9 * (y - out), -0.1 * (y - out)).mean(),
}


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_losses_of_numbers(kind: str) -> None:
    inputs, _ = table()
    data = (inputs, inputs[:, :CLASSES].clone())
    executors = EXECUTORS if kind == "squares" else TWO
    assert_trains_as_plain(seeded(Net), data, REGRESSIONS[kind], executors, may_refuse=("stacked", "threaded"))


class Switches:
    """Another loss from its 30th call on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(out, y) * (1.0 if self.calls < 30 else 0.1)


class SwitchesModule(nn.Module):
    """The same, counted in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(out, y) * torch.where(self.calls < 30, 1.0, 0.1)


class Smooths:
    """Divides by a moving average of its own values."""

    def __init__(self) -> None:
        self.average = 1.0

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        value = F.cross_entropy(out, y)
        self.average = 0.9 * self.average + 0.1 * value.item()
        return value / self.average


def warming() -> Any:
    """A closure over a list that grows."""
    calls: list[int] = []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return F.cross_entropy(out, y) * min(1.0, len(calls) / 40)

    return loss


class Remembers:
    """Compares with the outputs of the call before."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        before, self.last = self.last, out.detach()
        value = F.cross_entropy(out, y)
        return value if before is None else value + 0.1 * (out - before).square().mean()


@pytest.mark.parametrize("make", [Switches, SwitchesModule, Smooths, Remembers])
def test_a_loss_with_a_state_is_called_as_in_the_loop_or_refused(make: Any) -> None:
    executors = EXECUTORS if make is Switches else ("looped", "auto")
    assert_trains_as_plain(seeded(Net), table(), make(), executors, may_refuse=EXECUTORS)


def test_a_loss_whose_closure_grows_is_called_as_in_the_loop_or_refused() -> None:
    loss = LossOf(lambda module: warming())  # which a copy of the loss would not make anew
    assert_trains_as_plain(seeded(Net), table(), loss, may_refuse=EXECUTORS)


class KeepsPrevious(Net):
    """Centers by the batch before."""

    previous: Tensor | None = None

    def between(self, hidden: Tensor) -> Tensor:
        before, self.previous = self.previous, hidden.detach().mean(dim=0)
        return hidden if before is None else hidden - before


class NormInTurns(Net):
    """Reads the running statistics that the same call has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(COLUMNS)

    def between(self, hidden: Tensor) -> Tensor:
        out = self.norm(hidden)
        self.norm.eval()
        out = out + self.norm(hidden)
        self.norm.train()
        return out


@pytest.mark.parametrize("make", [KeepsPrevious, NormInTurns])
def test_a_loss_with_a_state_hides_no_state_of_the_module(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), Switches(), may_refuse=EXECUTORS)


class LearnedScale(nn.CrossEntropyLoss):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return super().forward(out * self.scale, y)


class Centers(nn.Module):
    """A loss around centers that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Embedding(CLASSES, CLASSES).double()

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + (out - self.centers(y)).square().mean()


def temperature() -> Any:
    value = nn.Parameter(torch.ones((), dtype=torch.float64))
    return lambda out, y: F.cross_entropy(out / value, y)


class ScaleOfAttribute:
    """An object that is no module and has a parameter."""

    def __init__(self) -> None:
        self.scale = torch.ones(CLASSES, dtype=torch.float64, requires_grad=True)

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out * self.scale, y)


@pytest.mark.parametrize("make", [LearnedScale, Centers, temperature, ScaleOfAttribute])
def test_a_loss_with_parameters_of_its_own_is_refused(make: Any) -> None:
    executors = EXECUTORS if make is LearnedScale else ("auto",)
    assert_refused(seeded(Net), table(), make(), executors, says="part of the model")


def test_a_loss_with_frozen_parameters_trains() -> None:
    loss = Centers().requires_grad_(False)
    assert_trains_as_plain(seeded(Net), table(), loss, may_refuse=("stacked", "threaded"))


class DrawsAgain:
    """Draws the same numbers at each call, from a generator of its own."""

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return F.cross_entropy(out * torch.rand(CLASSES, generator=generator, dtype=out.dtype), y)


def test_a_loss_that_draws_from_its_own_generator_repeats_or_is_refused() -> None:
    assert_trains_as_plain(seeded(Net), table(), DrawsAgain(), may_refuse=EXECUTORS)
