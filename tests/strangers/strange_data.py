"""Data of the strange modules, and what makes each of them anew from a seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.helpers.plain_loop import Data

COLUMNS, CLASSES, WORDS = 6, 3, 11


def table(samples: int = 96, columns: int = COLUMNS, classes: int = CLASSES) -> Data:
    """Rows of normal numbers in float64, and labels."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, classes, (samples,), generator=generator)


def images(samples: int = 96, classes: int = CLASSES) -> Data:
    """Of 2 x 4 x 4."""
    inputs, targets = table(samples, 32, classes)
    return inputs.view(samples, 2, 4, 4), targets


def words(samples: int = 96, length: int = 5) -> Data:
    """Numbers of words, and labels."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(0, WORDS, (samples, length), generator=generator)
    return inputs, torch.randint(0, CLASSES, (samples,), generator=generator)


def one_word(data: Data, word: int, sample: int = -1) -> Data:
    """The same words with one of a sample replaced."""
    inputs = data[0].clone()
    inputs[sample, 1] = word
    return inputs, data[1]


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Make the same module, in float64, each time."""

    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return make().double()

    return made


class Net(nn.Module):
    """A hidden layer and a head; what is strange comes in between."""

    def __init__(self, columns: int = COLUMNS) -> None:
        super().__init__()
        self.a = nn.Linear(columns, COLUMNS)
        self.b = nn.Linear(COLUMNS, CLASSES)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(torch.tanh(self.a(x))))
