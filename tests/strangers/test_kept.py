"""State that clients would share: kept from the first call on, in classes and in global variables."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from torch import Tensor, nn

from tests.strangers.judge import EXECUTORS, assert_trains_as_plain
from tests.strangers.strange_data import Net, seeded, table


class KeepsFirst(Net):
    """Centers by its first batch, which it keeps."""

    first: Tensor | None = None

    def between(self, hidden: Tensor) -> Tensor:
        if self.first is None:
            self.first = hidden.detach().mean(dim=0)
        return hidden - self.first


class AddsHook(Net):
    """Halves its head's outputs from the second call on."""

    def between(self, hidden: Tensor) -> Tensor:
        if not self.a._forward_hooks:
            self.a.register_forward_hook(lambda part, inputs, out: 0.5 * out)
        return hidden


class CallsOfClass(Net):
    """Counts for all its objects, and changes only after the first steps."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).calls = 0

    def between(self, hidden: Tensor) -> Tensor:
        type(self).calls += 1
        return hidden * (1.0 if self.calls < 20 else 0.5)


class CallsOfFile(Net):
    """Counts in a global variable."""

    def __init__(self) -> None:
        super().__init__()
        COUNTED["calls"] = 0

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * counted_scale()


COUNTED = {"calls": 0}


def counted_scale() -> float:
    COUNTED["calls"] += 1
    return 1.0 if COUNTED["calls"] < 20 else 0.5


@pytest.mark.parametrize("make", [KeepsFirst, AddsHook, CallsOfClass, CallsOfFile])
def test_what_clients_would_share_is_the_clients_own_or_refused(make: Any) -> None:
    assert_trains_as_plain(seeded(make), table(), may_refuse=EXECUTORS)


class Registry(collections.OrderedDict[str, Any]):
    """Makes an object of what it is asked for, as libraries of text models do."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()


KINDS = Registry(tanh=nn.Tanh)


class AsksRegistry(Net):
    def between(self, hidden: Tensor) -> Tensor:
        return KINDS["tanh"](hidden)


def test_a_registry_that_makes_objects_anew_is_no_state() -> None:
    assert_trains_as_plain(seeded(AsksRegistry), table(), executors=("auto",))
