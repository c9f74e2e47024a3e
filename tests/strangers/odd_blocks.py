"""Blocks with odd habits, [batch, WIDTH] -> [batch, WIDTH], for tests.strangers.odd_modules to put together."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

WIDTH = 6


class Block(nn.Module):
    """A linear layer, a tanh, and `habit` on what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.setup()

    def setup(self) -> None:
        """Make what the habit needs."""

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.habit(torch.tanh(self.linear(x)))


class CountsInBuffer(Block):
    def setup(self) -> None:
        self.register_buffer("n", torch.zeros(()))

    def habit(self, hidden: Tensor) -> Tensor:
        self.n += 1
        return hidden * (self.n / 8).clamp(max=1)


class CountsInInteger(Block):
    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def habit(self, hidden: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return torch.where(self.calls % 3 == 0, 0.5 * hidden, hidden)


class Averages(Block):
    def setup(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDTH))

    def habit(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(hidden.mean(dim=0), 0.2)
        return hidden - self.mean


class Queues(Block):
    def setup(self) -> None:
        self.register_buffer("ring", torch.zeros(7, WIDTH))

    def habit(self, hidden: Tensor) -> Tensor:
        out = hidden + 0.2 * self.ring.mean(dim=0)
        self.ring = torch.cat([hidden.detach(), self.ring])[:7]
        return out


class CountsInAttribute(Block):
    def setup(self) -> None:
        self.calls = 0

    def habit(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden * (1.0 if self.calls % 2 else 0.5)


class KeepsActivation(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return hidden


class PenaltyInList(Block):
    def setup(self) -> None:
        self.held = [self.linear.weight]

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden * (1 + 0.1 * self.held[0].square().mean())


class PartInDict(Block):
    def setup(self) -> None:
        self.held = {"linear": self.linear}

    def habit(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.held["linear"](hidden))


class Closure(Block):
    def setup(self) -> None:
        self.function = lambda hidden: hidden @ self.linear.weight

    def habit(self, hidden: Tensor) -> Tensor:
        return self.function(hidden)


class Partial(Closure):
    def setup(self) -> None:
        self.function = functools.partial(torch.add, other=self.linear.bias)


class BoundMethod(Closure):
    def setup(self) -> None:
        self.function = self.again

    def again(self, hidden: Tensor) -> Tensor:
        return hidden + self.linear(hidden)


class Tied(Block):
    def setup(self) -> None:
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.linear.weight

    def habit(self, hidden: Tensor) -> Tensor:
        return torch.sigmoid(self.second(hidden)) + self.linear.weight[:, :2].sum()


class Unused(Block):
    def setup(self) -> None:
        self.spare = nn.Linear(2, 2)


class FrozenNorm(Block):
    def setup(self) -> None:
        self.norm = nn.BatchNorm1d(WIDTH)
        self.norm.running_mean.fill_(0.2)
        self.norm.running_var.fill_(1.5)

    def train(self, mode: bool = True) -> FrozenNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def habit(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden)


class EvaluatedDropout(Block):
    def setup(self) -> None:
        self.dropout = nn.Dropout(0.5).eval()

    def habit(self, hidden: Tensor) -> Tensor:
        return self.dropout(hidden)


class Norms(Block):
    def setup(self) -> None:
        self.norms = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH), nn.GroupNorm(2, WIDTH))

    def habit(self, hidden: Tensor) -> Tensor:
        return self.norms(hidden)


class LooksUp(Block):
    """The row of a table whose number a sign tells, and the one before it."""

    def setup(self) -> None:
        self.table = nn.Parameter(torch.randn(2, WIDTH))

    def habit(self, hidden: Tensor) -> Tensor:
        ids = (hidden[:, 0] > 0).long()
        return hidden + self.table[ids] + 0.5 * self.table[ids - 1]


class Selects(LooksUp):
    def habit(self, hidden: Tensor) -> Tensor:
        ids = hidden.detach().argmax(dim=1)
        return hidden + self.table.index_select(0, ids % 2) + hidden.gather(1, ids[:, None])


class Bags(Block):
    def setup(self) -> None:
        self.bags = nn.EmbeddingBag(4, WIDTH, mode="sum")

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden + self.bags((hidden.detach() > 0).long())


class HookOnGradient(Block):
    def setup(self) -> None:
        self.linear.weight.register_hook(lambda grad: grad.clamp(-0.01, 0.01))


class HookOnForward(Block):
    def setup(self) -> None:
        self.linear.register_forward_hook(lambda part, inputs, out: out * part.weight.mean() + inputs[0])


class Spectral(Block):
    def setup(self) -> None:
        parametrizations.spectral_norm(self.linear)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


class Parametrized(Block):
    def setup(self) -> None:
        parametrize.register_parametrization(self.linear, "weight", Symmetric())


class Branches(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        return hidden if hidden.sum() > 0 else 0.5 * hidden


class MasksInPlace(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        out = hidden.clone()
        out[hidden > 0.5] = 0.5
        return out.mul_(1.5)


class Sorts(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        return hidden.sort(dim=1).values + hidden.cumsum(dim=1).flip(1) * 0.1


class Jacobian(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        slopes = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(row @ self.linear.weight)))(hidden)
        return hidden + slopes.sum(dim=2)


class ComplexBuffer(Block):
    def setup(self) -> None:
        self.register_buffer("turns", torch.polar(torch.ones(WIDTH // 2), torch.linspace(0, 1, WIDTH // 2)))

    def habit(self, hidden: Tensor) -> Tensor:
        pairs = torch.view_as_complex(hidden.reshape(len(hidden), -1, 2).contiguous())
        return torch.view_as_real(pairs * self.turns).flatten(1)


class ComplexParameter(Block):
    def setup(self) -> None:
        self.turns = nn.Parameter(torch.polar(torch.ones(WIDTH), torch.linspace(0, 1, WIDTH)))

    def habit(self, hidden: Tensor) -> Tensor:
        return (hidden * self.turns).real + (hidden * self.turns).imag


class Attends(Block):
    def setup(self) -> None:
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def habit(self, hidden: Tensor) -> Tensor:
        tokens = torch.stack([hidden, -hidden], dim=1)
        return self.attention(tokens, tokens, tokens)[0].sum(dim=1)


class Recurs(Block):
    def setup(self) -> None:
        self.rnn = nn.LSTM(2, 2, batch_first=True)

    def habit(self, hidden: Tensor) -> Tensor:
        return self.rnn(hidden.view(-1, 3, 2))[0].flatten(1)


class Scalars(Block):
    def setup(self) -> None:
        self.many = nn.ParameterList([torch.tensor(0.5), torch.zeros(1)])

    def habit(self, hidden: Tensor) -> Tensor:
        return F.gelu(hidden * self.many[0] + self.many[1])
