"""Which sample each client sees at each local step: pure index arithmetic.

Without replacement, epoch e is the permutation torch.randperm(samples) seeded with seed + e, and at local step t of the
epoch client c takes positions [(t * clients + c) * batch_size, ... + batch_size): torch's DistributedSampler on one
process. With replacement every index is a Philox draw. Neither depends on chunks or processes.

In a quasi-random order, for data on slow disks, a file's pages come in random order, and samples are mixed among a few
pages at a time only, after the idea of FFCV's order of that name: clients then see samples that are less independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlocal.kernels import philox


@dataclass(frozen=True)
class StreamSpec:
    """What decides every stream.

    samples: size of the training set        steps_per_epoch: local steps between two reshuffles
    """

    samples: int
    clients: int
    batch_size: int
    steps_per_epoch: int
    replacement: bool
    seed: int


@dataclass(frozen=True)
class Pages:
    """What a quasi-random order goes by.

    of: int64 [samples], the page of a file that each sample is in; any numbers, one a page
    mixed: pages whose samples are mixed with each other
    """

    of: Tensor
    mixed: int


class Streams:
    """The sample streams of all clients.

    pages: of a quasi-random order; None: every permutation is as likely
    """

    def __init__(self, spec: StreamSpec, pages: Pages | None = None) -> None:
        self.spec, self.pages = spec, pages
        self._orders: dict[int, Tensor] = {}

    def sample_ids(self, first_step: int, local_steps: int, clients: range) -> Tensor:
        """int64 [local_steps, clients, batch] of the global local steps from `first_step` on, on the CPU."""
        spec = self.spec
        if spec.replacement:
            numbers = torch.arange(clients.start, clients.stop)
            steps = torch.arange(first_step, first_step + local_steps).unsqueeze(-1)
            words = philox.draw(spec.seed, philox.Purpose.SAMPLE, numbers, steps, spec.batch_size)
            return philox.below(words[0], spec.samples)
        rows = []
        for step in range(first_step, first_step + local_steps):
            epoch, within = divmod(step, spec.steps_per_epoch)
            begin = (within * spec.clients + clients.start) * spec.batch_size
            size = len(clients) * spec.batch_size
            rows.append(self._permutation(epoch)[begin : begin + size].view(len(clients), spec.batch_size))
        return torch.stack(rows)

    def epoch_batches(self, epoch: int, most: int) -> Iterator[tuple[Tensor, int, int]]:
        """The first `most` batches of an epoch's order, or as many as it has, as (sample ids [batch], client, step).

        `client` and `step` (global) are those of the batch's place in the order, so that a batch that is also trained
        on is augmented as it was there.
        """
        spec = self.spec
        there = spec.steps_per_epoch * spec.clients if spec.replacement else spec.samples // spec.batch_size
        for index in range(min(most, there)):
            within, client = divmod(index, spec.clients)
            step = epoch * spec.steps_per_epoch + within
            if spec.replacement:
                ids = self.sample_ids(step, 1, range(client, client + 1))[0, 0]
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
            # what is read ahead may be of the next epoch already
            self._orders = {known: self._orders[known] for known in list(self._orders)[-1:]} | {epoch: order}
        return order


def quasi_random(pages: Pages, generator: torch.Generator) -> Tensor:
    """int64 [samples]: all samples, those of `pages.mixed` pages drawn at random first, mixed, then those of others.

    Whoever reads on from any place in it needs at most `pages.mixed` pages before the next group of pages begins.
    """
    _, page = torch.unique(pages.of, return_inverse=True)
    rank = torch.randperm(int(page.max()) + 1, generator=generator)
    mixed = torch.randperm(len(page), generator=generator)
    group = rank[page[mixed]].div(pages.mixed, rounding_mode="floor")
    return mixed[group.argsort(stable=True)]
