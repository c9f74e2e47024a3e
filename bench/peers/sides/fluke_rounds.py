"""fluke: its own Client and Server of FedAvg, clients in turn; an optimizer is kept from round to round."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server
from nets import torch_module
from protocol import Turns, read_workload
from torch import nn
from torch_client import check_loss


class Batches(FastDataLoader):
    """A client's loader: the batches of its place in a round."""

    def __init__(self, size: int) -> None:
        self.size, self.n_batches, self.samples = size, 0, (torch.empty(0), torch.empty(0))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from zip(*self.samples, strict=True)

    def __len__(self) -> int:
        return self.n_batches


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings: dict[str, Any] = {"lr": work.lr, "momentum": work.momentum, "weight_decay": work.weight_decay}
    optimizer = OptimizerConfigurator({"name": "SGD"} | settings)
    clients = [
        Client(
            index=index, train_set=Batches(work.samples_per_client), test_set=None, optimizer_cfg=optimizer,
            loss_fn=nn.CrossEntropyLoss(), local_epochs=1,
        )
        for index in range(work.population)
    ]  # fmt: skip
    server = Server(model=torch_module(work.net, work.start), test_set=None, clients=clients, weighted=True)
    for client in clients:
        client.set_channel(server.channel)

    def train_round(number: int) -> None:
        eligible = [clients[index] for index in work.cohort(number)]
        for place, client in enumerate(eligible):
            client.train_set.samples = tuple(torch.from_numpy(values) for values in work.samples(number, place))
            client.train_set.n_batches = work.local_steps
        server.broadcast_model(eligible)
        for client in eligible:
            client.local_update(number + 1)
        server.aggregate(eligible, server.receive_client_models(eligible, state_dict=False))

    turns.ready(lambda: check_loss(work, server.model), momentum="kept", packages=("fluke-fl", "torch"))
    turns.serve(train_round)


if __name__ == "__main__":
    main()
