"""Rank of this process, as torchrun or SLURM report it, and the clients of each rank."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..common.errors import UsageError

FIRST_PORT, PORTS = 20_000, 20_000
"""Range of default ports under SLURM; the job's number selects one."""


@dataclass(frozen=True)
class LaunchInfo:
    """Place of this process in the run.

    Attributes:
        rank: Rank among all processes.
        size: Number of processes.
        local_rank: Rank within this node.
        local_size: Processes on this node.
        node: Index of this node.
        address: Host of the rendezvous, or None if the launcher names none.
        port: Port of the rendezvous, or None.
        agent_store: Whether the launcher keeps a store at that address.
        restart: Restarts by the launcher so far.
        max_restarts: Restarts that the launcher allows.
        launch_id: Identifies this node's launcher, if it restarts ranks; else "".
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    address: str | None = None
    port: int | None = None
    agent_store: bool = False
    restart: int = 0
    max_restarts: int = 0
    launch_id: str = ""

    @property
    def is_local_rank0(self) -> bool:
        """Return True if this rank reports an error that every rank finds by itself: once per node."""
        return self.local_rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> LaunchInfo:
        """Read the launcher's variables; without any, the run is one process.

        torchrun sets RANK, WORLD_SIZE, LOCAL_RANK ...; srun sets SLURM_PROCID, SLURM_STEP_NUM_TASKS ..., which count
        only without torchrun's.

        Raises:
            UsageError: A variable is not a number, or not a possible one.
        """
        read = _Numbers(environment)
        if "WORLD_SIZE" not in environment and read("SLURM_STEP_NUM_TASKS", 1) > 1:
            return _slurm(environment, read)
        size = read("WORLD_SIZE", 1)
        restart, max_restarts = read("TORCHELASTIC_RESTART_COUNT", 0), read("TORCHELASTIC_MAX_RESTARTS", 0)
        launch_id = _launch_id(environment) if max_restarts else ""
        if size == 1:
            return cls(restart=restart, max_restarts=max_restarts, launch_id=launch_id)
        rank = read("RANK", None)
        local_size = read("LOCAL_WORLD_SIZE", 1)
        info = cls(
            rank=rank,
            size=size,
            local_rank=read("LOCAL_RANK", 0),
            local_size=local_size,
            node=read("GROUP_RANK", rank // local_size),
            address=environment.get("MASTER_ADDR"),
            port=read("MASTER_PORT", 0) or None,
            agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            restart=restart,
            max_restarts=max_restarts,
            launch_id=launch_id,
        )
        _check(info)
        return info


def _launch_id(environment: Mapping[str, str]) -> str:
    """Return torchrun's log folder, unique to a launch and common to its attempts; else --rdzv-id, possibly reused."""
    folder, attempt, _ = environment.get("TORCHELASTIC_ERROR_FILE", "").rpartition("/attempt_")
    return folder if attempt else environment.get("TORCHELASTIC_RUN_ID", "")


def _slurm(environment: Mapping[str, str], read: _Numbers) -> LaunchInfo:
    size, node = read("SLURM_STEP_NUM_TASKS", 1), read("SLURM_NODEID", 0)
    by_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    if not 0 <= node < len(by_node):
        raise UsageError(f"SLURM_NODEID {node}: SLURM_STEP_TASKS_PER_NODE names {len(by_node)} nodes; start with srun")
    port = FIRST_PORT + (read("SLURM_JOB_ID", 0) + 7 * read("SLURM_STEP_ID", 0)) % PORTS
    info = LaunchInfo(
        rank=read("SLURM_PROCID", None),
        size=size,
        local_rank=read("SLURM_LOCALID", 0),
        local_size=by_node[node],
        node=node,
        address=environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "localhost")),
        port=read("MASTER_PORT", port),
    )
    _check(info)
    return info


def _check(ranks: LaunchInfo) -> None:
    if not (0 <= ranks.rank < ranks.size and 0 <= ranks.local_rank < ranks.local_size):
        raise UsageError(
            f"RANK {ranks.rank} of WORLD_SIZE {ranks.size}, LOCAL_RANK {ranks.local_rank} of LOCAL_WORLD_SIZE "
            f"{ranks.local_size}: no such rank; start the run with torchrun or srun"
        )
    if ranks.port is not None and not 0 < ranks.port < 2**16:
        raise UsageError(f"MASTER_PORT {ranks.port}: must be from 1 to 65535")


class _Numbers:
    """Reader of integers in an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __call__(self, name: str, default: int | None) -> int:
        text = self._environment.get(name, "")
        if not text and default is not None:
            return default
        try:
            return int(text)
        except ValueError:
            problem = f"{name} {text!r}" if text else f"{name} is not set"
            raise UsageError(f"{problem}: must be a number; start the run with torchrun or srun") from None


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM list such as "gpu[03-05,9],login"."""
    name, bracket, inside = re.split(r",", nodes, maxsplit=1)[0].partition("[")
    return name + re.split(r"[-,\]]", inside)[0] if bracket else name


def tasks_per_node(text: str) -> list[int]:
    """Return the tasks of each node in SLURM's format: [2, 2, 2, 1] for "2(x3),1"."""
    found = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def split_contiguous(clients: int, rank: int, size: int) -> range:
    """Return the clients of one rank: contiguous, with counts that differ by at most one, larger counts first."""
    each, more = divmod(clients, size)
    begin = rank * each + min(rank, more)
    return range(begin, begin + each + (rank < more))
