"""The mean of all clients: the exact one to rounding, alike on every rank, whatever the ranks, chunks and buckets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastlocal.averaging.averager import Averager, make_averager
from tests.averaging.ranks import deal, outcomes

MIB = 2.0**20


def clients_of(row: Tensor, clients: int) -> Tensor:
    """[clients, n_params]: where a round's local steps may have taken them."""
    draw = torch.Generator().manual_seed(clients)
    return row + 1e-3 * torch.randn(clients, row.numel(), generator=draw, dtype=row.dtype)


def start(n_params: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n_params, generator=torch.Generator().manual_seed(n_params), dtype=dtype)


def average(averager: Averager, row: Tensor, mine: Tensor, chunk: int, last: bool) -> Tensor:
    chunks = mine.split(chunk) if len(mine) else ()
    for number, params in enumerate(chunks):
        averager.add(params, last=last and number == len(chunks) - 1)
    averager.launch(row)
    return averager.wait()


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
        given = deal(clients, rank, size)
        averager = make_averager(row, clients, nodes=[0] * size, rank=rank, bucket_mb=bucket / MIB)
        for chunk, last in ((1, False), (2, True), (clients, True)):
            mean = average(averager, row, params[given.start : given.stop], chunk, last)
            far = (mean.double() - exact).abs() / exact.abs().clamp(min=1e-3)
            assert far.max() <= torch.finfo(dtype).eps, (n_params, bucket, chunk, last, far.max())
            assert alike(mean)


def nearer_than_sums_in_float32(rank: int, size: int) -> None:
    """Rounded to the row's dtype, the mean is the one that a single rank has, but for a few ties."""
    row = start(100_003)
    params = clients_of(row, 8)
    mine = params[2 * rank : 2 * rank + 2]
    averager = make_averager(row, 8, nodes=[0] * size, rank=rank, bucket_mb=0.1)
    ours = average(averager, row, mine, 2, True).to(row.dtype)
    alone = average(make_averager(row, 8, nodes=[0], rank=0, bucket_mb=25), row, params, 8, True).to(row.dtype)
    summed = (mine.double().sum(dim=0) / 8).float()
    dist.all_reduce(summed)
    assert (ours != alone).float().mean() < 1e-3 < 0.1 < (summed != alone).float().mean()


def nodes_are_equal(rank: int, size: int) -> None:
    """Two nodes, of which one may have a single rank, and ranks that do not lie in the order of nodes."""
    row = start(1_009)
    params = clients_of(row, 7)
    exact = params.double().mean(dim=0)
    given = deal(7, rank, size)
    for nodes in ([0, 0, 1, 1][:size], [1, 0, 1, 0][:size], [0, 1, 1, 1][:size]):
        averager = make_averager(row, 7, nodes=nodes, rank=rank, bucket_mb=400 / MIB)
        for _ in range(2):
            mean = average(averager, row, params[given.start : given.stop], 2, True)
            assert (mean.double() - exact).abs().max() < 1e-6
            assert alike(mean)


def goes_on_from_saved_sums(rank: int, size: int) -> None:
    """Stopped within a round: the sums of two ranks, added up by name, go on on any rank."""
    row = start(1_009)
    params = clients_of(row, 6)
    before = [make_averager(row, 6, nodes=[0] * size, rank=rank, bucket_mb=25) for _ in range(2)]
    average(before[0], row, params[:3], 3, False)  # sums of an earlier round have to be gone
    for averager, part in zip(before, (slice(0, 1), slice(1, 3)), strict=True):
        averager.add(params[part], last=True)
    saved = {name: value + before[1].so_far()[name] for name, value in before[0].so_far().items()}
    after = make_averager(row, 6, nodes=[0] * size, rank=rank, bucket_mb=25)
    if rank == 0:
        for name, value in after.so_far().items():
            value.copy_(saved[name])
    mean = average(after, row, params[3:] if rank == size - 1 else params[:0], 2, True)
    assert (mean.double() - params.double().mean(dim=0)).abs().max() < 1e-6
    assert alike(mean)


def waiting_is_counted(rank: int, size: int) -> None:
    row = start(1_009)
    averager = make_averager(row, size, nodes=[0] * size, rank=rank, bucket_mb=25)
    averager.add(clients_of(row, size)[rank : rank + 1])
    if rank == size - 1:
        torch.randn(1_000, 1_000).mm(torch.randn(1_000, 1_000))
    averager.launch(row)
    averager.wait()
    assert averager.take_waited() > 0
    assert averager.take_waited() == 0


CHECKS = [
    *((every_element_once, size) for size in (2, 3, 4)),
    (nearer_than_sums_in_float32, 4),
    *((nodes_are_equal, size) for size in (3, 4)),
    *((goes_on_from_saved_sums, size) for size in (1, 3)),
    (waiting_is_counted, 2),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    return outcomes(CHECKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name, size", [(check.__name__, size) for check, size in CHECKS])
def test_on_ranks(name: str, size: int, outcome: dict[tuple[str, int], str]) -> None:
    assert not outcome[name, size], outcome[name, size]


@pytest.mark.parametrize("chunks", [[5], [1, 4], [2, 2, 1]])
def test_one_rank_needs_no_process_group(chunks: Sequence[int]) -> None:
    row = start(10_007)
    params = clients_of(row, 5)
    averager = make_averager(row, 5, nodes=[0], rank=0, bucket_mb=25)
    for _ in range(2):
        for part in params.split(list(chunks)):
            averager.add(part)
        averager.launch(row)
        mean = averager.wait()
        assert mean.dtype == torch.float64
        assert (mean - params.double().mean(dim=0)).abs().max() < 1e-15
    assert not averager.so_far()["sums so far"].any() and averager.take_waited() == 0 and not averager.state()
