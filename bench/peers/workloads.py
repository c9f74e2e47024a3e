"""Workloads of the comparison with peers, and the files that all sides of one read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastlocal
from bench.peers.sides.nets import torch_module
from fastlocal.data.client_streams import ClientStreams
from fastlocal.schedule.cohort import CohortSampler
from fastlocal.schedule.local_work import LocalWork

SEED = 0
WRITTEN_ROUNDS = 2
"""Rounds whose cohorts and batches are written down; later rounds of a peer repeat them."""


@dataclass(frozen=True)
class Workload:
    """A round that everybody trains. Clients own equally many samples, and take as many steps.

    Attributes:
        name: Name in tables.
        source: Whose workload this is, and what was cut.
        net: Model, see bench.peers.sides.nets.
        shape: Shape of a sample.
        classes: Number of labels.
        population: Number of clients that own samples.
        clients: Number of those that take part in a round.
        samples_per_client: Samples of each.
        batch: Samples of a step.
        local_steps: Steps of a client in a round; more than an epoch runs on into the next.
        lr: Rate of each client's SGD.
        momentum: Its momentum.
        weight_decay: Its weight decay.
    """

    name: str
    source: str
    net: str
    shape: tuple[int, ...]
    classes: int
    population: int
    clients: int
    samples_per_client: int
    batch: int
    local_steps: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def client_steps(self) -> int:
        """Steps of all clients of a round."""
        return self.clients * self.local_steps

    def facts(self) -> str:
        """Return the numbers as JSON, for the sides."""
        return json.dumps(dataclasses.asdict(self))


def _everybody(name: str, net: str, shape: tuple[int, ...], clients: int, batch: int, local_steps: int) -> Workload:
    """Return a workload in which all clients take part, for an epoch a round, with momentum and weight decay."""
    source = f"{net}, {clients} clients x {batch}, H={local_steps}"
    samples = batch * local_steps
    return Workload(name, source, net, shape, 10, clients, clients, samples, batch, local_steps, 0.05, 0.9, 5e-4)


GREY, RGB = (1, 28, 28), (3, 32, 32)
WORKLOADS = (
    _everybody("W1", "mlp", (784,), 64, 16, 8),
    _everybody("W2", "cnn", RGB, 32, 16, 4),
    _everybody("W3", "resnet20_gn", RGB, 8, 32, 2),
    Workload("flute-logistic", "FLUTE: 10 of 1,000 clients", "logistic", (784,), 10, 1000, 10, 60, 10, 6, 0.03),
    Workload("mcmahan-2nn", "McMahan et al.: C=0.1, B=10, E=5", "2nn", (784,), 10, 100, 10, 600, 10, 300, 0.01),
    Workload(
        "flute-femnist", "FLUTE: 10 of 3,400 clients, B=20; 100 samples each, no dropout",
        "femnist_cnn", GREY, 62, 3400, 10, 100, 20, 5, 0.03,
    ),
    Workload(
        "pfl-cifar10", "pfl-research: 50 of 1,000 clients, 5 steps of 10; no dropout",
        "simple_cnn", RGB, 10, 1000, 50, 50, 10, 5, 0.1,
    ),
    Workload(
        "blazefl-cnn", "BlazeFL: B=50, rate 0.1; 10 of its 100 clients and 5 of its 50 steps a round, no dropout",
        "blazefl_cnn", RGB, 10, 100, 10, 250, 50, 5, 0.1,
    ),
)  # fmt: skip


def write_files(workload: Workload, folder: Path) -> None:
    """Write the data, the start weights, the partition, and cohorts and batches of the first rounds.

    Samples are noise and labels are drawn evenly; which ones a client takes is what fastlocal draws, with seed SEED.
    """
    n_samples = workload.population * workload.samples_per_client
    random = np.random.default_rng(SEED)
    inputs = np.lib.format.open_memmap(folder / "inputs.npy", "w+", np.float32, (n_samples, *workload.shape))
    for first in range(0, n_samples, 4096):
        part = inputs[first : first + 4096]
        part[:] = random.standard_normal(part.shape, dtype=np.float32)
    inputs.flush()
    targets = random.integers(0, workload.classes, n_samples)
    np.save(folder / "targets.npy", targets)
    torch.manual_seed(SEED)
    start: dict[str, Any] = {name: value.numpy() for name, value in torch_module(workload.net).state_dict().items()}
    np.savez(folder / "start.npz", **start)
    parts = fastlocal.partition.iid(n_samples, clients=workload.population, seed=SEED)
    parts.save(folder / "partition.npz")
    sampler = CohortSampler(seed=SEED, population=workload.population, clients=workload.clients)
    steps = torch.tensor(workload.local_steps).expand(workload.population)
    work = LocalWork(steps, 0.0, SEED, equal=True)
    cohorts = workload.population > workload.clients
    streams = ClientStreams(parts, sampler, batch_size=workload.batch, work=work, seed=SEED, restart=cohorts)
    clients, ids = [], []
    for number in range(WRITTEN_ROUNDS):
        first_step = number * workload.local_steps
        drawn = streams.sample_ids(first_step, workload.local_steps, range(workload.clients))
        clients.append(streams.cohort(first_step).ids.numpy())
        ids.append(drawn.transpose(0, 1).numpy())  # [clients, local_steps, batch]
    np.savez(folder / "rounds.npz", clients=np.stack(clients), ids=np.stack(ids))
