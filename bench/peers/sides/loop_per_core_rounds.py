"""The reference's way in one process a core, each with a thread and its share of the clients; gloo takes the mean."""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nets import torch_module
from protocol import Turns, Workload, read_workload
from torch_client import check_loss, make_optimizer, train_client


class Share:
    """The clients of one process."""

    def __init__(self, work: Workload, rank: int, ranks: int, store: str) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        self.work, self.places = work, range(work.clients)[rank::ranks]
        self.modules = [torch_module(work.net, work.start) for _ in self.places]
        self.optimizers = [make_optimizer(work, module) for module in self.modules]

    def train_round(self, number: int) -> None:
        """Take the steps of this process's clients, and give them the mean of all."""
        work = self.work
        if work.population > work.clients:
            self.optimizers = [make_optimizer(work, module) for module in self.modules]
        for place, module, optimizer in zip(self.places, self.modules, self.optimizers, strict=True):
            train_client(module, optimizer, *work.samples(number, place))
        with torch.no_grad():
            rows = [torch.cat([value.flatten() for value in module.parameters()]) for module in self.modules]
            total = torch.stack(rows).sum(0)
            dist.all_reduce(total)
            for module in self.modules:
                torch.nn.utils.vector_to_parameters((total / work.clients).clone(), module.parameters())


def follow(work: Workload, rank: int, ranks: int, store: str, orders: mp.SimpleQueue) -> None:
    """Train the rounds whose numbers come, in a process of its own."""
    share = Share(work, rank, ranks, store)
    while (number := orders.get()) is not None:
        share.train_round(number)


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    ranks = min(len(os.sched_getaffinity(0)), work.clients)
    context = mp.get_context("fork")
    orders = [context.SimpleQueue() for _ in range(1, ranks)]
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        for rank, queue in enumerate(orders, start=1):
            context.Process(target=follow, args=(work, rank, ranks, store, queue), daemon=True).start()
        share = Share(work, 0, ranks, store)

        def train_round(number: int) -> None:
            for queue in orders:
                queue.put(number)
            share.train_round(number)

        reset = work.population > work.clients
        turns.ready(lambda: check_loss(work, share.modules[0]), momentum="reset" if reset else "kept")
        turns.serve(train_round)


if __name__ == "__main__":
    main()
