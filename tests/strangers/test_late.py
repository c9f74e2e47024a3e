"""What changes only after the first steps: it is the client's own, or the round in which it changes is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.strangers.judge import EXECUTORS, assert_trains_as_plain
from tests.strangers.strange_data import COLUMNS, Net, seeded, table


class Late(Net):
    """Counts its calls in a buffer, which is the client's own, and does something else from the fourth on."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.scale: Any = 1.0

    def between(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        if int(self.calls) >= 4:
            self.change()
        return self.scaled(hidden)

    def change(self) -> None:
        self.scale = self.scale * 0.8

    def scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale


class InList(Late):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [1.0]

    def change(self) -> None:
        self.scales.append(self.scales[-1] * 0.8)

    def scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.scales[-1]


class Assigned(Late):
    """A tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(COLUMNS, dtype=torch.float64)


class InPlace(Assigned):
    def change(self) -> None:
        self.scale.mul_(0.8)


class OfAPart(Late):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(COLUMNS)

    def change(self) -> None:
        self.norm.eps *= 10

    def scaled(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class PartReplaced(OfAPart):
    def change(self) -> None:
        self.norm = nn.LayerNorm(COLUMNS, eps=1.0).double()


class DataOfBuffer(Late):
    """Version counters do not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("c", torch.ones(COLUMNS))

    def change(self) -> None:
        self.c.data.mul_(0.9)

    def scaled(self, hidden: Tensor) -> Tensor:
        return hidden * self.c


class DataRolled(DataOfBuffer):
    """The same numbers in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("c", torch.arange(COLUMNS) / COLUMNS)

    def change(self) -> None:
        self.c.data = self.c.data.roll(1)


class DataOfFrozen(DataOfBuffer):
    def __init__(self) -> None:
        super().__init__()
        del self.c
        self.c = nn.Parameter(torch.ones(COLUMNS), requires_grad=False)


class Evaluation(Late):
    """Freezes its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(COLUMNS)

    def change(self) -> None:
        self.norm.eval()

    def scaled(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class LessDropout(Evaluation):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Dropout(0.0)

    def change(self) -> None:
        self.norm.p = 0.5
        self.norm.eval()


LATE = [Late, InList, Assigned, InPlace, OfAPart, PartReplaced, DataOfBuffer, DataRolled, DataOfFrozen, Evaluation]


@pytest.mark.parametrize("make", [*LATE, LessDropout])
def test_what_changes_late_is_refused_in_its_round(make: Any) -> None:
    executors = EXECUTORS if make in (Late, DataOfBuffer) else ("auto",)
    refused = assert_trains_as_plain(seeded(make), table(), executors=executors, may_refuse=EXECUTORS)
    assert refused.keys() == set(executors)


def test_a_mask_that_is_made_for_each_shape_is_no_state() -> None:
    """Phases of other batch sizes change it, and nothing is trained otherwise."""

    class Masked(Net):
        mask: Tensor | None = None
        size = 0

        def between(self, hidden: Tensor) -> Tensor:
            if self.mask is None or len(self.mask) != len(hidden):
                self.mask, self.size = torch.linspace(0, 1, len(hidden), dtype=hidden.dtype)[:, None], len(hidden)
            return hidden * self.mask

    refused = assert_trains_as_plain(
        seeded(Masked), table(), executors=EXECUTORS, may_refuse=("stacked",), batch_size=8
    )
    assert not refused.keys() - {"stacked"}
