"""Samples of each client at each local step, by index arithmetic.

Without replacement, epoch e is the permutation torch.randperm(samples) seeded with seed + e, and at local step t of the
epoch client c takes positions [(t * clients + c) * batch_size, ... + batch_size), as torch's DistributedSampler on one
process. With replacement every index is a Philox draw. Neither depends on chunks or processes.

A quasi-random order, for data on slow disks, permutes a file's pages and mixes samples only among a few pages at a
time, after the idea of FFCV's order of that name; a client's samples are then less independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlocal.kernels import philox

from ..schedule.cohort import Cohort, CohortSampler


class SampleStreams(Protocol):
    """Samples of every client at every local step.

    A row is a place in the cohort of a round; if all clients take part, it is the client's number.

    Attributes:
        population: Number of clients. Greater numbers are free for draws that belong to no client.
    """

    population: int

    def cohort(self, first_step: int) -> Cohort:
        """Return the clients of the round that begins with the global local step `first_step`."""
        ...

    def steps(self, first_step: int) -> Tensor | None:
        """Return int64 [rows], the steps of the clients of a round; None if all take all steps, of whole batches."""
        ...

    def samples_of(self, first_step: int, local_steps: int) -> int:
        """Return the number of samples on which the clients of a round train."""
        ...

    def sample_ids(self, first_step: int, local_steps: int, rows: range) -> Tensor:
        """Return int64 [local_steps, rows, batch] for the global local steps from `first_step` on, on the CPU."""
        ...

    def estimation_batches(self, steps_done: int, max_batches: int) -> Iterator[tuple[Tensor, int, int]]:
        """Yield (sample ids [batch], client, global step) of the batches that re-estimate BatchNorm.

        Args:
            steps_done: Local steps of every client so far.
            max_batches: Number of batches, if there are as many.
        """
        ...


@dataclass(frozen=True)
class StreamSpec:
    """Parameters of all streams.

    Attributes:
        samples: Size of the training set.
        clients: Number of clients.
        batch_size: Samples per client and step.
        steps_per_epoch: Local steps between two shuffles.
        replacement: Draw with replacement.
        seed: --seed.
    """

    samples: int
    clients: int
    batch_size: int
    steps_per_epoch: int
    replacement: bool
    seed: int


@dataclass(frozen=True)
class Pages:
    """Pages of a quasi-random order.

    Attributes:
        page_ids: int64 [samples], page of each sample in its file; any distinct numbers.
        mix_count: Pages whose samples are mixed with each other.
    """

    page_ids: Tensor
    mix_count: int


class Streams:
    """Sample streams of all clients, in a uniformly random order or, given `pages`, in a quasi-random one."""

    def __init__(self, spec: StreamSpec, pages: Pages | None = None, drop: float = 0.0) -> None:
        """Prepare the streams.

        Args:
            spec: Their parameters.
            pages: Pages of a quasi-random order, or None.
            drop: Probability that a client does not take part in a round; nobody else gets its samples.
        """
        self.spec, self.pages = spec, pages
        self.population = spec.clients
        self._everybody = CohortSampler(spec.seed, spec.clients, spec.clients).cohort(1)
        self._sampler = CohortSampler(spec.seed, spec.clients, spec.clients, drop=drop) if drop else None
        self._orders: dict[int, Tensor] = {}

    def cohort(self, first_step: int) -> Cohort:
        return self._everybody if self._sampler is None else self._sampler.cohort(first_step + 1)

    def steps(self, first_step: int) -> Tensor | None:
        return None

    def samples_of(self, first_step: int, local_steps: int) -> int:
        return len(self.cohort(first_step)) * local_steps * self.spec.batch_size

    def sample_ids(self, first_step: int, local_steps: int, rows: range) -> Tensor:
        if self._sampler is not None:
            everybody = self._dealt(first_step, local_steps, range(self.population))
            return everybody[:, self.cohort(first_step).ids[rows.start : rows.stop]]
        return self._dealt(first_step, local_steps, rows)

    def _dealt(self, first_step: int, local_steps: int, rows: range) -> Tensor:
        spec = self.spec
        if spec.replacement:
            numbers = torch.arange(rows.start, rows.stop)
            steps = torch.arange(first_step, first_step + local_steps).unsqueeze(-1)
            words = philox.draw(spec.seed, philox.Purpose.SAMPLE, numbers, steps, spec.batch_size)
            return philox.below(words[0], spec.samples)
        batches = []
        for step in range(first_step, first_step + local_steps):
            epoch, within = divmod(step, spec.steps_per_epoch)
            begin = (within * spec.clients + rows.start) * spec.batch_size
            size = len(rows) * spec.batch_size
            batches.append(self._permutation(epoch)[begin : begin + size].view(len(rows), spec.batch_size))
        return torch.stack(batches)

    def estimation_batches(self, steps_done: int, max_batches: int) -> Iterator[tuple[Tensor, int, int]]:
        """Yield up to `max_batches` first batches of the current epoch's order.

        Client and step belong to the batch's place in the order, so that its augmentation is the same as in training.
        """
        spec = self.spec
        epoch = max(steps_done - 1, 0) // spec.steps_per_epoch
        available = spec.steps_per_epoch * spec.clients if spec.replacement else spec.samples // spec.batch_size
        for index in range(min(max_batches, available)):
            within, client = divmod(index, spec.clients)
            step = epoch * spec.steps_per_epoch + within
            if spec.replacement:
                ids = self._dealt(step, 1, range(client, client + 1))[0, 0]
            else:
                ids = self._permutation(epoch)[index * spec.batch_size : (index + 1) * spec.batch_size]
            yield ids, client, step

    def _permutation(self, epoch: int) -> Tensor:
        order = self._orders.get(epoch)
        if order is None:
            generator = torch.Generator().manual_seed(self.spec.seed + epoch)
            if self.pages is None:
                order = torch.randperm(self.spec.samples, generator=generator)
            else:
                order = quasi_random(self.pages, generator)
            # read-ahead may need the next epoch already: keep the last two orders
            self._orders = {known: self._orders[known] for known in list(self._orders)[-1:]} | {epoch: order}
        return order


def quasi_random(pages: Pages, generator: torch.Generator) -> Tensor:
    """Return a quasi-random order, int64 [samples].

    Groups of `pages.mix_count` random pages follow each other, with the samples mixed within each group. So a reader
    needs at most that many pages at a time.
    """
    _, page = torch.unique(pages.page_ids, return_inverse=True)
    rank = torch.randperm(int(page.max()) + 1, generator=generator)
    mixed = torch.randperm(len(page), generator=generator)
    group = rank[page[mixed]].div(pages.mix_count, rounding_mode="floor")
    return mixed[group.argsort(stable=True)]
