"""Which of a run's processes this one is, as torchrun or SLURM tell it, and which clients are its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..common.errors import UsageError

FIRST_PORT, PORTS = 20_000, 20_000
"""Ports that SLURM jobs are spread over where none is given, by the job's number."""


@dataclass(frozen=True)
class LaunchInfo:
    """This process among those of a run.

    rank, size: of all        local_rank, local_size: of this node's        node: number of this node
    address, port: where ranks find each other, None where the launcher does not say
    hosted: whether the launcher keeps a store there itself        restart: times that the launcher started it again
    restarts: times that it would
    launch: what this node's launcher is known by, where it starts ranks again
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    node: int = 0
    address: str | None = None
    port: int | None = None
    hosted: bool = False
    restart: int = 0
    restarts: int = 0
    launch: str = ""

    @property
    def is_local_rank0(self) -> bool:
        """Whether what every rank finds wrong by itself is said here: once a node."""
        return self.local_rank == 0


def launched(environment: Mapping[str, str] = os.environ) -> LaunchInfo:
    """What the launcher's variables say; one process where there are none. Raises UsageError for a number that is none.

    torchrun: RANK, WORLD_SIZE, LOCAL_RANK ... ; srun: SLURM_PROCID, SLURM_STEP_NUM_TASKS ..., where torchrun's are not.
    """
    read = _Numbers(environment)
    if "WORLD_SIZE" not in environment and read("SLURM_STEP_NUM_TASKS", 1) > 1:
        return _slurm(environment, read)
    size = read("WORLD_SIZE", 1)
    restart, restarts = read("TORCHELASTIC_RESTART_COUNT", 0), read("TORCHELASTIC_MAX_RESTARTS", 0)
    launch = _launch(environment) if restarts else ""
    if size == 1:
        return LaunchInfo(restart=restart, restarts=restarts, launch=launch)
    rank = read("RANK", None)
    local_size = read("LOCAL_WORLD_SIZE", 1)
    return _checked(
        LaunchInfo(
            rank=rank,
            size=size,
            local_rank=read("LOCAL_RANK", 0),
            local_size=local_size,
            node=read("GROUP_RANK", rank // local_size),
            address=environment.get("MASTER_ADDR"),
            port=read("MASTER_PORT", 0) or None,
            hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            restart=restart,
            restarts=restarts,
            launch=launch,
        )
    )


def _launch(environment: Mapping[str, str]) -> str:
    """torchrun's own folder, which has one for each attempt; else its --rdzv-id, which may come again."""
    folder, attempt, _ = environment.get("TORCHELASTIC_ERROR_FILE", "").rpartition("/attempt_")
    return folder if attempt else environment.get("TORCHELASTIC_RUN_ID", "")


def _slurm(environment: Mapping[str, str], read: _Numbers) -> LaunchInfo:
    size, node = read("SLURM_STEP_NUM_TASKS", 1), read("SLURM_NODEID", 0)
    by_node = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    if not 0 <= node < len(by_node):
        raise UsageError(f"SLURM_NODEID {node}: SLURM_STEP_TASKS_PER_NODE names {len(by_node)} nodes; start with srun")
    port = FIRST_PORT + (read("SLURM_JOB_ID", 0) + 7 * read("SLURM_STEP_ID", 0)) % PORTS
    return _checked(
        LaunchInfo(
            rank=read("SLURM_PROCID", None),
            size=size,
            local_rank=read("SLURM_LOCALID", 0),
            local_size=by_node[node],
            node=node,
            address=environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "localhost")),
            port=read("MASTER_PORT", port),
        )
    )


def _checked(ranks: LaunchInfo) -> LaunchInfo:
    if not (0 <= ranks.rank < ranks.size and 0 <= ranks.local_rank < ranks.local_size):
        raise UsageError(
            f"RANK {ranks.rank} of WORLD_SIZE {ranks.size}, LOCAL_RANK {ranks.local_rank} of LOCAL_WORLD_SIZE "
            f"{ranks.local_size}: no such rank; start the run with torchrun or srun"
        )
    if ranks.port is not None and not 0 < ranks.port < 2**16:
        raise UsageError(f"MASTER_PORT {ranks.port}: must be from 1 to 65535")
    return ranks


class _Numbers:
    """Whole numbers of an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def __call__(self, name: str, default: int | None) -> int:
        text = self._environment.get(name, "")
        if not text and default is not None:
            return default
        try:
            return int(text)
        except ValueError:
            given = f"{name} {text!r}" if text else f"{name} is not set"
            raise UsageError(f"{given}: must be a number; start the run with torchrun or srun") from None


def first_host(nodes: str) -> str:
    """The first name of a SLURM list such as "gpu[03-05,9],login"."""
    name, bracket, inside = re.split(r",", nodes, maxsplit=1)[0].partition("[")
    return name + re.split(r"[-,\]]", inside)[0] if bracket else name


def tasks_per_node(text: str) -> list[int]:
    """Tasks on each node of SLURM's "2(x3),1"."""
    found = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def split_contiguous(clients: int, rank: int, size: int) -> range:
    """The clients of one rank: neighbours, counts that differ by at most one, the larger first."""
    each, more = divmod(clients, size)
    begin = rank * each + min(rank, more)
    return range(begin, begin + each + (rank < more))
