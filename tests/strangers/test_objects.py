"""State in objects that are neither attributes of the module nor plain containers."""

from __future__ import annotations

import array
import collections
import cProfile
import itertools
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastlocal
from tests.helpers.plain_loop import LossOf
from tests.strangers.judge import EXECUTORS, assert_refused, assert_trains_as_plain
from tests.strangers.strange_data import Net, seeded, table


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Stack(list[float]):
    """A list with an attribute."""

    calls = 0


def in_tensor(own: Any) -> float:
    own.add_(1)
    return float(own)


def in_elements(own: Any) -> float:
    own[0] += 1
    return float(own[0])


def in_slot(own: Any) -> float:
    own.calls += 1
    return float(own.calls)


def in_nested(own: Any) -> float:
    own["deep"][0][0] += 1
    return float(own["deep"][0][0])


def in_rotation(own: Any) -> float:
    own.rotate(1)
    return float(own[0])


STATES: dict[str, tuple[Any, Any]] = {
    "a tensor in place": (lambda: torch.zeros(()), in_tensor),
    "an array": (lambda: np.zeros(1), in_elements),
    "an array in a list in a dictionary": (lambda: {"deep": [np.zeros(1)]}, in_nested),
    "a bytearray": (lambda: bytearray(1), in_elements),
    "an array.array": (lambda: array.array("d", [0.0]), in_elements),
    "a slot": (Slotted, in_slot),
    "an attribute of a list": (Stack, in_slot),
    "a namespace": (lambda: types.SimpleNamespace(calls=0), in_slot),
    "a deque": (lambda: collections.deque([1.0, 2.0, 3.0, 4.0, 5.0]), in_rotation),
    "itertools.count": (lambda: itertools.count(1), next),
    "itertools.cycle": (lambda: itertools.cycle([1.0, 2.0, 3.0]), next),
    "an iterator": (lambda: iter([float(value) for value in range(1, 100)]), next),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_count_that_a_module_keeps_is_refused(kind: str) -> None:
    """Also where its first values, of which the first steps tell, change nothing."""
    make, count = STATES[kind]

    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.own = make()

        def between(self, hidden: Tensor) -> Tensor:
            calls = float(count(self.own))
            return hidden * (1.0 if calls < 4 else 1 / calls)

    assert_refused(seeded(Counts), table(), executors=("looped", "auto"), says="own")


@pytest.mark.parametrize("kind", STATES)
def test_a_count_that_a_loss_keeps_is_called_in_order_or_refused(kind: str) -> None:
    make, count = STATES[kind]

    def loss_of(_: Any) -> Any:
        own = make()
        return lambda out, y: F.cross_entropy(out, y) / (1 + float(count(own)))

    assert_trains_as_plain(seeded(Net), table(), LossOf(loss_of), ("looped", "auto"), may_refuse=EXECUTORS)


def test_a_count_on_the_loss_function_itself() -> None:
    def loss_of(_: Any) -> Any:
        def loss(out: Tensor, y: Tensor) -> Tensor:
            own.calls = getattr(own, "calls", 0) + 1
            return F.cross_entropy(out, y) / own.calls

        own: Any = loss
        return loss

    assert_trains_as_plain(seeded(Net), table(), LossOf(loss_of), ("looped", "auto"), may_refuse=EXECUTORS)


class Recomputes(Net):
    """Keeps what it computed in containers and in an object of its own, for whoever looks at it afterwards."""

    def between(self, hidden: Tensor) -> Tensor:
        self.shapes = [len(hidden), hidden.shape]
        self.outs = [hidden, {"mean": hidden.mean()}]
        self.settings = types.SimpleNamespace(scale=0.5)
        self.function = lambda value: value * 2
        return self.function(hidden) * self.settings.scale


def test_what_each_call_makes_anew_is_no_state() -> None:
    refused = assert_trains_as_plain(seeded(Recomputes), table(), executors=EXECUTORS, may_refuse=("stacked",))
    assert not refused.keys() - {"stacked"}


class KeepsCompiled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.function = torch.compile(lambda hidden: 2 * torch.tanh(hidden), backend="eager")

    def between(self, hidden: Tensor) -> Tensor:
        return self.function(hidden)


def test_what_a_compiled_function_keeps_is_no_state() -> None:
    assert_trains_as_plain(seeded(KeepsCompiled), table(), executors=("auto",))


class KeepsOddObjects(Net):
    """Never uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.masked: Any = np.ma.masked_array([1.0, 2.0], mask=[0, 1])
        self.number = np.array(3.0)
        self.generator = torch.Generator()
        self.drawn = np.random.default_rng(0)


def test_objects_that_nothing_changes() -> None:
    assert_trains_as_plain(seeded(KeepsOddObjects), table(), executors=("auto",))


def test_a_run_under_a_profiler(tmp_path: Path) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        run = fastlocal.train(
            Net().double(), table(), table(), clients=2, rounds=1, batch_size=4, directory=tmp_path / "r"
        )
    finally:
        profiler.disable()
    assert run.history and profiler.getstats()
