"""What a plain loop trains and what may end in a traceback or with a wrong blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.plain_loop import Recipe, plain_train
from tests.strangers.judge import EXECUTORS, TWO, assert_refused, assert_trains_as_plain, train
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table


class Jacobian(Net):
    """Its outputs hold a derivative of a layer."""

    def between(self, hidden: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(row @ self.a.weight)))(hidden)
        return hidden + slopes.diagonal(dim1=1, dim2=2)


class Extra(Net):
    """Has a state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 2}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 2}


class ExtraTensor(Extra):
    """Its state is a tensor of two numbers."""

    def get_extra_state(self) -> Any:
        return torch.tensor([1.0, 2.0])

    def set_extra_state(self, state: Any) -> None:
        assert len(state) == 2


@pytest.mark.parametrize("make", [Extra, ExtraTensor])
def test_a_state_that_is_no_parameter(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), may_refuse=("threaded",))


class Hessian(Net):
    """Its outputs hold a second derivative."""

    def between(self, hidden: Tensor) -> Tensor:
        def energy(row: Tensor) -> Tensor:
            return torch.tanh(row @ self.a.weight).square().sum()

        return hidden + torch.func.vmap(torch.func.hessian(energy))(hidden).sum(dim=2)


class Directional(Net):
    """A derivative along a direction, forwards."""

    def between(self, hidden: Tensor) -> Tensor:
        return torch.func.jvp(lambda value: torch.tanh(value @ self.a.weight), (hidden,), (hidden * 0.5,))[1]


class OwnGradient(Net):
    """The gradient of an energy, as of potentials."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden - 0.3 * torch.func.grad(lambda value: torch.tanh(value @ self.a.weight).sum())(hidden)


@pytest.mark.parametrize("make", [Jacobian, Hessian, Directional, OwnGradient])
def test_derivatives_in_forward(make: Any) -> None:
    executors = EXECUTORS if make is Jacobian else TWO
    assert_trains_as_plain(seeded(make), table(), executors=executors, may_refuse=("stacked", "threaded"), momentum=0.5)


class HookedHidden(Net):
    """Scales the gradient of its hidden layer, which has none within no_grad()."""

    def between(self, hidden: Tensor) -> Tensor:
        hidden.register_hook(lambda grad: 0.5 * grad)
        return hidden + 1


def test_a_forward_that_needs_gradients_in_tests() -> None:
    assert_trains_as_plain(seeded(HookedHidden), table(), executors=EXECUTORS, may_refuse=("stacked",))


class Unregistered(Net):
    """A part in a plain list, which torch.optim.SGD(model.parameters()) leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(COLUMNS, COLUMNS).double()]

    def between(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers[0](hidden)


def test_a_layer_that_is_not_registered_is_no_fault_of_the_loss() -> None:
    assert_refused(seeded(Unregistered), table(), executors=("auto",), says="its forward depends on a tensor of shape")


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 8), nn.Tanh(), nn.Linear(8, CLASSES))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model: it is of torch\.jit.*; give the plain module$"):
        train(lambda: torch.jit.script(seeded(layers)()), table(), F.cross_entropy, tmp_path / "run", Recipe())


def test_gradients_are_on_within_no_grad(tmp_path: Path) -> None:
    """A call within no_grad() trains as any other, or is refused."""
    wanted = plain_train(seeded(Net)(), table(), F.cross_entropy, Recipe())
    with torch.no_grad():
        try:
            run = train(seeded(Net), table(), F.cross_entropy, tmp_path / "run", Recipe())
        except ValueError as refusal:
            assert "no_grad" in str(refusal) and "\n" not in str(refusal)
            return
    torch.testing.assert_close(run.model.b.weight, wanted.parameters["b.weight"], rtol=1e-9, atol=1e-9)
