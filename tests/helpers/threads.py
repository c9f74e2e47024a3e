"""Ranks that are threads of this process, for what they tell each other and write; they average nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch.distributed import HashStore, PrefixStore

from fastlocal.distributed.ranks import LaunchInfo
from fastlocal.distributed.store import Peer
from fastlocal.distributed.world import World

T = TypeVar("T")


def worlds(size: int) -> list[World]:
    """The world as each of so many ranks has it."""
    if size == 1:
        return [World.single()]
    store = PrefixStore("ranks", HashStore())
    found = [World(LaunchInfo(rank=rank, size=size), store, [Peer.this()] * size, [0] * size) for rank in range(size)]
    for world in found:
        world.timeout = 60.0
    return found


def on_every(ranks: list[World], work: Callable[[World], T]) -> list[T]:
    """What `work` gives on each rank, all of them at once."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return [future.result() for future in [pool.submit(work, world) for world in ranks]]
