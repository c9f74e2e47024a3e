"""Checks that run on several ranks over gloo, all in one set of processes: each has a process group of its own."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist

from tests.helpers.fork_server import ForkServer

Check = Callable[[int, int], None]
"""Of a rank and the number of ranks."""
TIMEOUT = timedelta(seconds=120)
PROGRAM = "from tests.aggregation.ranks import main; main()"


def split_contiguous(clients: int, rank: int, size: int) -> range:
    """A rank's clients: contiguous, earlier ranks first."""
    start = rank * (clients // size) + min(rank, clients % size)
    return range(start, start + clients // size + (rank < clients % size))


def outcomes(fork_server: ForkServer, checks: Sequence[tuple[Check, int]], folder: Path) -> dict[tuple[str, int], str]:
    """Run each check on its number of ranks; what went wrong, by name and number of ranks, empty where nothing did."""
    most = max(size for _, size in checks)
    (folder / "checks.json").write_text(json.dumps([(one.__module__, one.__name__, size) for one, size in checks]))
    ranks = fork_server.start_each(folder / "log{rank}", *[[rank, folder] for rank in range(most)], program=PROGRAM)
    assert ranks.statuses() == [0] * most, [ranks.said(rank)[-2000:] for rank in range(most)]
    found: dict[tuple[str, int], str] = {}
    said = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(most)]
    for number, (check, size) in enumerate(checks):
        found[check.__name__, size] = "\n".join(filter(None, (said[rank][number] for rank in range(size))))
    return found


def main() -> None:
    """Run all checks as the rank, and from the folder, of the command line."""
    rank, folder, said = int(sys.argv[1]), Path(sys.argv[2]), []
    torch.set_num_threads(1)
    for number, (module, name, size) in enumerate(json.loads((folder / "checks.json").read_text())):
        fault = ""
        if rank < size:
            store = dist.FileStore(str(folder / f"store {number}"), size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
            try:
                getattr(import_module(module), name)(rank, size)
                if dist.is_initialized():
                    dist.barrier()
            except Exception:
                fault = f"rank {rank}: {traceback.format_exc()}"
            if dist.is_initialized():
                dist.destroy_process_group()
        said.append(fault)
    (folder / f"{rank}.json").write_text(json.dumps(said))
