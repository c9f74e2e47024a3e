"""Which samples each client sees, against torch's own sampler and loader."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fastlocal.data.sample_streams import Streams, StreamSpec


class Numbers(Dataset[int]):
    """The samples 0, 1, ..., count - 1."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


@st.composite
def specs(draw: st.DrawFn, replacement: bool | None = False) -> StreamSpec:
    """Streams of any client count, batch size and epoch length; without replacement an epoch fits into the samples."""
    clients, batch_size = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    steps_per_epoch = draw(st.integers(1, 5))
    spare = draw(st.integers(0, 20))
    return StreamSpec(
        samples=clients * batch_size * steps_per_epoch + spare,
        clients=clients,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        replacement=draw(st.booleans()) if replacement is None else replacement,
        seed=draw(st.integers(0, 2**40)),
    )


def loader_order(spec: StreamSpec, epoch: int) -> list[Tensor]:
    """The batches of one epoch as one process of a distributed run gets them."""
    samples = Numbers(spec.samples)
    sampler = DistributedSampler(samples, num_replicas=1, rank=0, seed=spec.seed)
    sampler.set_epoch(epoch)
    return list(DataLoader(samples, batch_size=spec.batch_size, sampler=sampler, drop_last=True))


def all_clients(streams: Streams, first_step: int, local_steps: int) -> Tensor:
    return streams.sample_ids(first_step, local_steps, range(streams.spec.clients))


@given(spec=specs(), epoch=st.integers(0, 50))
def test_no_sample_comes_twice_in_an_epoch(spec: StreamSpec, epoch: int) -> None:
    ids = all_clients(Streams(spec), epoch * spec.steps_per_epoch, spec.steps_per_epoch)
    assert ids.shape == (spec.steps_per_epoch, spec.clients, spec.batch_size)
    assert ids.dtype == torch.int64
    seen = ids.flatten().tolist()
    assert len(set(seen)) == len(seen)
    assert 0 <= min(seen) and max(seen) < spec.samples


@given(spec=specs(), epoch=st.integers(0, 50))
def test_clients_take_turns_at_the_batches_of_a_distributed_sampler(spec: StreamSpec, epoch: int) -> None:
    ids = all_clients(Streams(spec), epoch * spec.steps_per_epoch, spec.steps_per_epoch)
    batches = loader_order(spec, epoch)
    for client in range(spec.clients):
        for step in range(spec.steps_per_epoch):
            assert torch.equal(ids[step, client], batches[step * spec.clients + client])


@given(
    spec=specs(replacement=None),
    first_step=st.integers(0, 40),
    local_steps=st.integers(1, 12),
    chunk=st.integers(1, 12),
    data=st.data(),
)
def test_the_same_samples_for_any_chunking_and_any_rounds(
    spec: StreamSpec, first_step: int, local_steps: int, chunk: int, data: st.DataObject
) -> None:
    whole = all_clients(Streams(spec), first_step, local_steps)
    streams = Streams(spec)
    chunks = [range(begin, min(begin + chunk, spec.clients)) for begin in range(0, spec.clients, chunk)]
    order = data.draw(st.permutations(range(len(chunks))))
    parts = {index: streams.sample_ids(first_step, local_steps, chunks[index]) for index in order}
    assert torch.equal(whole, torch.cat([parts[index] for index in range(len(chunks))], dim=1))

    alone = [all_clients(streams, first_step + step, 1) for step in range(local_steps)]
    assert torch.equal(whole, torch.cat(alone))


@given(spec=specs(), epoch=st.integers(0, 5))
def test_a_round_straddles_epochs(spec: StreamSpec, epoch: int) -> None:
    streams, per_epoch = Streams(spec), spec.steps_per_epoch
    first = epoch * per_epoch + per_epoch // 2
    ids = all_clients(streams, first, 2 * per_epoch)
    for index in range(2 * per_epoch):
        number, within = divmod(first + index, per_epoch)
        batches = loader_order(spec, number)
        for client in range(spec.clients):
            assert torch.equal(ids[index, client], batches[within * spec.clients + client])


@given(spec=specs(), epoch=st.integers(0, 9), most=st.integers(0, 70))
def test_batchnorm_batches_are_the_first_of_the_epoch(spec: StreamSpec, epoch: int, most: int) -> None:
    streams = Streams(spec)
    expected = loader_order(spec, epoch)[:most]
    found = list(streams.estimation_batches(epoch * spec.steps_per_epoch + 1, most))
    assert len(found) == len(expected) == min(most, spec.samples // spec.batch_size)
    for (ids, _, _), batch in zip(found, expected, strict=True):
        assert torch.equal(ids, batch)


@given(spec=specs(replacement=None), epoch=st.integers(0, 9))
def test_batchnorm_batches_know_the_client_and_step_that_train_on_them(spec: StreamSpec, epoch: int) -> None:
    streams = Streams(spec)
    trained = spec.clients * spec.steps_per_epoch
    found = list(streams.estimation_batches(epoch * spec.steps_per_epoch + 1, trained))
    assert len(found) == trained
    for ids, client, step in found:
        assert torch.equal(ids, streams.sample_ids(step, 1, range(client, client + 1))[0, 0])
    assert [(step, client) for _, client, step in found] == [
        (epoch * spec.steps_per_epoch + step, client)
        for step in range(spec.steps_per_epoch)
        for client in range(spec.clients)
    ]


@settings(max_examples=30)
@given(spec=specs(replacement=True), first_step=st.integers(0, 2**31))
def test_draws_with_replacement_are_in_range(spec: StreamSpec, first_step: int) -> None:
    ids = all_clients(Streams(spec), first_step, 3)
    assert ids.shape == (3, spec.clients, spec.batch_size)
    assert 0 <= int(ids.min()) and int(ids.max()) < spec.samples


def test_draws_with_replacement_are_uniform_and_differ_between_clients_and_steps() -> None:
    spec = StreamSpec(samples=50, clients=20, batch_size=32, steps_per_epoch=3, replacement=True, seed=1)
    ids = all_clients(Streams(spec), 0, 40)
    cells, mean = torch.bincount(ids.flatten(), minlength=50), ids.numel() / 50
    # chi-square with 49 degrees of freedom exceeds 85.4 once in a thousand seeds
    assert float(((cells - mean) ** 2 / mean).sum()) < 85.4
    batches = ids.reshape(-1, 32)
    assert len({tuple(batch.tolist()) for batch in batches}) == len(batches)
    assert any(len(set(batch.tolist())) < 32 for batch in batches)


def test_the_epochs_and_the_seeds_have_different_orders() -> None:
    spec = StreamSpec(samples=64, clients=4, batch_size=4, steps_per_epoch=4, replacement=False, seed=3)
    first, second = (all_clients(Streams(spec), begin, 4) for begin in (0, 4))
    assert not torch.equal(first, second)
    # seed + epoch: the next seed begins where this one is an epoch later, as in torch's sampler
    following = dataclasses.replace(spec, seed=4)
    assert torch.equal(second, all_clients(Streams(following), 0, 4))
