"""Samples of clients that own theirs: the concatenation of each client's epochs.

An epoch of a client is a keyed permutation of its samples (schedule/keyed_permutation.py), of which a round computes
only the positions that it needs, so that it costs O(clients of the round). Batches run on into the next epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlocal.kernels.philox import Purpose

from ..schedule import keyed_permutation
from ..schedule.cohort import Cohort, CohortSampler, StepsTaken
from ..schedule.local_work import LocalWork
from .partition import Partition

EPOCH_BITS = 31
"""Bits of the epoch within a round in the key of an epoch."""
DRAWN_SAMPLES, DRAWN_ROUNDS = 2**14, 32
"""Most samples and rounds that are drawn at a time: 600 samples take 1.1 ms alone, and 0.1 ms with others."""


class ClientStreams:
    """Streams of the clients of each round."""

    def __init__(
        self,
        partition: Partition,
        sampler: CohortSampler,
        *,
        batch_size: int,
        work: LocalWork,
        seed: int,
        restart: bool,
    ) -> None:
        """Prepare the streams.

        Args:
            partition: Samples of each client.
            sampler: Clients of each round.
            batch_size: Samples per client and step.
            work: Local steps of the clients.
            seed: Seed of the run.
            restart: Whether a client begins a new epoch in every round; else it goes on where its last round ended.
        """
        self.population = partition.clients
        self.sampler = sampler
        self._indices, self._offsets = torch.from_numpy(partition.indices), torch.from_numpy(partition.offsets)
        self._batch_size, self._local_steps, self._seed = batch_size, work.most, seed
        self._taken = None if restart else StepsTaken(sampler, work)
        self._cohorts: dict[int, Cohort] = {}
        self._drawn: dict[tuple[int, int, int], Tensor] = {}
        samples = max(1, sampler.clients * work.most * batch_size)
        self._together = max(1, min(DRAWN_ROUNDS, DRAWN_SAMPLES // samples))

    @property
    def samples(self) -> int:
        """Number of samples that clients own."""
        return len(self._indices)

    def cohort(self, first_step: int) -> Cohort:
        """Return the clients of the round that begins with the global local step `first_step`."""
        number = first_step // self._local_steps + 1
        cohort = self._cohorts.get(number)
        if cohort is None:
            cohort = self.sampler.cohort(number)
            # read-ahead may need the next rounds already: keep the last few
            kept = list(self._cohorts)[-2 - self._together :]
            self._cohorts = {known: self._cohorts[known] for known in kept} | {number: cohort}
        return cohort

    def steps(self, first_step: int) -> Tensor | None:
        return None

    def samples_of(self, first_step: int, local_steps: int) -> int:
        return len(self.cohort(first_step)) * local_steps * self._batch_size

    def sample_ids(self, first_step: int, local_steps: int, rows: range) -> Tensor:
        number, done = divmod(first_step, self._local_steps)
        if self._together == 1:
            ids, taken = self._starts(number)
            drawn = self._draw(ids[rows.start : rows.stop], taken[rows.start : rows.stop], number, done, local_steps)
        else:
            if (number, done, local_steps) not in self._drawn:
                self._draw_rounds(range(number, number + self._together), done, local_steps)
            drawn = self._drawn[number, done, local_steps][rows.start : rows.stop]
        return drawn.transpose(0, 1).contiguous()

    def _draw_rounds(self, numbers: range, done: int, local_steps: int) -> None:
        """Draw the samples of all clients of some rounds, each a pure function of its number."""
        starts = [self._starts(number) for number in numbers]
        ids, taken = (torch.cat(parts) for parts in zip(*starts, strict=True))
        sizes = [len(own) for own, _ in starts]
        drawn = self._draw(ids, taken, torch.tensor(numbers).repeat_interleave(torch.tensor(sizes)), done, local_steps)
        keys = [(number, done, local_steps) for number in numbers]
        # chunks of the round before the first may still be wanted
        kept = {key: self._drawn[key] for key in list(self._drawn)[-self._together :]}
        self._drawn = kept | dict(zip(keys, drawn.split(sizes), strict=True))

    def _starts(self, number: int) -> tuple[Tensor, Tensor]:
        """Return int64 [rows]: the clients of a round, counted from 0, and their steps in epochs that go on."""
        ids = self.cohort(number * self._local_steps).ids
        return ids, torch.zeros_like(ids) if self._taken is None else self._taken.before(number + 1)

    def _draw(self, ids: Tensor, taken: Tensor, numbers: Tensor | int, done: int, local_steps: int) -> Tensor:
        """Return the samples of clients, int64 [ids, local_steps, batch].

        Args:
            ids: int64 [ids], the clients.
            taken: int64 [ids], their steps before the round in epochs that go on.
            numbers: The round of all, or int64 [ids], counted from 0.
            done: Steps of the round that are done.
            local_steps: Steps after these.
        """
        # the first key of all epochs, which `restart` draws anew in every round
        first_key = (torch.as_tensor(numbers).unsqueeze(-1) + 1) << EPOCH_BITS if self._taken is None else 0
        wanted = torch.arange(done * self._batch_size, (done + local_steps) * self._batch_size)
        positions = taken.unsqueeze(-1) * self._batch_size + wanted
        begins, sizes = self._offsets[ids].unsqueeze(-1), (self._offsets[ids + 1] - self._offsets[ids]).unsqueeze(-1)
        epochs, within = positions // sizes, positions % sizes
        places = keyed_permutation.permute(
            self._seed, Purpose.CLIENT_EPOCH, ids.unsqueeze(-1), first_key + epochs, sizes, within
        )
        return self._indices[begins + places].view(len(ids), local_steps, self._batch_size)

    def estimation_batches(self, steps_done: int, max_batches: int) -> Iterator[tuple[Tensor, int, int]]:
        """Yield batches of a permutation of all owned samples that is keyed by the round.

        Each has a client number of its own above those of the population, for its augmentation.
        """
        number = max(steps_done - 1, 0) // self._local_steps + 1
        size = min(self._batch_size, self.samples)
        zero, step, samples = torch.tensor(0), torch.tensor(number), torch.tensor(self.samples)
        for index in range(min(max_batches, self.samples // size)):
            positions = torch.arange(index * size, (index + 1) * size)
            places = keyed_permutation.permute(self._seed, Purpose.ESTIMATE, zero, step, samples, positions)
            yield self._indices[places], self.population + index, steps_done
