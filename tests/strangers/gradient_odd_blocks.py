"""Blocks with odd habits of gradients: hooks, checkpoints, derivatives, functions of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.strangers.odd_blocks import WIDTH, Block


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


class Reentrant(Block):
    def habit(self, hidden: Tensor) -> Tensor:
        return checkpoint(lambda value: torch.tanh(self.linear(value)), hidden, use_reentrant=True)


class SlopeOfInput(Block):
    """Takes a derivative by a leaf that it makes."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.linear(leaf).square().sum(), leaf, create_graph=True)
        return super().forward(x) + 0.1 * slope


class ChangesInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.9))
