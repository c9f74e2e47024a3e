"""The plan of a chunk's communication round, its local steps, and what the round returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.sources.base import Batch


def _no_plans() -> Iterator[RoundPlan]:
    return iter(())


@dataclass(frozen=True)
class RoundPlan:
    """One communication round of one chunk, on the device.

    Attributes:
        client_ids: int64 [clients].
        first_step: Global number of the first local step.
        learning_rates: [local_steps, clients].
        sample_ids: int64 [local_steps, clients, batch], on the source's index_device.
        first_row: Place of the first client in the cohort of the round.
        following: Makes an iterator over the plans after this one.
    """

    client_ids: Tensor
    first_step: int
    learning_rates: Tensor
    sample_ids: Tensor
    first_row: int = 0
    following: Callable[[], Iterator[RoundPlan]] = _no_plans

    @property
    def local_steps(self) -> int:
        """Number of local steps."""
        return self.sample_ids.shape[0]

    @functools.cached_property
    def steps(self) -> Tensor:
        """Global number of each local step, int64 [local_steps]."""
        return self.first_step + torch.arange(self.local_steps, device=self.client_ids.device)


@dataclass(frozen=True)
class LocalStep:
    """One local step of some clients.

    Attributes:
        batch: Inputs and targets, [clients, batch, ...].
        targets: Targets of the loss: the batch's own, or noisy ones of the same shape.
        learning_rates: [clients].
        client_ids: int64 [clients].
        number: int64 [], the global number of the step.
    """

    batch: Batch
    targets: Tensor
    learning_rates: Tensor
    client_ids: Tensor
    number: Tensor

    def part(self, clients: slice) -> LocalStep:
        """Return the step of these clients alone."""
        batch = Batch(self.batch.inputs[clients], self.batch.targets[clients])
        targets = batch.targets if self.targets is self.batch.targets else self.targets[clients]
        return LocalStep(batch, targets, self.learning_rates[clients], self.client_ids[clients], self.number)


@dataclass(frozen=True)
class RoundResult:
    """The losses and counts of a chunk's round, on the device.

    Attributes:
        losses: [local_steps, clients], the mean loss of each batch.
        correct: Correct predictions in all batches, float64 [LocalProblem.counts]; None if targets are not labels.
        notes: Log lines.
    """

    losses: Tensor
    correct: Tensor | None
    notes: tuple[str, ...] = ()
