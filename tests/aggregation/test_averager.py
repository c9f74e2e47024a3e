"""The mean of all clients: the exact one to rounding, alike on every rank, whatever the ranks, chunks and buckets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fastlocal.aggregation.averager import make_averager
from tests.aggregation.rank_checks import (
    a_rank_that_is_gone_is_an_error,
    clients_of,
    every_element_once,
    extremes_in_sixteen_bits,
    fixed_order,
    goes_on_from_saved_sums,
    looking_changes_nothing,
    nearer_than_sums_in_float32,
    nodes_are_equal,
    owed_goes_on,
    sixteen_bits_track,
    start,
    trace_shows_the_overlap,
)
from tests.aggregation.ranks import outcomes
from tests.helpers.fork_server import ForkServer

CHECKS = [
    *((every_element_once, size) for size in (2, 3, 4)),
    (nearer_than_sums_in_float32, 4),
    *((nodes_are_equal, size) for size in (3, 4)),
    *((goes_on_from_saved_sums, size) for size in (1, 3)),
    *((fixed_order, size) for size in (2, 3, 4)),
    (sixteen_bits_track, 4),
    (owed_goes_on, 3),
    (extremes_in_sixteen_bits, 3),
    (looking_changes_nothing, 2),
    (trace_shows_the_overlap, 2),
    (a_rank_that_is_gone_is_an_error, 3),
]


@pytest.fixture(scope="module")
def outcome(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    return outcomes(fork_server, CHECKS, tmp_path_factory.mktemp("ranks"))


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
            averager.accumulate(part)
        averager.start(row, 5)
        mean = averager.finish()
        assert mean.dtype == torch.float64
        assert (mean - params.double().mean(dim=0)).abs().max() < 1e-15
    assert not averager.partial_sums()["sums so far"].any() and not averager.error_feedback()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_one_client_is_that_client(dtype: torch.dtype) -> None:
    """Also where its sums were looked at, as for a save."""
    row = start(10_007, dtype)
    params = clients_of(row, 1)
    averager = make_averager(row, 1, nodes=[0], rank=0, bucket_mb=25)
    for looked_at in (False, True, False):
        averager.accumulate(params, last=True)
        if looked_at:
            averager.partial_sums()
        averager.start(row.clone(), 1)
        assert torch.equal(averager.finish().to(dtype), params[0])
        assert not averager.partial_sums()["sums so far"].any()
