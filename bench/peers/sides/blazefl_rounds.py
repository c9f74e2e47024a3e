"""BlazeFL: the FedAvg of its blazefl.contrib on a pool of threads, one a core.

Its pool of processes starts anew in every round, which imports torch each time.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from blazefl.contrib import fedavg
from nets import torch_module
from protocol import Turns, Workload, read_workload
from torch_client import check_loss


class Models:
    """Makes the module of the workload for BlazeFL."""

    def __init__(self, work: Workload) -> None:
        self.work = work

    def select_model(self, model_name: str) -> torch.nn.Module:
        """Return the module with the start weights."""
        return torch_module(self.work.net, self.work.start)


class Batches:
    """A client's loader: the batches of a place in a round, and no data set of its own."""

    dataset = None

    def __init__(self, samples: tuple[Any, Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Any:
        return zip(*(torch.from_numpy(values) for values in self.samples), strict=True)


class Samples:
    """BlazeFL's partitioned data set: who takes part in the round of a number, and its batches."""

    def __init__(self, work: Workload) -> None:
        self.work, self.number = work, 0

    def get_dataloader(self, type_: Any, cid: int, batch_size: int, generator: Any) -> Batches:
        """Return the batches of a client."""
        place = list(self.work.cohort(self.number)).index(cid)
        return Batches(self.work.samples(self.number, place))

    def set_dataset(self, type_: Any, cid: int, dataset: Any) -> None:
        """Keep nothing: the data do not change."""


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    torch.set_num_threads(1)
    settings = {"momentum": work.momentum, "weight_decay": work.weight_decay}
    vars(torch.optim)["SGD"] = functools.partial(torch.optim.SGD, **settings)  # BlazeFL's example names the rate alone
    models, samples = Models(work), Samples(work)
    shared: dict[str, Any] = {"model_selector": models, "model_name": work.net, "dataset": samples, "device": "cpu"}
    alike: dict[str, Any] = shared | {"num_clients": work.population, "batch_size": work.batch, "seed": 0}
    server = fedavg.FedAvgBaseServerHandler(global_round=10**6, sample_ratio=1.0, **alike)
    server.num_clients_per_round = work.clients
    trainer = fedavg.FedAvgThreadPoolClientTrainer(
        epochs=1, lr=work.lr, num_parallels=len(os.sched_getaffinity(0)), **alike
    )

    def train_round(number: int) -> None:
        samples.number = number
        trainer.local_process(server.downlink_package(), [int(client) for client in work.cohort(number)])
        for package in trainer.uplink_package():
            server.load(package)

    turns.ready(lambda: check_loss(work, server.model), momentum="reset", packages=("blazefl", "torch"))
    turns.serve(train_round)


if __name__ == "__main__":
    main()
