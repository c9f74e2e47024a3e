"""Clients of a run: their samples, the cohort of each round, their weights and their state."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.errors import UsageError, nearest
from ..config.schema import RunConfig
from ..config.validation import MAX_COUNT
from ..data.client_streams import ClientStreams
from ..data.client_test import hold_out, without
from ..data.partition import Partition
from ..data.partition.build import NAMES, build
from ..data.sample_streams import SampleStreams, Streams, StreamSpec
from ..data.types import DataSet
from ..data.unequal_streams import UnequalStreams
from ..schedule.client_files import read_availability, read_weights
from ..schedule.cohort import ClientWeights, CohortSampler
from ..schedule.local_work import LocalWork, epoch_steps
from ..schedule.owned_rounds import make_progress
from ..schedule.rate_schedules import rate_factor
from .resolve import sample_pages

PARTITION_FILE = "partition.npz"
"""File of a run directory with the partition."""
CLIENT_TEST_FILE = "client_test.npz"
"""File of a run directory with the samples of the partition that are held out."""
CLIENT_TEST = 0.2
"""Share of each client's samples that --eval-clients holds out."""
SAMPLINGS = ("uniform", "replacement", "weighted", "cyclic")
WEIGHTS = ("examples", "uniform")
NEEDS_LABELS = ("dirichlet", "dirichlet-client", "shards", "classes")


@dataclass(frozen=True)
class Population:
    """The clients of a run.

    Attributes:
        owned: Samples of each client, or None if nobody owns any.
        held_out: Those that are held out before training, or None if none are.
        partition: Those that are trained on, or None if nobody owns any.
        sampler: The cohort of each round.
        weights: Weights in the mean.
        work: Local steps of each client in a round.
    """

    owned: Partition | None
    held_out: Partition | None
    partition: Partition | None
    sampler: CohortSampler
    weights: ClientWeights
    work: LocalWork

    @property
    def mean_steps(self) -> int:
        """Expected steps of a client in a round, rounded, at least 1."""
        steps = self.work.steps
        mean = steps[steps > 0].double().mean().item()
        return max(1, round(mean - self.work.stragglers * (mean - 1) / 2))

    @property
    def busy_share(self) -> float:
        """Share of the clients that have a step at a time, in the mean."""
        return 1.0 if self.work.equal else self.mean_steps / self.work.most

    def save(self, directory: Path) -> None:
        """Write the partition and its held-out samples to a run directory."""
        if self.owned is not None:
            self.owned.save(directory / PARTITION_FILE)
        if self.held_out is not None:
            self.held_out.save(directory / CLIENT_TEST_FILE)

    def notes(self) -> list[str]:
        """Return log lines about clients without held-out samples, and about those that never take part."""
        notes = []
        if self.held_out is not None:
            untested, clients = int((self.held_out.sizes == 0).sum()), self.held_out.clients
            if untested:
                notes.append(f"{untested} of {clients} clients have too few samples to hold one out")
        idle = self.work.steps == 0
        if self.partition is not None and bool(idle.any()):
            count, first = int(idle.sum()), self.partition.name_of(int(idle.int().argmax()))
            which = f"client {first}" if count == 1 else f"{count} of {len(idle)} clients (the first is {first})"
            notes.append(f"--last-batch drop: {which} without a whole batch in --local-epochs never takes part")
        return notes

    def streams(self, config: RunConfig, data: DataSet, steps_per_epoch: int) -> SampleStreams:
        """Return the samples of each client at each step of a resolved run."""
        client, seed = config.client, config.machine.seed
        if self.partition is not None:
            settings: dict[str, Any] = {
                "batch_size": client.batch_size,
                "work": self.work,
                "seed": seed,
                "restart": client.client_epochs == "restart",
            }
            if self.work.equal:
                return ClientStreams(self.partition, self.sampler, **settings)
            return UnequalStreams(self.partition, self.sampler, last_batch=client.last_batch, **settings)
        spec = StreamSpec(
            samples=len(data.train),
            clients=config.clients,
            batch_size=client.batch_size,
            steps_per_epoch=steps_per_epoch,
            replacement=client.replacement,
            seed=seed,
        )
        return Streams(spec, sample_pages(config, data), client.clients_drop)


def build_population(
    config: RunConfig, data: DataSet, given: Partition | None = None, stored: Path | None = None
) -> tuple[RunConfig, Population]:
    """Build the clients of a run, and resolve the settings that depend on them.

    Args:
        config: The settings.
        data: The data set.
        given: The user's own partition, or None for that of --partition.
        stored: File of the partition of the run that continues, or None.

    Raises:
        UsageError: The partition, the cohort or the weights do not fit.
    """
    owned = partition = _partition(config, data, given, stored)
    if config.client.client_test is None and config.client.eval_clients is not None:
        config = config.with_values(client_test=CLIENT_TEST)
    held_out = None
    if owned is not None and config.client.client_test:
        held_out = _held_out(config, owned, stored)
        partition = without(owned, held_out)
    clients, population = config.clients, config.clients
    offsets, names = None, None
    if partition is not None:
        offsets, population, names = torch.from_numpy(partition.offsets), partition.clients, partition.client_ids
        if clients > population:
            raise UsageError(f"--clients {clients}: the partition has {population}; at most these take part in a round")
    sampling, weights = config.client.cohort_sampling, config.client.client_weights
    available = None
    if sampling not in SAMPLINGS:
        path = _file("--cohort-sampling", sampling, SAMPLINGS)
        available = read_availability(path, population, names)
    if weights is None:
        weights = "examples" if partition is not None and sampling != "weighted" else "uniform"
    values = None
    if weights not in WEIGHTS:
        values = read_weights(_file("--client-weights", weights, WEIGHTS), population, names)
    work = _work(config, partition, population)
    idle = work.steps == 0
    sampler = CohortSampler(
        seed=config.machine.seed,
        population=population,
        clients=clients,
        sampling=sampling if available is None else "availability",
        drop=config.client.clients_drop,
        offsets=offsets,
        available=available,
        idle=idle if bool(idle.any()) else None,
    )
    client_weights = ClientWeights(offsets if weights == "examples" else None, values)
    if partition is not None:
        everybody = sampler.everybody
        assert config.schedule.rounds is not None, "validation.py requires it"
        rate_factor(config.schedule.lr_schedule, config.schedule.rounds)  # names the file as given
        config = config.with_values(
            population=population,
            partition=_absolute(config.client.partition),
            cohort_sampling=_absolute(sampling),
            client_weights=_absolute(weights),
            lr_schedule=_absolute(config.schedule.lr_schedule),
            client_epochs=config.client.client_epochs or ("continue" if everybody else "restart"),
            client_state=config.client.client_state or ("keep" if everybody else "reset"),
        )
    else:
        make_progress(config)  # names the file of factors as given
        config = config.with_values(lr_schedule=_absolute(config.schedule.lr_schedule))
    return config, Population(owned, held_out, partition, sampler, client_weights, work)


def _held_out(config: RunConfig, owned: Partition, stored: Path | None) -> Partition:
    """Return the held-out samples: those of the run that continues, or drawn ones."""
    fraction = config.client.client_test
    assert fraction is not None
    path = None if stored is None else stored.with_name(CLIENT_TEST_FILE)
    if path is not None and path.exists():
        held_out = Partition.load(path, flag=str(path))
        if held_out.clients != owned.clients or not np.isin(held_out.indices, owned.indices).all():
            raise UsageError(f"--continue: {path} is not of the run's partition; --overwrite 1 starts afresh")
        return held_out
    held_out = hold_out(owned, fraction, config.machine.seed)
    if not len(held_out.indices):
        raise UsageError(f"--client-test {fraction}: no client has enough samples to hold one out; give more")
    return held_out


def _work(config: RunConfig, partition: Partition | None, population: int) -> LocalWork:
    """Return the local steps of each client; raise UsageError if nobody has any."""
    client, seed = config.client, config.machine.seed
    if client.local_epochs is None or partition is None:
        steps = torch.tensor(config.schedule.step1).expand(population)
        return LocalWork(steps, client.stragglers, seed, equal=not client.stragglers)
    flag = f"--local-epochs {client.local_epochs:g}"
    steps = epoch_steps(torch.from_numpy(partition.sizes), client.batch_size, client.local_epochs, client.last_batch)
    if steps.max() > MAX_COUNT:
        raise UsageError(f"{flag}: a client would take {int(steps.max())} steps in a round; at most {MAX_COUNT}")
    if steps.max() == 0:
        raise UsageError(
            f"{flag} --last-batch drop: no client has a whole batch of --batch-size {client.batch_size} in it; lower "
            "it, or use fill or partial"
        )
    return LocalWork(steps, client.stragglers, seed)


def _partition(config: RunConfig, data: DataSet, given: Partition | None, stored: Path | None) -> Partition | None:
    client, samples, labels = config.client, len(data.train), data.train.targets
    if not config.owned:
        return None
    if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
        labels = None
    flag = f"--partition {client.partition}"
    if stored is not None and stored.exists():
        partition = Partition.load(stored, samples=samples, flag=flag)
        partition.check(samples, labels, flag=flag)
        if given is not None and not partition.equals(given):
            raise UsageError("partition: is not that of the run, which its directory holds; leave it as it was")
        return partition
    if given is not None:
        given.check(samples, labels, flag="partition")
        return given
    if labels is None and client.partition in NEEDS_LABELS:
        raise UsageError(
            f"{flag}: needs one class label per training sample, known beforehand; use iid or quantity, or give a file"
        )
    drawn = client.partition in NAMES and client.partition != "natural"
    return build(
        client.partition,
        samples=samples,
        labels=labels,
        clients=(client.population or config.clients) if drawn else client.population,
        seed=config.machine.seed,
        alpha=client.alpha,
        shards_per_client=client.shards_per_client,
        classes_per_client=client.classes_per_client,
        min_client_size=client.min_client_size,
        partition_as=client.partition_as,
        natural=data.natural,
    )


def _absolute(name: str) -> str:
    """Return the absolute path of a file, and any other name as it is."""
    path = Path(name).expanduser()
    return os.path.abspath(path) if path.is_file() else name


def _file(flag: str, name: str, known: tuple[str, ...]) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"{flag} {name}: is no file{nearest(name, known)}; give {', '.join(known)} or a file")
    return path
