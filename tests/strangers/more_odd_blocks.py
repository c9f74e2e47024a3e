"""Further blocks with odd habits: what they keep and change beside their parameters."""

from __future__ import annotations

import collections
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.strangers.odd_blocks import WIDTH, Block

COUNTED = {"calls": 0}


class LimitsWeight(Block):
    def limit(self) -> None:
        with torch.no_grad():
            self.linear.weight.clamp_(-0.3, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        self.limit()
        return super().forward(x)


class DecaysData(LimitsWeight):
    def limit(self) -> None:
        self.linear.weight.data.mul_(0.97)


class ReplacesData(LimitsWeight):
    def limit(self) -> None:
        self.linear.weight.data = self.linear.weight.data.clamp(-0.3, 0.3)


class CentersBias(LimitsWeight):
    def limit(self) -> None:
        with torch.no_grad():
            self.linear.bias -= self.linear.bias.mean()


class CountsInClass(Block):
    calls = 0

    def setup(self) -> None:
        type(self).calls = 0

    def habit(self, hidden: Tensor) -> Tensor:
        type(self).calls += 1
        return hidden * (1.0 if self.calls % 2 else 0.5)


class CountsInGlobal(Block):
    def setup(self) -> None:
        COUNTED["calls"] = 0

    def habit(self, hidden: Tensor) -> Tensor:
        COUNTED["calls"] += 1
        return hidden * (1.0 if COUNTED["calls"] % 2 else 0.5)


class CountsInClosure(Block):
    def setup(self) -> None:
        calls = 0

        def scale() -> float:
            nonlocal calls
            calls += 1
            return 1.0 if calls % 2 else 0.5

        self.scale = scale

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale()


class BranchesOnCount(Block):
    def setup(self) -> None:
        self.register_buffer("n", torch.zeros((), dtype=torch.int32))

    def habit(self, hidden: Tensor) -> Tensor:
        self.n += 1
        return hidden if self.n.item() > 3 else 0.5 * hidden


class KeepsFirst(Block):
    first: Tensor | None = None

    def habit(self, hidden: Tensor) -> Tensor:
        if self.first is None:
            self.first = hidden.detach().mean(dim=0)
        return hidden - 0.5 * self.first


class KeepsPrevious(Block):
    previous: Any = 0.0

    def habit(self, hidden: Tensor) -> Tensor:
        out = hidden - 0.5 * self.previous
        self.previous = hidden.detach().mean(dim=0)
        return out


class KeepsWeight(Block):
    """The weight of the call before."""

    def setup(self) -> None:
        self.before = self.linear.weight.detach().double().clone()

    def habit(self, hidden: Tensor) -> Tensor:
        out = hidden @ self.before
        self.before = self.linear.weight.detach().double().clone()
        return out


class ChangesAttribute(Block):
    """A tensor that is no buffer, in place."""

    def setup(self) -> None:
        self.total = torch.zeros(WIDTH, dtype=torch.float64)

    def habit(self, hidden: Tensor) -> Tensor:
        self.total += hidden.detach().sum(dim=0)
        return hidden - 0.1 * self.total


class KeepsInDeque(Block):
    def setup(self) -> None:
        self.last: collections.deque[Tensor] = collections.deque(maxlen=3)

    def habit(self, hidden: Tensor) -> Tensor:
        self.last.append(hidden.detach().mean(dim=0))
        return hidden - torch.stack(list(self.last)).mean(dim=0)


class CachesConstants(Block):
    def setup(self) -> None:
        self.masks: dict[int, Tensor] = {}

    def habit(self, hidden: Tensor) -> Tensor:
        if len(hidden) not in self.masks:
            self.masks[len(hidden)] = torch.linspace(0.5, 1, len(hidden), dtype=hidden.dtype)
        return hidden * self.masks[len(hidden)].unsqueeze(1)


class BufferInList(Block):
    def setup(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.held = [self.mean]

    def habit(self, hidden: Tensor) -> Tensor:
        self.held[0].add_(hidden.detach().mean(dim=0), alpha=0.1)
        return hidden - self.mean


class SharesBuffer(Block):
    def setup(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.part = nn.Identity()
        self.part.register_buffer("mean", self.mean)

    def habit(self, hidden: Tensor) -> Tensor:
        self.part.mean.add_(hidden.detach().mean(dim=0), alpha=0.1)
        return hidden - self.mean


class ChangesThroughView(Block):
    def setup(self) -> None:
        self.register_buffer("table", torch.zeros(2, WIDTH))

    def habit(self, hidden: Tensor) -> Tensor:
        self.table[0] = hidden.detach().mean(dim=0)
        self.table.data[1] += 0.1
        return hidden + self.table.sum(dim=0)


class FollowsTeacher(Block):
    def setup(self) -> None:
        self.teacher = copy.deepcopy(self.linear).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for own, wanted in zip(self.teacher.parameters(), self.linear.parameters(), strict=True):
                own.lerp_(wanted, 0.3)
        return torch.tanh(self.linear(x)) + 0.5 * self.teacher(x)


class NotRegistered(Block):
    """A layer that no optimizer is given."""

    def setup(self) -> None:
        self.held = [nn.Linear(WIDTH, WIDTH, dtype=torch.float64)]

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden + self.held[0](hidden)


class FunctionalNorm(Block):
    def setup(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("var", torch.ones(WIDTH))

    def habit(self, hidden: Tensor) -> Tensor:
        return F.batch_norm(hidden, self.mean, self.var, training=True, momentum=0.2) + self.mean / self.var


class OtherNorms(Block):
    def setup(self) -> None:
        self.one = nn.BatchNorm1d(WIDTH, track_running_stats=False)
        self.two = nn.BatchNorm1d(WIDTH, momentum=None, affine=False)
        self.three = nn.InstanceNorm1d(3, track_running_stats=True)

    def habit(self, hidden: Tensor) -> Tensor:
        return self.two(self.one(hidden)) + self.three(hidden.view(-1, 3, 2)).flatten(1)


class NormInTurns(Block):
    """Its own batch statistics at first, the running ones of the same call then."""

    def setup(self) -> None:
        self.norm = nn.BatchNorm1d(WIDTH)

    def habit(self, hidden: Tensor) -> Tensor:
        out = self.norm(hidden)
        self.norm.eval()
        out = out + 0.1 * self.norm(hidden)
        self.norm.train()
        return out
