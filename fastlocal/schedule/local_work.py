"""Local steps of each client in a round, as a pure function of its samples, the seed and the round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from fastlocal.kernels import philox
from fastlocal.kernels.philox import Purpose


@dataclass(frozen=True)
class LocalWork:
    """The steps K_i of each client, and of those that stop early in a round.

    Attributes:
        steps: int64 [population], steps of a whole round; a client with 0 takes part in none.
        stragglers: Probability that a client takes only a uniform 1 to K_i of its steps.
        seed: Seed of the run.
        equal: Whether all clients take the same steps in every round.
    """

    steps: Tensor
    stragglers: float = 0.0
    seed: int = 0
    equal: bool = False

    @property
    def most(self) -> int:
        """The most steps of any client: those that a round counts."""
        return int(self.steps.max())

    def of(self, clients: Tensor, round_number: int) -> Tensor:
        """Return the steps of these clients in a round, counted from 1; int64 of the shape of `clients`."""
        steps = self.steps[clients]
        if not self.stragglers:
            return steps
        whether, how_many, *_ = philox.draw(self.seed, Purpose.STRAGGLER, clients, round_number, 1)
        fewer = 1 + (how_many.squeeze(-1) * steps >> 32)
        return torch.where(philox.happens(whether.squeeze(-1), self.stragglers), fewer, steps)


def epoch_steps(sizes: Tensor, batch_size: int, epochs: float, last_batch: str) -> Tensor:
    """Return the steps of `epochs` epochs of each client.

    The number of epochs is the decimal as which it is written, and the steps are exact: a tenth of 70 samples is one
    batch of 7.

    Args:
        sizes: int64 [population], samples of each client.
        batch_size: Samples of a batch.
        epochs: Number of epochs, above 0.
        last_batch: fill, drop or partial.
    """
    exact = Fraction(repr(epochs))
    rules: dict[str, Callable[[int], int]] = {
        "fill": lambda size: max(1, _ceil(exact * size / batch_size)),
        "drop": lambda size: int(exact * (size // batch_size)),
        "partial": lambda size: _ceil(exact * epoch_batches(size, batch_size)),
    }
    different, places = torch.unique(sizes, return_inverse=True)
    return torch.tensor([rules[last_batch](size) for size in different.tolist()])[places]


def epoch_batches(size: int, batch_size: int) -> int:
    """Return the batches of an epoch whose last one may be short."""
    return -(-size // batch_size)


def _ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
