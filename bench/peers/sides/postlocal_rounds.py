"""PyTorch's PostLocalSGDOptimizer with PeriodicModelAverager over gloo: a client is a process, here one a core.

It averages after the first step and then after every `local_steps`: its rounds are as long, and begin a step later.
"""

from __future__ import annotations

import os

import torch
from nets import torch_module
from process_per_core import TrainRound, processes
from protocol import Turns, Workload, read_workload
from torch_client import check_loss, make_optimizer, train_client


def make_client(work: Workload, rank: int, ranks: int) -> tuple[torch.nn.Module, TrainRound]:
    """Return the module of this process's client, and the function that trains a round of it."""
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    module = torch_module(work.net, work.start)
    averager = PeriodicModelAverager(period=work.local_steps, warmup_steps=0)
    optimizer = PostLocalSGDOptimizer(make_optimizer(work, module), averager)
    return module, lambda number: train_client(module, optimizer, *work.samples(number, rank))


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    ranks = len(os.sched_getaffinity(0))
    with processes(make_client, work, ranks) as (module, train_round):
        turns.ready(lambda: check_loss(work, module), momentum="kept", clients=ranks)
        turns.serve(train_round)


if __name__ == "__main__":
    main()
