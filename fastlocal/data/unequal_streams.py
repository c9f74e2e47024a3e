"""Samples of clients that take different numbers of steps in a round, or short batches at the ends of their epochs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlocal.kernels.philox import Purpose

from ..schedule import keyed_permutation
from ..schedule.local_work import LocalWork
from .client_streams import EPOCH_BITS, ClientStreams


class UnequalStreams(ClientStreams):
    """Streams whose clients take the steps of a LocalWork, those of a round with the same first number.

    With `fill` batches run on into a client's next epoch, with `drop` an epoch ends with its last whole batch, with
    `partial` with a short one.
    """

    def __init__(self, *arguments: Any, work: LocalWork, last_batch: str, **others: Any) -> None:
        """Prepare the streams; see ClientStreams.

        Args:
            arguments: As of ClientStreams.
            work: Local steps of the clients.
            last_batch: fill, drop or partial.
            others: As of ClientStreams.
        """
        super().__init__(*arguments, work=work, **others)
        self._work, self._last_batch = work, last_batch

    def steps(self, first_step: int) -> Tensor:
        return self._work.of(self.cohort(first_step).ids, self._round(first_step))

    def samples_of(self, first_step: int, local_steps: int) -> int:
        return int(self.sizes(first_step, torch.arange(len(self.cohort(first_step)))).sum())

    def owned(self, first_step: int) -> Tensor:
        """Return int64 [rows], the samples of the clients of a round."""
        ids = self.cohort(first_step).ids
        return self._offsets[ids + 1] - self._offsets[ids]

    def sizes(self, first_step: int, rows: Tensor) -> Tensor:
        """Return int64 [local_steps, rows], the samples of each batch; 0 after a client's last step.

        Args:
            first_step: The first step of a round.
            rows: int64 [rows], places in the cohort.
        """
        steps = self.steps(first_step)[rows]
        numbers = torch.arange(int(steps.max()) if len(rows) else 0).unsqueeze(-1)
        sizes = torch.full((len(numbers), len(rows)), self._batch_size)
        if self._last_batch == "partial":
            owned = self.owned(first_step)[rows]
            each = -(-owned // self._batch_size)
            within = (self._taken_before(first_step)[rows] + numbers) % each
            sizes = (owned - within * self._batch_size).clamp(max=self._batch_size)
        return sizes.masked_fill_(numbers >= steps, 0)

    def batches(self, first_step: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples of each batch, int64 [local_steps, rows, batch], and their `sizes`.

        A batch is filled up with its client's first sample.
        """
        sizes = self.sizes(first_step, rows)
        ids, taken = self.cohort(first_step).ids[rows], self._taken_before(first_step)[rows]
        begins, owned = self._offsets[ids], self.owned(first_step)[rows]
        samples = self._indices[begins].view(1, -1, 1).repeat(len(sizes), 1, self._batch_size)
        # [rows, local_steps, batch], so that neighbours have the key of one epoch
        row, step, place = (torch.arange(self._batch_size) < sizes.t().unsqueeze(-1)).nonzero(as_tuple=True)
        batch = taken[row] + step
        if self._last_batch == "fill":
            position = batch * self._batch_size + place
            epochs, within = position // owned[row], position % owned[row]
        else:
            up = self._batch_size - 1 if self._last_batch == "partial" else 0
            each = (owned + up) // self._batch_size
            epochs, within = batch // each[row], batch % each[row] * self._batch_size + place
        first_key = self._round(first_step) << EPOCH_BITS if self._taken is None else 0
        places = keyed_permutation.permute(
            self._seed, Purpose.CLIENT_EPOCH, ids[row], first_key + epochs, owned[row], within
        )
        samples[step, row, place] = self._indices[begins[row] + places]
        return samples, sizes

    def _round(self, first_step: int) -> int:
        return first_step // self._local_steps + 1

    def _taken_before(self, first_step: int) -> Tensor:
        """Return int64 [rows], the steps of a round's clients in the epochs that go on."""
        if self._taken is None:
            return torch.zeros_like(self.cohort(first_step).ids)
        return self._taken.before(self._round(first_step))
