"""Clients that take part in each round, as a pure function of the seed and the round."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlocal.kernels import philox
from fastlocal.kernels.philox import Purpose

from . import keyed_permutation
from .local_work import LocalWork

DRAWN_CLIENTS = 2**10
"""Most clients of several rounds that are drawn at a time: 10 clients take 0.7 ms alone, and 0.01 ms with others."""


@dataclass(frozen=True)
class Cohort:
    """The clients of a round. A row is a place in it.

    Attributes:
        ids: int64 [rows], numbers of the clients in ascending order, each once.
        counts: int64 [rows], how often each was drawn.
    """

    ids: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class CohortSampler:
    """Draws the cohort of any round in O(cohort).

    Attributes:
        seed: Seed of the run.
        population: Number of clients.
        clients: Clients drawn per round.
        sampling: uniform, replacement, weighted, cyclic or availability.
        drop: Probability that a drawn client does not take part.
        offsets: int64 [population + 1], running sum of the clients' samples, for weighted sampling.
        available: int64 numbers of the clients that can take part in each round; after the last, from the first again.
        idle: bool [population], clients that never take part, or None.
    """

    seed: int
    population: int
    clients: int
    sampling: str = "uniform"
    drop: float = 0.0
    offsets: Tensor | None = None
    available: Sequence[Tensor] | None = None
    idle: Tensor | None = None

    @property
    def everybody(self) -> bool:
        """Return True if every client takes part in every round."""
        all_drawn = self.clients == self.population and self.sampling in ("uniform", "cyclic")
        return all_drawn and self.drop == 0.0 and self.idle is None

    def cohort(self, round_number: int) -> Cohort:
        """Return the clients of a round, counted from 1; may be empty where all are dropped."""
        ids, counts = self._drawn(round_number)
        if self.drop:
            words = philox.draw(self.seed, Purpose.DROP, ids, round_number, 1)[0].squeeze(-1)
            stays = ~philox.happens(words, self.drop)
            ids, counts = ids[stays], counts[stays]
        if self.idle is not None:
            works = ~self.idle[ids]
            ids, counts = ids[works], counts[works]
        return Cohort(ids, counts)

    def _drawn(self, round_number: int) -> tuple[Tensor, Tensor]:
        if self.sampling in ("replacement", "weighted"):
            words = philox.draw(
                self.seed, Purpose.COHORT, torch.zeros((), dtype=torch.int64), round_number, self.clients
            )
            if self.sampling == "replacement":
                drawn = philox.below(words[0], self.population)
            else:
                assert self.offsets is not None, "weighted sampling knows the clients' samples"
                sample = philox.below(words[0], int(self.offsets[-1]))
                drawn = torch.searchsorted(self.offsets, sample, right=True) - 1
            ids, counts = torch.unique(drawn, return_counts=True)
            return ids, counts
        if self.sampling == "cyclic":
            first = (round_number - 1) * self.clients
            ids = (first + torch.arange(self.clients)) % self.population
        elif self.available is not None:
            can = self.available[(round_number - 1) % len(self.available)]
            ids = can[self._distinct(round_number, len(can))]
        else:
            ids = self._distinct(round_number, self.population)
        ids = ids.sort().values
        return ids, torch.ones_like(ids)

    def _distinct(self, round_number: int, size: int) -> Tensor:
        """Return up to `clients` distinct numbers below `size`, each set equally likely."""
        if size <= self.clients:
            return torch.arange(size)
        together = max(1, DRAWN_CLIENTS // self.clients)
        block, place = divmod(round_number, together)
        return _distinct(self.seed, size, self.clients, range(block * together, (block + 1) * together))[place]


@functools.lru_cache(maxsize=4)
def _distinct(seed: int, size: int, clients: int, rounds: range) -> Tensor:
    """Return int64 [rounds, clients], distinct numbers below `size` for each round."""
    steps = torch.tensor(rounds).unsqueeze(-1)
    zero, places = torch.zeros((), dtype=torch.int64), torch.arange(clients)
    return keyed_permutation.permute(seed, Purpose.COHORT, zero, steps, torch.tensor(size), places)


@dataclass(frozen=True)
class ClientWeights:
    """Weights of the clients in a round's mean.

    Attributes:
        offsets: int64 [population + 1], whose differences are the weights of all clients, or None.
        values: float64 [population], the weights of all clients, or None; with neither, weights are equal.
    """

    offsets: Tensor | None = None
    values: Tensor | None = None

    def of(self, cohort: Cohort) -> Tensor | None:
        """Return float64 [rows] with sum 1, or None for equal weights."""
        if self.offsets is not None:
            weights = (self.offsets[cohort.ids + 1] - self.offsets[cohort.ids]).double()
        elif self.values is not None:
            weights = self.values[cohort.ids]
            weights = weights / weights.max()  # the sum of weights near the largest float is infinite
        elif bool((cohort.counts == 1).all()):
            return None
        else:
            weights = torch.ones(len(cohort), dtype=torch.float64)
        weights = weights * cohort.counts
        return weights / weights.sum()

    @functools.cached_property
    def _mean(self) -> Tensor:
        """The mean of `values`, computed once: a round costs what its cohort costs."""
        assert self.values is not None, "asked by `shares`"
        return self.values.mean()

    def shares(self, cohort: Cohort) -> Tensor:
        """Return float64 [rows]: the weights of the round's clients in multiples of the population's mean weight."""
        if self.offsets is not None:
            sizes = (self.offsets[cohort.ids + 1] - self.offsets[cohort.ids]).double()
            return sizes * (len(self.offsets) - 1) / self.offsets[-1]
        if self.values is not None:
            return self.values[cohort.ids] / self._mean
        return torch.ones(len(cohort), dtype=torch.float64)


class StepsTaken:
    """Local steps that clients took before a round.

    A pure function of the cohorts: a run that continues counts the rounds before it again.
    """

    def __init__(self, sampler: CohortSampler, work: LocalWork) -> None:
        self._sampler, self._work = sampler, work
        self._taken = torch.zeros(sampler.population, dtype=torch.int64)
        self._counted = 0
        self._known: dict[int, Tensor] = {}

    def before(self, round_number: int) -> Tensor:
        """Return int64 [rows]: the steps of the round's clients before it."""
        if self._sampler.everybody and not self._work.stragglers:
            return (round_number - 1) * self._work.of(self._sampler.cohort(round_number).ids, round_number)
        if round_number not in self._known and round_number <= self._counted:
            self._taken.zero_()
            self._counted = 0
        while self._counted < round_number:
            ids = self._sampler.cohort(self._counted + 1).ids
            self._counted += 1
            # a chunk may be planned while later rounds are read ahead: keep the starts of the last few rounds
            self._known = dict(list(self._known.items())[-KEPT:]) | {self._counted: self._taken[ids]}
            self._taken[ids] += self._work.of(ids, self._counted)
        return self._known[round_number]


KEPT = 64
"""Rounds whose starts are kept."""
