"""Rounds that a process on each core trains together, each with one thread."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from protocol import Workload

TrainRound = Callable[[int], None]
Make = Callable[[Workload, int, int], tuple[torch.nn.Module, TrainRound]]
"""(workload, rank, processes) -> a module of the process, and the function that trains its part of a round."""


def _make(make: Make, work: Workload, rank: int, ranks: int, store: str) -> tuple[torch.nn.Module, TrainRound]:
    """Join the group of processes, and make this process's part."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    return make(work, rank, ranks)


def _follow(make: Make, work: Workload, rank: int, ranks: int, store: str, orders: mp.SimpleQueue) -> None:
    """Train the rounds whose numbers come, in a process of its own."""
    _, train_round = _make(make, work, rank, ranks, store)
    while (number := orders.get()) is not None:
        train_round(number)


@contextlib.contextmanager
def processes(make: Make, work: Workload, ranks: int) -> Iterator[tuple[torch.nn.Module, TrainRound]]:
    """Start all processes but this; yield this one's module, and a function that trains a round on all."""
    context = mp.get_context("fork")
    orders = [context.SimpleQueue() for _ in range(1, ranks)]
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        for rank, queue in enumerate(orders, start=1):
            context.Process(target=_follow, args=(make, work, rank, ranks, store, queue), daemon=True).start()
        module, train_own = _make(make, work, 0, ranks, store)

        def train_round(number: int) -> None:
            for queue in orders:
                queue.put(number)
            train_own(number)

        yield module, train_round
