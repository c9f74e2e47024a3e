"""The settings of one rank: its own clients, and its share of the node's threads and memory."""

from __future__ import annotations

import dataclasses

import torch

from fastlocal.kernels.cores import cores

from ..common.errors import UsageError
from ..common.machine import available
from ..config.schema import RunConfig
from ..config.serialization import config_from_json
from ..distributed.world import World
from .memory_plan import GIB


def localize_config(config: RunConfig, world: World, device: torch.device) -> RunConfig:
    """Return `config` with this rank's clients and its share of the node's threads and memory.

    Raises:
        UsageError: There are fewer clients than ranks.
    """
    if world.size == 1:
        return config
    if config.clients < world.size:
        raise UsageError(
            f"--clients {config.clients}: fewer than the {world.size} processes; give at least as many, or start fewer "
            "processes"
        )
    clients, machine = len(world.local_clients(config.clients)), config.machine
    part = config.with_values(total_batch_size=clients * config.client.batch_size, device=str(device))
    if config.client.population is not None:
        part = part.with_values(population=len(world.local_clients(config.client.population)))
    if machine.chunk is not None:
        part = part.with_values(chunk=min(machine.chunk, clients))
    if machine.workers is None:
        part = part.with_values(workers=cores(world.local_size))
    if machine.memory_limit is None and device.type == "cpu":
        part = part.with_values(memory_limit=available(device) / world.local_size / GIB)
    return part


def merge_rank_config(config: RunConfig, part: RunConfig, world: World) -> RunConfig:
    """Broadcast rank 0's resolved `part`, with the clients and the memory limit of all ranks from `config`."""
    if world.size == 1:
        return part
    first = config_from_json(world.all_gather_object(dataclasses.asdict(part), "the choice of an executor")[0])
    device = first.machine.device or ""
    return first.with_values(
        total_batch_size=config.client.total_batch_size,
        population=config.client.population,
        memory_limit=config.machine.memory_limit,
        device=device if world.local_size == 1 else device.partition(":")[0],
    )
