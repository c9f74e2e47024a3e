"""Steps whose linear maps and losses are written in another way are the steps of the module, whatever the sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.executors.base import LocalProblem
from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.scripted import trace
from fastlocal.executors.scripted.emit import ScriptText
from fastlocal.executors.scripted.trace import ScriptedSteps
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.kernels import native
from fastlocal.params.param_layout import param_layout
from tests.executors.problems import assert_same, start
from tests.executors.test_threaded import problem_with


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The TorchScript of the steps that are made."""
    made: list[str] = []
    source = ScriptText.source

    def noted(self: ScriptText) -> str:
        made.append(source(self))
        return made[-1]

    monkeypatch.setattr(ScriptText, "source", noted)
    return made


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "load", lambda folder: "there is no C++ compiler")
    trace._has_native.cache_clear()
    yield
    trace._has_native.cache_clear()


def assert_steps(problem: LocalProblem, batch: int, tolerance: float = 2e-4) -> None:
    """Several steps of traced code are those of the plain module."""
    stack, plan = start(problem, clients=2)
    plan = dataclasses.replace(plan, sample_ids=plan.sample_ids.repeat(1, 1, 40)[..., :batch])
    results = []
    for executor in (LoopedExecutor(problem), ThreadedExecutor(problem, workers=2)):
        copy = dataclasses.replace(
            stack, params=stack.params.clone(), momentum=None if stack.momentum is None else stack.momentum.clone()
        )
        results.append((copy, executor.run_round(copy, plan)))
    assert isinstance(executor, ThreadedExecutor)
    assert all(isinstance(own, ScriptedSteps) for own in executor._steps_for(plan))
    assert_same(results[1], results[0], tolerance)


def perceptron(hidden: int = 40, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(90, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, 4, bias=bias))


def count(text: str, op: str) -> int:
    return text.count(f"torch.ops.fastlocal_native.{op}(")


@pytest.mark.parametrize(
    ("batch", "products", "updates"),
    [(7, 0, 1), (8, 0, 1), (12, 2, 1), (16, 2, 1), (17, 0, 1), (128, 2, 1), (129, 0, 0)],
)
def test_by_the_size_of_a_batch(batch: int, products: int, updates: int, texts: list[str]) -> None:
    """Of the two weights one is large enough to be updated there, and its bias with it."""
    assert_steps(problem_with(perceptron()), batch)
    assert (count(texts[0], "product"), count(texts[0], "product_update")) == (products, updates)
    assert count(texts[0], "cross_entropy") == bool(products or updates)
    assert ("params[1], momenta[1]" in texts[0]) is bool(updates)


def test_large_weights_take_fewer_samples(texts: list[str]) -> None:
    assert_steps(problem_with(perceptron(3000)), 8)
    assert count(texts[0], "product") == 1


@pytest.mark.parametrize(("batch", "width", "turned"), [(8, 100, 0), (16, 100, 1), (10, 300, 1)])
def test_without_a_compiler(batch: int, width: int, turned: int, texts: list[str], no_compiler: None) -> None:
    """Forward products are turned around, and none of those with a transposed weight."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(90, 3000), nn.Tanh(), nn.Linear(3000, width), nn.Linear(width, 4))
    assert_steps(problem_with(module), batch)
    assert "fastlocal_native" not in texts[0] and texts[0].count("torch.mm(") == turned


@pytest.mark.parametrize(
    ("values", "updates"),
    [({}, 1), ({"weight_decay": 0.0}, 1), ({"nesterov": True}, 0), ({"clip_norm": 0.3}, 0), ({"momentum": 0.0}, 1)],
    ids=str,
)
def test_by_what_is_asked_of_the_optimizer(values: dict[str, float], updates: int, texts: list[str]) -> None:
    assert_steps(problem_with(perceptron(), **values), 16)
    assert count(texts[0], "product") == 2 and count(texts[0], "product_update") == updates


def test_double_precision_is_left_to_torch(texts: list[str]) -> None:
    assert_steps(problem_with(perceptron(), torch.float64), 16, 1e-11)
    assert "fastlocal_native" not in texts[0]


class Odd(nn.Module):
    """Linear maps that are used twice, tied, added to each other, sliced, or of more axes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(90, 64), nn.Linear(64, 64)
        self.third, self.last = nn.Linear(64, 64, bias=kind != "no bias"), nn.Linear(64, 4)
        self.shift = nn.Parameter(torch.linspace(-1, 1, 64))
        if kind == "tied":
            self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x.flatten(1)))
        if self.kind == "twice":
            x = self.second(torch.tanh(self.second(x)))
        elif self.kind == "sum of two":  # biases share a gradient, and so do weights' left factors
            x = self.second(x) + self.third(x)
        elif self.kind == "other way":
            x = self.second(x) @ self.third.weight
        elif self.kind == "sliced":
            x = F.linear(x, self.second.weight[:, :32].repeat(1, 2), self.second.bias)
        elif self.kind == "axes":
            x = self.third(self.second(x.unflatten(0, (-1, 2)))).flatten(0, 1)
        elif self.kind == "one bias":
            x = torch.addmm(self.shift[:1], x, self.second.weight.t())
        elif self.kind == "product of weights":
            x = x @ (self.second.weight @ self.third.weight)
        else:
            x = self.third(torch.relu(self.second(x)))
        return self.last(x + self.shift)


@pytest.mark.parametrize("batch", [16, 26])
@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "no bias",
        "tied",
        "twice",
        "sum of two",
        "other way",
        "sliced",
        "axes",
        "one bias",
        "product of weights",
    ],
)
def test_odd_modules(kind: str, batch: int) -> None:
    assert_steps(problem_with(Odd(kind)), batch)


def test_weight_decay_by_group() -> None:
    """Of weights alone, so that a weight and its bias differ."""
    module = perceptron()
    assert_steps(problem_with(module, layout=param_layout(module, group_weight=True), weight_decay=0.3), 16)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "mean": (F.cross_entropy, 1),
    "one target ignored": (lambda outputs, targets: F.cross_entropy(outputs, targets, ignore_index=2), 1),
    "sum": (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum") / 16, 0),
    "smoothed": (lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.1), 0),
    "weights": (lambda outputs, targets: F.cross_entropy(outputs, targets, weight=torch.arange(1.0, 5.0)), 0),
    "scaled": (lambda outputs, targets: 3 * F.cross_entropy(outputs, targets), 0),
    "with a penalty": (lambda outputs, targets: F.cross_entropy(outputs, targets) + outputs.square().mean(), 0),
    "logarithms seen": (lambda outputs, targets: F.nll_loss(F.log_softmax(outputs, 1), targets), 1),
    "logarithms used": (
        lambda outputs, targets: F.nll_loss(value := F.log_softmax(outputs, 1), targets) + value.square().mean(),
        0,
    ),
    "double": (lambda outputs, targets: F.cross_entropy(outputs.double(), targets).float(), 0),
    "all axes": (lambda outputs, targets: F.cross_entropy(outputs.unsqueeze(2), targets.unsqueeze(1)), 0),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses(kind: str, texts: list[str]) -> None:
    loss, fused = LOSSES[kind]
    assert_steps(problem_with(perceptron(), loss=loss), 16)
    assert count(texts[0], "cross_entropy") == fused
