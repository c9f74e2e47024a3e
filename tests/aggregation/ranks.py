"""Checks that run on several ranks over gloo, all in one set of processes: each has a process group of its own."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Check = Callable[[int, int], None]
"""Of a rank and the number of ranks."""
TIMEOUT = timedelta(seconds=120)


def split_contiguous(clients: int, rank: int, size: int) -> range:
    """A rank's clients: contiguous, earlier ranks first."""
    start = rank * (clients // size) + min(rank, clients % size)
    return range(start, start + clients // size + (rank < clients % size))


def outcomes(checks: Sequence[tuple[Check, int]], folder: Path) -> dict[tuple[str, int], str]:
    """Run each check on its number of ranks; what went wrong, by name and number of ranks, empty where nothing did."""
    most = max(size for _, size in checks)
    # forked from one process that has imported all of it, which takes seconds each time
    mp.get_context("forkserver").set_forkserver_preload([__name__, *{check.__module__ for check, _ in checks}])
    mp.start_processes(_rank, args=(list(checks), folder), nprocs=most, start_method="forkserver")
    found: dict[tuple[str, int], str] = {}
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(most)]
    for number, (check, size) in enumerate(checks):
        found[check.__name__, size] = "\n".join(filter(None, (said[rank][number] for rank in range(size))))
    return found


def _rank(rank: int, checks: list[tuple[Check, int]], folder: Path) -> None:
    torch.set_num_threads(1)
    said = []
    for number, (check, size) in enumerate(checks):
        fault = ""
        if rank < size:
            store = dist.FileStore(str(folder / f"store {number}"), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
            try:
                check(rank, size)
                if dist.is_initialized():
                    dist.barrier()
            except Exception:
                fault = f"rank {rank}: {traceback.format_exc()}"
            if dist.is_initialized():
                dist.destroy_process_group()
        said.append(fault)
    (folder / f"{rank}.json").write_text(json.dumps(said))
