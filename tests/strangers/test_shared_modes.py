"""Modes that a loss or a hook reads from the module that it holds, and random states that forward sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from tests.helpers.plain_loop import Loss, LossOf
from tests.strangers.judge import EXECUTORS, TWO, assert_refused, assert_trains_as_plain
from tests.strangers.strange_data import COLUMNS, Net, seeded, table


def doubles_in_training() -> nn.Module:
    module = Net()
    module.a.register_forward_hook(lambda part, inputs, out: out * (2.0 if module.training else 1.0))
    return module


def doubles_though_evaluated() -> nn.Module:
    """A module that is given in evaluation mode as a whole is trained in training mode."""
    return doubles_in_training().eval()


def smooths_in_training(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1 if model.training else 0.0)


@pytest.mark.parametrize("make", [doubles_in_training, doubles_though_evaluated])
def test_a_hook_reads_the_mode_of_the_module_that_it_holds(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS)


def test_a_loss_reads_the_mode_of_the_module_that_it_holds() -> None:
    make = seeded(lambda: Net().eval())
    assert_trains_as_plain(make, table(), LossOf(smooths_in_training), executors=EXECUTORS)


@pytest.mark.parametrize("make", [doubles_in_training, doubles_though_evaluated])
@pytest.mark.parametrize("executor", TWO)
def test_evaluations_and_the_returned_model_are_in_evaluation_mode(make: Any, executor: str, tmp_path: Path) -> None:
    inputs, targets = (half[:24] for half in table())
    module: Any = seeded(make)()
    mode = module.training
    run = fastlocal.train(
        module, (inputs, targets), (inputs, targets), clients=2, batch_size=4, rounds=2, executor=executor,
        loss=smooths_in_training(module), precision="fp64", directory=tmp_path / "run", device="cpu", progress=False,
    )  # fmt: skip
    model: Any = run.model
    outputs = model.b(torch.tanh(F.linear(inputs, model.a.weight, model.a.bias)))
    assert torch.equal(run.model(inputs), outputs)
    assert run.history[-1]["val_loss"] == pytest.approx(F.cross_entropy(outputs, targets).item(), rel=1e-12)
    assert module.training is mode, "the user's module has changed"


class Replays(Net):
    """Draws the same numbers twice."""

    def between(self, hidden: Tensor) -> Tensor:
        state = torch.get_rng_state()
        first = torch.rand(COLUMNS, dtype=hidden.dtype)
        torch.set_rng_state(state)
        return hidden * (1 + first - torch.rand(COLUMNS, dtype=hidden.dtype))


class ReplaysDropout(Net):
    """As reversible networks do."""

    def between(self, hidden: Tensor) -> Tensor:
        state = torch.get_rng_state()
        once = F.dropout(hidden, 0.3)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            return once - F.dropout(hidden, 0.3)


class Seeds(Net):
    def between(self, hidden: Tensor) -> Tensor:
        torch.manual_seed(5)
        return hidden[:, torch.randperm(COLUMNS)]


class SeedsApart(Net):
    def between(self, hidden: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(5)
            return hidden * torch.rand(COLUMNS, dtype=hidden.dtype)


@pytest.mark.parametrize("make", [Replays, ReplaysDropout, Seeds, SeedsApart])
def test_a_forward_pass_that_sets_the_random_state_is_refused(make: Any) -> None:
    assert_refused(seeded(make), table(), executors=TWO if make is Seeds else ("auto",), says="in __init__")


class SeedsNothing(Net):
    """Sets the state and draws no number."""

    def between(self, hidden: Tensor) -> Tensor:
        torch.manual_seed(5)
        return hidden


def test_a_random_state_that_nothing_is_drawn_from_is_left() -> None:
    assert_trains_as_plain(seeded(SeedsNothing), table(), may_refuse=EXECUTORS)


class ReturnsNothing(Net):
    """Its train() does not return the module."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


class OneParameterLess(Net):
    def parameters(self, recurse: bool = True) -> Any:
        return self.b.parameters()


class CopiesItself(Net):
    def __deepcopy__(self, memo: Any) -> CopiesItself:
        return self


def test_a_train_that_returns_nothing() -> None:
    assert_trains_as_plain(seeded(ReturnsNothing), table(), executors=EXECUTORS)


@pytest.mark.parametrize(
    ("make", "says"), [(OneParameterLess, "leave out a.weight"), (CopiesItself, "__deepcopy__ gives the same")]
)
def test_overrides_that_hide_parameters_are_refused(make: Any, says: str) -> None:
    assert_refused(seeded(make), table(), executors=("auto",), says=says)
