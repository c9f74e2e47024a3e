"""What each rank of a group checks of the average, as run by tests.aggregation.ranks."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastlocal.aggregation.averager import Aggregator, make_averager
from fastlocal.aggregation.buckets import Buckets
from fastlocal.aggregation.routes import AllReduce
from tests.aggregation.ranks import split_contiguous

MIB = 2.0**20
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}


def clients_of(row: Tensor, clients: int) -> Tensor:
    """[clients, n_params]: where a round's local steps may have taken them."""
    draw = torch.Generator().manual_seed(clients)
    return row + 1e-3 * torch.randn(clients, row.numel(), generator=draw, dtype=row.dtype)


def start(n_params: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n_params, generator=torch.Generator().manual_seed(n_params), dtype=dtype)


def average(averager: Aggregator, row: Tensor, mine: Tensor, chunk: int, last: bool, clients: int) -> Tensor:
    chunks = mine.split(chunk) if len(mine) else ()
    for number, params in enumerate(chunks):
        averager.accumulate(params, last=last and number == len(chunks) - 1)
    averager.start(row.clone(), clients)  # where the mean may be put
    return averager.finish()


def alike(mean: Tensor) -> bool:
    """Whether all ranks hold the same bits."""
    every = [torch.empty_like(mean) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mean.contiguous())
    return all(torch.equal(one.view(torch.uint8), mean.view(torch.uint8)) for one in every)


def every_element_once(rank: int, size: int) -> None:
    """Sizes that do not divide: buckets of one element, of a prime, larger than everything; uneven clients; chunks."""
    for n_params, bucket, clients, dtype in (
        (1, 4, 1, torch.float32),
        (13, 4, 5, torch.float32),
        (13, 28, 2, torch.float64),
        (10_007, 4 * 997, 7, torch.float32),
        (10_007, 4 * 10_006, 3, torch.float32),
        (150_001, 4 * 70_000, 9, torch.float32),
        (10_007, MIB, 4, torch.float64),
    ):
        row = start(n_params, dtype)
        params = clients_of(row, clients)
        exact = params.double().mean(dim=0)
        given = split_contiguous(clients, rank, size)
        averager = make_averager(row, clients, nodes=[0] * size, rank=rank, bucket_mb=bucket / MIB)
        for chunk, last in ((1, False), (2, True), (clients, True)):
            mean = average(averager, row, params[given.start : given.stop], chunk, last, clients)
            far = (mean.double() - exact).abs() / exact.abs().clamp(min=1e-3)
            assert far.max() <= torch.finfo(dtype).eps, (n_params, bucket, chunk, last, far.max())
            assert alike(mean)


def nearer_than_sums_in_float32(rank: int, size: int) -> None:
    """Rounded to the row's dtype, the mean is the one that a single rank has, but for a few ties."""
    row = start(100_003)
    params = clients_of(row, 8)
    mine = params[2 * rank : 2 * rank + 2]
    averager = make_averager(row, 8, nodes=[0] * size, rank=rank, bucket_mb=0.1)
    ours = average(averager, row, mine, 2, True, 8).to(row.dtype)
    alone = average(make_averager(row, 8, nodes=[0], rank=0, bucket_mb=25), row, params, 8, True, 8).to(row.dtype)
    summed = (mine.double().sum(dim=0) / 8).float()
    dist.all_reduce(summed)
    assert (ours != alone).float().mean() < 1e-3 < 0.1 < (summed != alone).float().mean()


def nodes_are_equal(rank: int, size: int) -> None:
    """Two nodes, of which one may have a single rank, and ranks that do not lie in the order of nodes."""
    row = start(1_009)
    params = clients_of(row, 7)
    exact = params.double().mean(dim=0)
    given = split_contiguous(7, rank, size)
    for nodes in ([0, 0, 1, 1][:size], [1, 0, 1, 0][:size], [0, 1, 1, 1][:size]):
        averager = make_averager(row, 7, nodes=nodes, rank=rank, bucket_mb=400 / MIB)
        for _ in range(2):
            mean = average(averager, row, params[given.start : given.stop], 2, True, 7)
            assert (mean.double() - exact).abs().max() < 1e-6
            assert alike(mean)


def goes_on_from_saved_sums(rank: int, size: int) -> None:
    """Stopped within a round: the sums of two ranks, added up by name, go on on any rank."""
    row = start(1_009)
    params = clients_of(row, 6)
    before = [make_averager(row, 6, nodes=[0] * size, rank=rank, bucket_mb=25) for _ in range(2)]
    average(before[0], row, params[:3], 3, False, 6)  # sums of an earlier round have to be gone
    for averager, part in zip(before, (slice(0, 1), slice(1, 3)), strict=True):
        averager.accumulate(params[part], last=True)
    saved = {name: value + before[1].partial_sums()[name] for name, value in before[0].partial_sums().items()}
    after = make_averager(row, 6, nodes=[0] * size, rank=rank, bucket_mb=25)
    if rank == 0:
        for name, value in after.partial_sums().items():
            value.copy_(saved[name])
    mean = average(after, row, params[3:] if rank == size - 1 else params[:0], 2, True, 6)
    assert (mean.double() - params.double().mean(dim=0)).abs().max() < 1e-6
    assert alike(mean)


def fixed_order(rank: int, size: int) -> None:
    """The bits are those of one rank with all clients in one chunk, whatever the ranks, nodes, chunks and buckets."""
    for n_params, clients, dtype in ((1_009, 7, torch.float32), (1_009, 5, torch.float64), (5, 2, torch.float32)):
        row = start(n_params, dtype)
        params = clients_of(row, clients)
        params[0, :4] = torch.tensor([1e-30, 2.0**24, 0.0, -(2.0**24)])
        params[-1, :5] = torch.tensor([1.0, 2.0**24, -0.0, -3e7, torch.inf])
        given = split_contiguous(clients, rank, size)
        alone = make_averager(row, clients, nodes=[0], rank=0, bucket_mb=25, reduce_order="fixed")
        expected = average(alone, row, params, clients, False, clients).clone()
        assert expected[3:5].isnan().all() and not expected[5:].isnan().any()
        exact = params.double().mean(dim=0)
        exact[3:5] = expected[3:5] = 0
        assert (expected - exact).abs().max() < 1e-9 and (expected - exact)[4:].abs().max() < 1e-15
        for nodes in ([0] * size, [0, 0, 1, 1][:size]):
            averager = make_averager(row, clients, nodes=nodes, rank=rank, bucket_mb=800 / MIB, reduce_order="fixed")
            for chunk, last in ((1, True), (2, False), (3, True)):
                mean = average(averager, row, params[given.start : given.stop], chunk, last, clients)
                mean[3:5] = mean[3:5].masked_fill(mean[3:5].isnan(), 0)
                assert torch.equal(mean, expected), (n_params, nodes, chunk)


def sixteen_bits_track(rank: int, size: int) -> None:
    """Clients of a quadratic problem: what is owed stays bounded, and the trajectory stays at the full one's side.

    Client c pulls each parameter towards its own target. What two roundings lose in a round is at most two units of
    its last place, and with feedback the trajectories are never further apart than that; without, losses add up.
    """
    clients, rounds, pull = 5, 40, 0.01
    given = split_contiguous(clients, rank, size)
    targets = start(clients * 211).view(clients, 211) * torch.logspace(-4, 2, 211)
    for nodes, wire_format in (([0] * size, "fp16"), ([0, 0, 1, 1], "bf16")):
        far, bound = {}, 2 * ROUNDING[wire_format] * pull
        for feedback in (True, False):
            row = full = torch.zeros(211)
            averager = make_averager(row, clients, nodes=nodes, rank=rank, bucket_mb=220 / MIB, wire_format=wire_format)
            for _ in range(rounds):
                mine = row + pull * (targets - row)[given.start : given.stop]
                row = average(averager, row, mine, 2, True, clients).clone()
                full = full + pull * (targets.mean(dim=0) - full)
                for value in () if feedback else averager.error_feedback().values():
                    value.zero_()
            assert alike(row)
            far[feedback] = ((row - full).abs() / targets.abs().mean(dim=0)).max().item()
        assert far[True] < bound and far[False] > 3 * far[True], (nodes, wire_format, far)


def owed_goes_on(rank: int, size: int) -> None:
    """What ranks owe, restored, gives the same bits; given to one rank, the same sum."""
    row = start(301)
    params = clients_of(row, size)
    mine = params[rank : rank + 1]
    averagers = [
        make_averager(row, size, nodes=[0] * size, rank=rank, bucket_mb=120 / MIB, wire_format="bf16") for _ in range(3)
    ]
    average(averagers[0], row, mine, 1, True, size)
    owed = averagers[0].error_feedback()["owed to the mean"].clone()
    assert owed.any()
    averagers[1].error_feedback()["owed to the mean"].copy_(owed)
    again = [average(averager, row, mine, 1, True, size).clone() for averager in averagers[:2]]
    assert torch.equal(*again)
    together = owed.clone()
    dist.all_reduce(together)
    if rank == 0:
        averagers[2].error_feedback()["owed to the mean"].copy_(together)
    elsewhere = average(averagers[2], row, mine, 1, True, size)
    assert (elsewhere - again[0]).abs().max() < 2e-5
    exact = params.mean(dim=0) + together / size
    assert (elsewhere - exact).abs().max() < 2e-5
    alone = make_averager(row, size, nodes=[0], rank=0, bucket_mb=25, wire_format="bf16")
    alone.load_residual(together)
    assert torch.equal(alone.error_feedback()["owed to the mean"], together)
    alone.accumulate(params[:1])
    assert (average(alone, row, params[1:], size, True, size) - exact).abs().max() < 1e-6
    assert not alone.error_feedback()
    assert (average(alone, row, params, size, True, size) - params.mean(dim=0)).abs().max() < 1e-6


def extremes_in_sixteen_bits(rank: int, size: int) -> None:
    """Changes beyond fp16's range and below it, and none at all; a lost client is seen by every rank."""
    for scale in (0.0, 1e-30, 1e-9, 1e7, 1e30):
        row = torch.zeros(37)
        mine = scale * clients_of(torch.zeros(37), size)[rank : rank + 1] * 1e3
        for wire_format in ("bf16", "fp16"):
            averager = make_averager(
                row, size, nodes=[0] * size, rank=rank, bucket_mb=100 / MIB, wire_format=wire_format
            )
            mean = average(averager, row, mine, 1, True, size).clone()
            exact = scale * clients_of(torch.zeros(37), size).mean(dim=0) * 1e3
            assert (mean - exact).abs().max() <= 2**-7 * exact.abs().max()
            lost = mine.clone()
            lost[0, rank] = torch.nan if rank else torch.inf
            mean = average(averager, row, lost, 1, True, size)
            assert not mean[:size].isfinite().any()
            assert alike(mean.nan_to_num())


def looking_changes_nothing(rank: int, size: int) -> None:
    """The sums saved between the last chunk and the average: the bits are those of a run that went straight on."""
    for clients, dtype in ((5, torch.float64), (9, torch.float32), (1, torch.float32), (1, torch.float64)):
        row = start(20_011, dtype)
        params = clients_of(row, clients)
        averager = make_averager(row, clients, nodes=[0] * size, rank=rank, bucket_mb=70_001 / MIB)
        straight_on = average(averager, row, params if rank == 0 else params[:0], clients, True, clients).clone()
        if rank == 0:
            averager.accumulate(params, last=True)
        averager.partial_sums()
        averager.start(row.clone(), clients)
        assert torch.equal(averager.finish(), straight_on)


def trace_shows_the_overlap(rank: int, size: int) -> None:
    """The second bucket is filled for as long as it takes the first to be reduced: only a trace of both fits that."""
    buckets = Buckets(1, 256, torch.float32, torch.device("cpu"), 256, AllReduce(None))

    def fill(wire: Tensor, columns: slice) -> None:
        wire.fill_(rank + 1)
        until = time.monotonic() + 20
        while columns.start == 64 and (buckets.flat[:64] != 3).any() and time.monotonic() < until:
            time.sleep(1e-3)

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        buckets.start(fill, lambda wire, columns: None)
        buckets.wait()
    last_first = sorted(profile.events(), key=lambda event: -event.time_range.start)
    found = {event.name: event.time_range for event in last_first}  # the first of each name
    assert found["gloo:all_reduce"].start < found["bucket 1 filled"].end
    stretches = ("filled", "waited for", "emptied")
    assert {f"bucket {number} {what}" for number in range(4) for what in stretches} <= {*found}


def a_rank_that_is_gone_is_an_error(rank: int, size: int) -> None:
    """Within `finish`, long before the timeout; the last check, for it leaves no group that could be used."""
    row = start(1_009)
    averager = make_averager(row, size, nodes=[0] * size, rank=rank, bucket_mb=400 / MIB)
    dist.barrier()
    if rank < size - 1:
        averager.accumulate(clients_of(row, 1), last=True)
        averager.start(row, size)
        with pytest.raises(RuntimeError):
            averager.finish()
    dist.destroy_process_group()
