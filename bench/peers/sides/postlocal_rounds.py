"""PyTorch's PostLocalSGDOptimizer with PeriodicModelAverager over gloo: a client is a process, here one a core.

It averages after the first step and then after every `local_steps`: its rounds are as long, and begin a step later.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nets import torch_module
from protocol import Turns, Workload, read_workload
from torch_client import check_loss, make_optimizer, train_client


def make_client(work: Workload, rank: int, ranks: int, store: str) -> tuple[torch.nn.Module, Callable[[int], None]]:
    """Return the client of this process: its module, and what trains a round of a given number."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    module = torch_module(work.net, work.start)
    averager = PeriodicModelAverager(period=work.local_steps, warmup_steps=0)
    optimizer = PostLocalSGDOptimizer(make_optimizer(work, module), averager)
    return module, lambda number: train_client(module, optimizer, *work.samples(number, rank))


def follow(work: Workload, rank: int, ranks: int, store: str, orders: mp.SimpleQueue) -> None:
    """Train the rounds whose numbers come, in a process of its own."""
    _, train_round = make_client(work, rank, ranks, store)
    while (number := orders.get()) is not None:
        train_round(number)


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    ranks = len(os.sched_getaffinity(0))
    context = mp.get_context("fork")
    orders = [context.SimpleQueue() for _ in range(1, ranks)]
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        for rank, queue in enumerate(orders, start=1):
            context.Process(target=follow, args=(work, rank, ranks, store, queue), daemon=True).start()
        module, train_own = make_client(work, 0, ranks, store)

        def train_round(number: int) -> None:
            for queue in orders:
                queue.put(number)
            train_own(number)

        turns.ready(lambda: check_loss(work, module), momentum="kept", clients=ranks)
        turns.serve(train_round)


if __name__ == "__main__":
    main()
