"""The plan of a chunk's communication round, its local steps, and what the round returns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.sources.base import Batch


def _no_plans() -> Iterator[RoundPlan]:
    return iter(())


@dataclass(frozen=True)
class RowValues:
    """Hyperparameters that differ between the rows of several runs; None where all rows have the problem's own.

    Attributes:
        seed: int64 [clients], seeds of augmentation, label noise and the module's draws.
        noise_p: float64 [clients], probabilities of label noise.
        momentum: float64 [clients], momentum factors.
        weight_decay: float64 [clients], factors of the weight decay.
    """

    seed: Tensor | None = None
    noise_p: Tensor | None = None
    momentum: Tensor | None = None
    weight_decay: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The values that differ, by name."""
        own = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return {name: value for name, value in own.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> RowValues:
        """Return the values after a change of each tensor."""
        tensors = self.tensors
        return RowValues(**{name: change(value) for name, value in tensors.items()}) if tensors else self

    def part(self, clients: slice) -> RowValues:
        """Return the values of these clients alone."""
        return self.map(lambda values: values[clients])


SHARED = RowValues()
"""Rows that all have the hyperparameters of the problem."""


@dataclass(frozen=True)
class RoundPlan:
    """One communication round of one chunk, on the device.

    Attributes:
        client_ids: int64 [clients].
        first_step: Global number of the first local step: one for all, or int64 [clients].
        learning_rates: [local_steps, clients].
        sample_ids: int64 [local_steps, clients, batch], on the source's index_device.
        first_row: Place of the first client in the cohort of the round.
        following: Makes an iterator over the plans after this one.
        values: Hyperparameters that differ between the rows.
        sizes: int64 [local_steps, clients] on the CPU, samples of each batch, of which those in `sample_ids` are the
            first; 0 after a client's last step, and clients with more steps come first. None: all batches are whole.
        host_ids: `client_ids` on the CPU, or None.
    """

    client_ids: Tensor
    first_step: int | Tensor
    learning_rates: Tensor
    sample_ids: Tensor
    first_row: int = 0
    following: Callable[[], Iterator[RoundPlan]] = _no_plans
    values: RowValues = SHARED
    sizes: Tensor | None = None
    host_ids: Tensor | None = None

    @property
    def local_steps(self) -> int:
        """Number of local steps."""
        return self.sample_ids.shape[0]

    @property
    def start(self) -> int:
        """The global number of the first local step, of the clients of one run."""
        assert isinstance(self.first_step, int), "rows of several runs"
        return self.first_step

    @property
    def batch(self) -> int:
        """Samples of a whole batch."""
        return self.sample_ids.shape[-1]

    def steps_of(self, client: int) -> int:
        """Return the number of local steps of a row."""
        return self.local_steps if self._steps_of is None else self._steps_of[client]

    def size_of(self, client: int, step: int) -> int:
        """Return the samples in the batch of a row at a step."""
        return self.batch if self.sizes is None else int(self.sizes[step, client])

    @property
    def short_sizes(self) -> list[int]:
        """The sizes of batches that are not whole, the smallest first."""
        sizes = [] if self.sizes is None else np.unique(self.sizes.numpy()).tolist()
        return [size for size in sizes if 0 < size < self.batch]

    def parts(self, step: int) -> list[tuple[slice, int]]:
        """Return the rows that take a step, as slices of rows with batches of one size, and these sizes."""
        if self.sizes is None:
            return [(slice(None), self.batch)]
        sizes = self.sizes[step].numpy()
        bounds = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
        every = [(slice(begin, end), int(sizes[begin])) for begin, end in itertools.pairwise(bounds)]
        return [(rows, size) for rows, size in every if size]

    def equal_batches(self, client: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first, end, size) of the steps of a row whose batches have one size, in order."""
        steps = self.steps_of(client)
        sizes = [self.batch] * steps if self.sizes is None else self.sizes[:steps, client].tolist()
        begin = 0
        for size, run in itertools.groupby(sizes):
            end = begin + len(list(run))
            yield begin, end, size
            begin = end

    def part(self, steps: slice, rows: slice) -> RoundPlan:
        """Return the plan of some steps of some rows, without those that follow."""
        return RoundPlan(
            client_ids=self.client_ids[rows],
            first_step=self.start + steps.start,
            learning_rates=self.learning_rates[steps, rows],
            sample_ids=self.sample_ids[steps, rows],
            first_row=self.first_row,
            values=self.values.part(rows),
            sizes=None if self.sizes is None else self.sizes[steps, rows],
            host_ids=None if self.host_ids is None else self.host_ids[rows],
        )

    def trained(self, losses: Tensor) -> tuple[float, int]:
        """Return the sum of the losses of all samples, and their number.

        Args:
            losses: [local_steps, clients] on the CPU.
        """
        if self.sizes is None:
            return losses.double().sum().item() * self.batch, losses.numel() * self.batch
        return (losses.double() * self.sizes).sum().item(), int(self.sizes.sum())

    @functools.cached_property
    def _steps_of(self) -> list[int] | None:
        return None if self.sizes is None else (self.sizes > 0).sum(dim=0).tolist()

    @functools.cached_property
    def steps(self) -> Tensor:
        """Global number of each local step, int64 [local_steps], or [local_steps, clients]."""
        steps = torch.arange(self.local_steps, device=self.client_ids.device)
        return self.first_step + (steps if isinstance(self.first_step, int) else steps.unsqueeze(-1))


@dataclass(frozen=True)
class LocalStep:
    """One local step of some clients.

    Attributes:
        batch: Inputs and targets, [clients, batch, ...].
        targets: Targets of the loss: the batch's own, or noisy ones of the same shape.
        learning_rates: [clients].
        client_ids: int64 [clients].
        number: int64 [], the global number of the step, or [clients].
        values: Hyperparameters that differ between the clients.
        active: bool [clients], the clients that take the step, or None for all. The others keep every bit, and have
            loss 0 and no correct predictions.
    """

    batch: Batch
    targets: Tensor
    learning_rates: Tensor
    client_ids: Tensor
    number: Tensor
    values: RowValues = SHARED
    active: Tensor | None = None

    def part(self, clients: slice) -> LocalStep:
        """Return the step of these clients alone."""
        batch = Batch(self.batch.inputs[clients], self.batch.targets[clients])
        targets = batch.targets if self.targets is self.batch.targets else self.targets[clients]
        number = self.number[clients] if self.number.dim() else self.number
        rates, ids = self.learning_rates[clients], self.client_ids[clients]
        active = None if self.active is None else self.active[clients]
        return LocalStep(batch, targets, rates, ids, number, self.values.part(clients), active)


@dataclass(frozen=True)
class RoundResult:
    """The losses and counts of a chunk's round, on the device.

    Attributes:
        losses: [local_steps, clients], the mean loss of each batch; 0 after a client's last step.
        correct: Correct predictions in the batches of each client, float64 [clients, LocalProblem.counts]; None if
            targets are not labels.
        notes: Log lines.
    """

    losses: Tensor
    correct: Tensor | None
    notes: tuple[str, ...] = ()
