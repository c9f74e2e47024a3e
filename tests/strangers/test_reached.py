"""Parameters that forward reaches by other ways than their names, and what happens to their storage and gradients."""

from __future__ import annotations

import types
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm

from tests.strangers.judge import EXECUTORS, TWO, assert_trains_as_plain
from tests.strangers.strange_data import CLASSES, COLUMNS, WORDS, Net, seeded, table, words


class InList(Net):
    """A penalty on parameters in a list, as a factor of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.pen: Any = [self.a.weight]

    def penalised(self) -> Any:
        return self.pen

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * (1 + 0.1 * torch.stack([value.square().sum() for value in self.penalised()]).sum())


class InDict(InList):
    def __init__(self) -> None:
        super().__init__()
        self.pen = {"first": self.a.weight, "second": (self.b.bias,)}

    def penalised(self) -> Any:
        return [self.pen["first"], *self.pen["second"]]


class InNamespace(InList):
    def __init__(self) -> None:
        super().__init__()
        self.pen = types.SimpleNamespace(weight=self.a.weight)

    def penalised(self) -> Any:
        return [self.pen.weight]


class PartInList(InList):
    """The list holds the part that has the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.pen = [self.a]

    def penalised(self) -> Any:
        return self.pen[0].parameters()


class PastSetattr(InList):
    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "copy_of_a", self.a)

    def penalised(self) -> Any:
        return [self.copy_of_a.weight]


class ByWeakref(InList):
    def __init__(self) -> None:
        super().__init__()
        self.pen = None
        self.to_a = weakref.ref(self.a.weight)

    def penalised(self) -> Any:
        return [self.to_a()]


class BySearch(InList):
    """Asks itself for its parameters in forward."""

    def penalised(self) -> Any:
        return [value for name, value in self.named_parameters() if name.endswith("weight")]


class Tied(Net):
    """One weight under two names, and sliced and turned in a third place."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(COLUMNS, COLUMNS)
        self.again.weight = self.a.weight

    def between(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.again(hidden)) @ self.a.weight.T + self.a.weight[1:3].sum()


class Alias(Net):
    """A view of a weight's storage, taken once: it changes with the weight, and no gradient goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.double()
        self.top = self.a.weight.data[:2]

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * (1 + self.top.mean())


class AliasBuffer(Alias):
    def __init__(self) -> None:
        super().__init__()
        del self.top
        self.register_buffer("top", self.a.weight.data[:2])


REACHED = {
    "a list": InList,
    "a dictionary": InDict,
    "a namespace": InNamespace,
    "a part in a list": PartInList,
    "past __setattr__": PastSetattr,
    "a weak reference": ByWeakref,
    "named_parameters": BySearch,
    "tied and sliced": Tied,
    "an alias": Alias,
    "a buffer that is an alias": AliasBuffer,
}
MUST_TRAIN = ("a list", "a dictionary", "a part in a list", "named_parameters", "tied and sliced")


@pytest.mark.parametrize("kind", REACHED)
def test_parameters_reached_past_their_names(kind: str) -> None:
    may_refuse = ("stacked", "threaded") if kind in MUST_TRAIN else EXECUTORS
    executors = EXECUTORS if kind in ("a list", "tied and sliced") else TWO
    assert_trains_as_plain(seeded(REACHED[kind]), table(), executors=executors, may_refuse=may_refuse, momentum=0.5)


class ScaledGradient(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.weight.register_hook(lambda grad: 0.1 * grad)


def clip(value: Tensor) -> None:
    value.grad.clamp_(-0.01, 0.01)


class ClippedGradient(Net):
    """Changes the gradient after it was accumulated."""

    def __init__(self) -> None:
        super().__init__()
        self.b.weight.register_post_accumulate_grad_hook(clip)


class BackwardHook(Net):
    """A gradient that is turned where it leaves a part."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_full_backward_hook(lambda part, into, out: (-into[0],))


class ActivationHook(Net):
    def between(self, hidden: Tensor) -> Tensor:
        hidden = hidden * 1
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: grad.clamp(-0.001, 0.001))
        return hidden


class SeldomHook(Net):
    """Turns the gradient of one sample, which the first steps need not meet."""

    def forward(self, x: Tensor) -> Tensor:
        hidden, turned = torch.tanh(self.a(x)), x[:, :1] == table()[0][50, 0]
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: torch.where(turned, -10 * grad, grad))
        return self.b(hidden)


class ForwardHooks(Net):
    """Hooks before and after a part that change what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_pre_hook(lambda part, inputs: (inputs[0] * 2,))
        self.b.register_forward_hook(lambda part, inputs, out: out - inputs[0].mean())


@pytest.mark.parametrize("make", [ScaledGradient, ClippedGradient, BackwardHook, ActivationHook, SeldomHook])
def test_hooks_on_gradients(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), may_refuse=EXECUTORS)


def test_forward_hooks() -> None:
    assert_trains_as_plain(seeded(ForwardHooks), table(), executors=EXECUTORS)


class LimitedWords(nn.Module):
    """An embedding that shortens its own rows in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, COLUMNS, max_norm=0.7)
        self.b = nn.Linear(COLUMNS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.embedding(x).mean(dim=1))


class LimitedWeight(Net):
    """Clamps its weight before it is used, as a Wasserstein critic does."""

    def between(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            self.b.weight.clamp_(-0.2, 0.2)
        return hidden


class ReplacedData(LimitedWeight):
    def between(self, hidden: Tensor) -> Tensor:
        self.b.weight.data = self.b.weight.data.clamp(-0.2, 0.2)
        return hidden


class FollowsTeacher(Net):
    """A frozen copy of a layer that follows it as a moving average, in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(COLUMNS, COLUMNS).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.teacher.weight.lerp_(self.a.weight, 0.1)
        return super().forward(x) + 0.1 * self.teacher(x)[:, :CLASSES]


def test_an_embedding_that_changes_its_rows() -> None:
    assert_trains_as_plain(seeded(LimitedWords), words(), may_refuse=EXECUTORS)


@pytest.mark.parametrize("make", [LimitedWeight, ReplacedData, FollowsTeacher])
def test_parameters_that_forward_changes(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS, may_refuse=EXECUTORS)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


class Parametrized(Net):
    """Weights that are functions of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.a, "weight", Symmetric())
        parametrizations.weight_norm(self.b)


class OldWeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        weight_norm(self.a)


def test_parametrized_weights() -> None:
    assert_trains_as_plain(seeded(Parametrized), table(), may_refuse=("threaded",), momentum=0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weights_that_a_hook_computes() -> None:
    assert_trains_as_plain(seeded(OldWeightNorm), table(), may_refuse=EXECUTORS)


class Subset(Net):
    """A frozen parameter, one without a gradient, and one that some batches alone use."""

    def __init__(self) -> None:
        super().__init__()
        self.b.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.seldom = nn.Parameter(torch.ones(COLUMNS))

    def between(self, hidden: Tensor) -> Tensor:
        return F.relu(hidden) * self.seldom if hidden.detach().mean() > 0 else hidden


def test_parameters_that_are_seldom_or_never_used() -> None:
    may_refuse = ("stacked", "threaded")
    assert_trains_as_plain(
        seeded(Subset), table(), executors=EXECUTORS, may_refuse=may_refuse, momentum=0.5, weight_decay=0.1
    )
