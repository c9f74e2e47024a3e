"""A run's settings as one of its processes sees them: with its clients alone, and its part of the machine."""

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
    """`config` with the clients of this rank, and with threads and memory that leave the others of its node theirs.

    Raises UsageError where there are more ranks than clients.
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
    if machine.chunk is not None:
        part = part.with_values(chunk=min(machine.chunk, clients))
    if machine.workers is None:
        part = part.with_values(workers=cores(world.local_size))
    if machine.memory_limit is None and device.type == "cpu":
        part = part.with_values(memory_limit=available(device) / world.local_size / GIB)
    return part


def merge_rank_config(config: RunConfig, part: RunConfig, world: World) -> RunConfig:
    """The settings that the first rank's `part`, settled, comes to for all, of which each has an unsettled `config`."""
    if world.size == 1:
        return part
    told = config_from_json(world.all_gather_object(dataclasses.asdict(part), "the choice of an executor")[0])
    device = told.machine.device or ""
    return told.with_values(
        total_batch_size=config.client.total_batch_size,
        memory_limit=config.machine.memory_limit,
        device=device if world.local_size == 1 else device.partition(":")[0],
    )
