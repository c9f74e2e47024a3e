"""Modules whose forward pass changes their buffers or attributes: state that is the client's own, as momentum is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from tests.helpers.plain_loop import Recipe
from tests.strangers.judge import EXECUTORS, TWO, assert_trains_as_plain, train
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, seeded, table


class Counter(nn.Module):
    """Fades in over ten calls."""

    n: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(COLUMNS, CLASSES)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.a(x) * (self.n / 10).clamp(max=1)


class IntCounter(Net):
    """Counts in an int64 buffer, which is no part of the state_dict, and alternates between two signs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def between(self, hidden: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return hidden * torch.where(self.calls % 2 == 0, 1.0, -0.5)


class Average(Net):
    """Subtracts a moving average, which it assigns anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(COLUMNS))

    def between(self, hidden: Tensor) -> Tensor:
        self.center = 0.9 * self.center + 0.1 * hidden.detach().mean(dim=0)
        return hidden - self.center


class AverageInPlace(Average):
    def between(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            self.center.mul_(0.8).add_(hidden.mean(dim=0), alpha=0.2)
        return hidden - self.center


class AverageOfData(Average):
    """Reads its buffer before it writes to it, through .data and copy_."""

    def between(self, hidden: Tensor) -> Tensor:
        out = hidden - self.center
        self.center.data.copy_(torch.lerp(self.center, hidden.detach().mean(dim=0), 0.3))
        return out


class OwnNorm(Average):
    """Keeps statistics through the functional batch norm, and normalises by them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(COLUMNS))

    def between(self, hidden: Tensor) -> Tensor:
        if self.training:
            F.batch_norm(hidden.detach(), self.center, self.spread, training=True)
        return F.batch_norm(hidden, self.center.clone(), self.spread.clone(), training=False)


class Queue(Net):
    """Compares with a ring of what earlier batches were, and a number that says where it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ring", torch.zeros(10, COLUMNS))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def between(self, hidden: Tensor) -> Tensor:
        out = hidden + torch.softmax(hidden @ self.ring.clone().T, dim=1) @ self.ring.clone()
        with torch.no_grad():
            self.ring[(self.place + torch.arange(len(hidden))) % 10] = hidden
            self.place.add_(len(hidden)).remainder_(10)
        return out


class Codebook(Net):
    """Replaces each row by its nearest code; the codes are moving averages of what was nearest to them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(4, COLUMNS))
        self.register_buffer("counts", torch.ones(4))

    def between(self, hidden: Tensor) -> Tensor:
        codes = self.codes.clone()
        nearest = torch.cdist(hidden.detach(), codes).argmin(dim=1)
        with torch.no_grad():
            chosen = F.one_hot(nearest, 4).to(hidden.dtype)
            self.counts.mul_(0.9).add_(chosen.sum(dim=0), alpha=0.1)
            sums = codes * self.counts[:, None] * 0.9 + 0.1 * (chosen.T @ hidden)
            self.codes.copy_(sums / self.counts[:, None])
        return hidden + (codes[nearest] - hidden).detach()


class Largest(Net):
    """Scales by the largest value that it has seen, kept in a mask and a number; starts without the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(COLUMNS, dtype=torch.bool))
        self.register_buffer("top", torch.full((), 0.01))

    def between(self, hidden: Tensor) -> Tensor:
        self.seen |= (hidden.detach() > 0.8).any(dim=0)
        self.top = torch.maximum(self.top, hidden.detach().abs().max())
        return hidden / self.top * torch.where(self.seen, 0.5, 1.0)


class Shared(Net):
    """Two parts count in one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Counter(), Counter()
        self.second.n = self.first.n

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) - 0.5 * self.second(x)


def spectral(normalise: Any) -> nn.Module:
    return nn.Sequential(normalise(nn.Linear(COLUMNS, 8)), nn.Tanh(), nn.Linear(8, CLASSES))


BUFFERS = {
    "a counter": Counter,
    "an int counter that is not saved": IntCounter,
    "a moving average": Average,
    "a moving average in place": AverageInPlace,
    "a moving average through .data": AverageOfData,
    "a norm of its own": OwnNorm,
    "a queue": Queue,
    "a codebook": Codebook,
    "a mask and a maximum": Largest,
    "a buffer of two parts": Shared,
    "spectral norm as a parametrization": lambda: spectral(parametrizations.spectral_norm),
    "spectral norm as a hook": lambda: spectral(spectral_norm),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_that_change_are_the_clients_own(kind: str) -> None:
    may_refuse = () if kind == "a counter" else ("stacked", "threaded")
    executors = EXECUTORS if kind in ("a counter", "spectral norm as a hook") else TWO
    assert_trains_as_plain(seeded(BUFFERS[kind]), table(), executors=executors, may_refuse=may_refuse, momentum=0.5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_counter_counts_the_steps_of_one_client_whatever_is_evaluated(tmp_path: Any, executor: str) -> None:
    recipe = Recipe(rounds=3, local_steps=2)
    run = train(seeded(Counter), table(), F.cross_entropy, tmp_path / "run", recipe, executor=executor, eval_every=1)
    assert run.model.n == 6


class Calls(Net):
    """Alternates by a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def between(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden * (1.0 if self.calls % 2 else 0.5)


class Remembers(Net):
    """Mixes with what the batch before was."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def between(self, hidden: Tensor) -> Tensor:
        out = hidden if self.last is None else hidden - self.last
        self.last = hidden.detach().mean(dim=0)
        return out


class Notes(Net):
    """Appends to a list, which is longer at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[int] = []

    def between(self, hidden: Tensor) -> Tensor:
        self.notes.append(len(hidden))
        return hidden / len(self.notes)


class Table(Net):
    """Keeps numbers in a dictionary of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.b.seen = {"rows": 0}

    def between(self, hidden: Tensor) -> Tensor:
        self.b.seen["rows"] += len(hidden)
        return hidden * (1 + 0.1 * self.b.seen["rows"])


@pytest.mark.parametrize("make", [Calls, Remembers, Notes, Table])
def test_attributes_that_change_are_the_clients_own_or_refused(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), executors=EXECUTORS if make is Calls else TWO, may_refuse=EXECUTORS)


class Keeps(Net):
    """Keeps its last activations to look at; nothing reads them."""

    def between(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return hidden


def test_activations_that_are_kept_and_not_read_do_no_harm() -> None:
    assert_trains_as_plain(seeded(Keeps), table(), executors=EXECUTORS, may_refuse=("stacked", "threaded"))


def used() -> nn.Module:
    module = Keeps().double()
    module(table()[0][:2])
    return module


def test_activations_kept_from_an_earlier_call_are_named_or_left_out() -> None:
    assert_trains_as_plain(seeded(used), table(), may_refuse=EXECUTORS)
