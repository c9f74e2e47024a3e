"""Samples of clients that own theirs: every epoch of a client holds each of its samples once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data import client_streams
from fastlocal.data.client_streams import ClientStreams
from fastlocal.data.partition import Partition
from fastlocal.data.sources.bad_samples import BadSamples
from fastlocal.data.types import BadSample
from fastlocal.kernels.philox import Purpose
from fastlocal.schedule import cohort as cohort_module
from fastlocal.schedule import keyed_permutation
from fastlocal.schedule.cohort import CohortSampler
from fastlocal.schedule.local_work import LocalWork
from tests.helpers import plain_federated

SIZES = st.integers(1, 70) | st.sampled_from([127, 128, 129, 1009])


@given(size=SIZES, seed=st.integers(0, 2**63 - 1), client=st.integers(0, 2**32 - 1), step=st.integers(0, 2**55))
def test_a_keyed_permutation_is_one_and_is_that_of_its_definition(size: int, seed: int, client: int, step: int) -> None:
    places = torch.arange(size)
    key = torch.tensor(client), torch.tensor(step), torch.tensor(size)
    found = keyed_permutation.permute(seed, Purpose.CLIENT_EPOCH, *key, places)
    assert torch.equal(found.sort().values, places)
    place = seed % size
    assert int(found[place]) == plain_federated.permuted(seed, Purpose.CLIENT_EPOCH, client, step, size, place)


def test_all_orders_are_equally_frequent() -> None:
    """Chi-square of the 24 and the 120 orders of four and five samples over 60,000 clients."""
    for size, bound in ((4, 60), (5, 190)):
        clients = torch.arange(60_000).unsqueeze(-1)
        sizes, places = torch.tensor(size), torch.arange(size)
        orders = keyed_permutation.permute(1, Purpose.CLIENT_EPOCH, clients, torch.tensor(0), sizes, places)
        _, counts = (orders * size**places).sum(dim=1).unique(return_counts=True)
        expected = 60_000 / len(counts)
        assert len(counts) == {4: 24, 5: 120}[size]
        assert ((counts - expected) ** 2 / expected).sum() < bound


@given(
    sizes=st.lists(SIZES, min_size=1, max_size=5),
    batch=st.integers(1, 9),
    steps=st.integers(1, 7),
    restart=st.booleans(),
    chosen=st.integers(1, 5),
)
def test_each_epoch_holds_every_sample_once(
    sizes: list[int], batch: int, steps: int, restart: bool, chosen: int
) -> None:
    """Batches run on into the next epoch, and with `continue` rounds do; chunks see the same samples."""
    total = sum(sizes)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(total)).tolist()
    parts = Partition.from_lists([order[sum(sizes[:at]) : sum(sizes[: at + 1])] for at in range(len(sizes))])
    sampler = CohortSampler(seed=7, population=len(sizes), clients=min(chosen, len(sizes)))
    work = LocalWork(torch.full((len(sizes),), steps))
    streams = ClientStreams(parts, sampler, batch_size=batch, work=work, seed=7, restart=restart)
    seen: dict[int, list[int]] = {client: [] for client in range(len(sizes))}
    for number in range(4):
        ids = streams.cohort(number * steps).ids.tolist()
        rows = streams.sample_ids(number * steps, steps, range(len(ids)))
        assert rows.shape == (steps, len(ids), batch)
        apart = [streams.sample_ids(number * steps, steps, range(row, row + 1)) for row in range(len(ids))]
        assert torch.equal(torch.cat(apart, dim=1), rows)
        for row, client in enumerate(ids):
            seen[client] = ([] if restart else seen[client]) + rows[:, row].flatten().tolist()
            for begin in range(0, len(seen[client]), sizes[client]):
                epoch = seen[client][begin : begin + sizes[client]]
                assert len(set(epoch)) == len(epoch) and set(epoch) <= set(parts.samples_of(client).tolist())
    again = ClientStreams(parts, sampler, batch_size=batch, work=work, seed=7, restart=restart)
    ids = streams.cohort(3 * steps).ids
    assert torch.equal(again.sample_ids(3 * steps, steps, range(len(ids))), rows), "a run that continues"


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(("sampling", "drop"), [("uniform", 0.0), ("uniform", 0.4), ("cyclic", 0.0)])
def test_rounds_drawn_together_are_those_drawn_alone(
    sampling: str, drop: float, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, in parts, and in the middle of a round."""
    parts = Partition.from_lists([list(range(7 * client, 7 * client + 7)) for client in range(50)])
    work = LocalWork(torch.full((50,), 3))

    def draws() -> Iterator[Tensor]:
        sampler = CohortSampler(seed=3, population=50, clients=6, sampling=sampling, drop=drop)
        streams = ClientStreams(parts, sampler, batch_size=2, work=work, seed=3, restart=restart)
        for number in (*range(40), 200, 7, 201):
            cohort = streams.cohort(3 * number)
            yield from (cohort.ids, cohort.counts)
            yield streams.sample_ids(3 * number, 3, range(len(cohort) // 2))
            yield streams.sample_ids(3 * number, 3, range(len(cohort) // 2, len(cohort)))
            yield streams.sample_ids(3 * number + 1, 2, range(len(cohort)))

    together = list(draws())
    monkeypatch.setattr(client_streams, "DRAWN_ROUNDS", 1)
    monkeypatch.setattr(cohort_module, "DRAWN_CLIENTS", 1)
    cohort_module._distinct.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(together, draws(), strict=True))


@given(population=st.integers(1, 300), clients=st.integers(1, 300), number=st.integers(1, 10**6))
def test_a_cohort_is_drawn_without_replacement(population: int, clients: int, number: int) -> None:
    clients = min(clients, population)
    ids = CohortSampler(seed=3, population=population, clients=clients).cohort(number).ids
    assert len(ids) == clients and ids.min() >= 0 and ids.max() < population
    assert torch.equal(ids.unique(), ids)


def test_every_client_is_drawn_as_often_as_any() -> None:
    """Over 800 rounds; by samples where these weigh."""
    offsets = torch.tensor([0, 1, 3, 6, 10])
    for sampling, share in (("uniform", [0.25] * 4), ("replacement", [0.25] * 4), ("weighted", [0.1, 0.2, 0.3, 0.4])):
        sampler = CohortSampler(seed=3, population=4, clients=2, sampling=sampling, offsets=offsets)
        drawn = torch.zeros(4)
        for number in range(1, 801):
            cohort = sampler.cohort(number)
            drawn[cohort.ids] += cohort.counts
        assert (drawn / 1600).tolist() == pytest.approx(share, abs=0.05), sampling


def test_a_bad_sample_is_replaced_by_one_of_its_client() -> None:
    parts = Partition.from_lists([[0, 4, 2], [1, 3]])
    bad_samples = BadSamples(6, "skip", threading.RLock(), parts.substitutes(6))

    def fails(sample: int) -> Any:
        return SimpleNamespace(bad=[(0, BadSample(f"image {sample}", "torn"))], rows=SimpleNamespace(ids=[sample]))

    bad_samples.record(fails(4))
    assert bad_samples.replace(np.array([4, 3])).tolist() == [2, 3]
    bad_samples.record(fails(2))
    assert bad_samples.replace(np.array([4, 2, 0])).tolist() == [0, 0, 0]
    with pytest.raises(UsageError, match="nor can any other sample of its client"):
        bad_samples.record(fails(0))
