"""The reference's way in one process a core, each with a thread and its share of the clients; gloo takes the mean."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from nets import torch_module
from process_per_core import TrainRound, processes
from protocol import Turns, Workload, read_workload
from torch_client import check_loss, make_optimizer, train_client


class Share:
    """The clients of one process."""

    def __init__(self, work: Workload, rank: int, ranks: int) -> None:
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


def make_share(work: Workload, rank: int, ranks: int) -> tuple[torch.nn.Module, TrainRound]:
    """Return a module of this process's clients, and the function that trains a round of all of them."""
    share = Share(work, rank, ranks)
    return share.modules[0], share.train_round


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    ranks = min(len(os.sched_getaffinity(0)), work.clients)
    reset = work.population > work.clients
    with processes(make_share, work, ranks) as (module, train_round):
        turns.ready(lambda: check_loss(work, module), momentum="reset" if reset else "kept")
        turns.serve(train_round)


if __name__ == "__main__":
    main()
