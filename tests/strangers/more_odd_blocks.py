"""Further blocks with odd habits: what they keep, change and reach beside their parameters."""

from __future__ import annotations

import collections
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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


class LimitedWords(Block):
    def setup(self) -> None:
        self.words = nn.Embedding(4, WIDTH, max_norm=0.5, padding_idx=0)

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden + self.words(hidden.detach().argmax(dim=1) % 4)


class Checkpointed(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        return checkpoint(lambda value: torch.tanh(self.linear(value)), hidden, use_reentrant=False)


class CheckpointedCount(Block):
    """The second pass that backward makes counts too."""

    def setup(self) -> None:
        self.register_buffer("n", torch.zeros(()))

    def count(self, hidden: Tensor) -> Tensor:
        self.n += 1
        return torch.tanh(self.linear(hidden))

    def habit(self, hidden: Tensor) -> Tensor:
        return checkpoint(self.count, hidden, use_reentrant=False) * (self.n / 8).clamp(max=1)


class Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return (4 * value).round() / 4

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 0.5 * grad


class OwnFunction(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        return hidden + Rounds.apply(hidden)


class HookOnActivation(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        hidden.register_hook(lambda grad: 0.5 * grad)
        return hidden + 1


class BackwardHook(Block):
    def setup(self) -> None:
        self.linear.register_full_backward_hook(
            lambda part, grads, out: tuple(grad.clamp(-0.01, 0.01) for grad in grads)
        )


class HookAdded(Block):
    """A hook that forward adds once, and which stays."""

    def habit(self, hidden: Tensor) -> Tensor:
        if not self.linear._forward_hooks:
            self.linear.register_forward_hook(lambda part, inputs, out: 0.5 * out)
        return hidden


class SlopeOfWeight(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(hidden.square().sum(), self.linear.weight, create_graph=True)
        return hidden + 0.1 * slope.sum(dim=1)


class Functional(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        halves = {name: 0.5 * value for name, value in self.linear.named_parameters()}
        return torch.func.functional_call(self.linear, halves, (hidden,))


class SomeRows(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        return hidden + hidden[hidden[:, 0] > 0].sum(dim=0)


class SwitchesGradient(Block):
    """Trains its bias at every other call only."""

    def setup(self) -> None:
        self.register_buffer("n", torch.zeros((), dtype=torch.long))

    def habit(self, hidden: Tensor) -> Tensor:
        self.n += 1
        bias = self.linear.bias.detach() if self.n % 2 else self.linear.bias
        return hidden + bias


class Transposed(Block):
    def setup(self) -> None:
        self.linear.weight = nn.Parameter(torch.randn(WIDTH, WIDTH).T / 3)
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.kinds = nn.Parameter(torch.arange(WIDTH), requires_grad=False)

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden[:, self.kinds] + self.none.sum()


class CachesLike(Block):
    mask: Tensor | None = None

    def habit(self, hidden: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = 0 * hidden.detach()[0] + 0.5
        return hidden * self.mask
