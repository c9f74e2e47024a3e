"""Blocks with odd habits that begin late, or that count in objects of other kinds than attributes."""

from __future__ import annotations

import array
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.strangers.odd_blocks import WIDTH, Block

SEEN: dict[str, Tensor] = {}


class Late(Block):
    """Counts in a buffer; its habit begins with the fourth call."""

    calls: Tensor

    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.scale: Any = 1.0

    def habit(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        if int(self.calls) >= 4:
            self.late()
        return hidden * self.scale

    def late(self) -> None:
        self.scale *= -1


class LateTensor(Late):
    def setup(self) -> None:
        super().setup()
        self.scale = torch.ones(WIDTH, dtype=torch.float64)

    def late(self) -> None:
        self.scale = -self.scale


class LateInPlace(LateTensor):
    def late(self) -> None:
        self.scale.neg_()


class LateData(Late):
    def setup(self) -> None:
        super().setup()
        del self.scale
        self.register_buffer("scale", torch.ones(WIDTH))

    def late(self) -> None:
        self.scale.data.mul_(0.9)


class LateFrozen(Late):
    def setup(self) -> None:
        super().setup()
        self.scale = nn.Parameter(torch.ones(WIDTH), requires_grad=False)

    def late(self) -> None:
        self.scale.data = self.scale.data * 0.9


class LateMode(Late):
    def setup(self) -> None:
        super().setup()
        self.norm = nn.BatchNorm1d(WIDTH)

    def habit(self, hidden: Tensor) -> Tensor:
        return self.norm(super().habit(hidden))

    def late(self) -> None:
        self.norm.eval()


class LatePart(LateMode):
    def late(self) -> None:
        self.norm = nn.BatchNorm1d(WIDTH, eps=0.1).double()


class LateAndBack(Late):
    """Has changed nothing after every two late calls."""

    def late(self) -> None:
        self.scale = 3.0 - self.scale


class CountsInArray(Block):
    def setup(self) -> None:
        self.own: Any = np.zeros(2)

    def count(self) -> float:
        self.own[1] += 1
        return float(self.own[1])

    def habit(self, hidden: Tensor) -> Tensor:
        return hidden if self.count() < 4 else -hidden


class CountsInBytes(CountsInArray):
    def setup(self) -> None:
        self.own = bytearray(2)


class CountsInNumbers(CountsInArray):
    def setup(self) -> None:
        self.own = array.array("i", [0, 0])


class CountsInTensor(CountsInArray):
    def setup(self) -> None:
        self.own = torch.zeros(2)


class CountsInIterator(CountsInArray):
    def setup(self) -> None:
        self.own = itertools.count(1)

    def count(self) -> float:
        return float(next(self.own))


class Slots:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class CountsInSlots(CountsInArray):
    def setup(self) -> None:
        self.own = Slots()

    def count(self) -> float:
        self.own.calls += 1
        return float(self.own.calls)


class IntoDictionary(Block):
    """Leaves its activation where a loss may read it."""

    def setup(self) -> None:
        self.linear.register_forward_hook(lambda part, inputs, out: SEEN.update(out=out))


class MakesAnew(Block):
    """Keeps lists and objects that each call makes."""

    def habit(self, hidden: Tensor) -> Tensor:
        self.outs = [hidden, {"shape": hidden.shape}]
        self.function = lambda value: 2 * value
        return self.function(self.outs[0])
