"""Place and size of the state that clients keep between rounds."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..executors.base import LocalProblem
from ..params.disk_store import FOLDER_NAME

MIB = 2**20
BLOCK_BYTES = 512
"""Unit of st_blocks."""


def keeps_moments(config: RunConfig) -> bool:
    """Return True if clients keep momenta and buffers in a run whose settings are resolved."""
    client = config.client
    return (client.client_state or ("reset" if client.clients_drop else "keep")) == "keep"


def keeps_state(config: RunConfig, problem: LocalProblem) -> bool:
    """Return True if clients keep anything from round to round."""
    return keeps_moments(config) or bool(problem.algorithm.clients)


def on_disk(config: RunConfig, problem: LocalProblem) -> bool:
    """Return True if the state that clients keep waits in files."""
    return config.client.client_store == "disk" and keeps_state(config, problem)


@dataclass(frozen=True)
class StorePlan:
    """The state that all clients of a run keep.

    Attributes:
        clients: Number of clients.
        rows: Those whose rows are written, at most.
        row: Bytes of one client.
        images: Bytes of before-images in the journals of all saved states, at most.
        folder: Folder of the files, or None in memory.
        written: Bytes that the files take already.
        free: Bytes that are free there.
    """

    clients: int
    rows: int
    row: int
    images: int
    folder: Path | None
    written: int
    free: int

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return self.rows * self.row

    def line(self) -> str:
        """Return a log line about the store."""
        some = "" if self.rows == self.clients else f"{self.rows:,} of "
        size = f"{self.size / MIB:,.1f} MiB for {some}{self.clients:,} clients"
        if self.folder is None:
            return f"in memory, {size}"
        return (
            f"in {self.folder}, at most {size} and {self.images / MIB:,.1f} MiB of before-images; "
            f"{self.free / MIB:,.1f} MiB are free"
        )


def plan_store(config: RunConfig, problem: LocalProblem) -> StorePlan | None:
    """Return the plan of a run's store, or None if clients keep no state.

    Args:
        config: Settings of all ranks, resolved.
        problem: The local step.
    """
    client, log = config.client, config.log
    one = torch.empty(1, dtype=problem.numerics.dtype)  # zeros_like on "meta" would import sympy: 0.8 s at every start
    moments = problem.start_moments(one) if keeps_moments(config) else {}
    row = sum(value.nbytes * (problem.layout.n_params if value.dim() else 1) for value in moments.values())
    row += sum(value.nbytes for value in (*problem.state.values(), *problem.algorithm.clients.values()))
    if not row or not keeps_state(config, problem):
        return None
    clients = client.population or config.clients
    if not on_disk(config, problem):
        return StorePlan(clients, clients, row, 0, None, 0, 0)
    rows = clients if config.schedule.rounds is None else min(clients, config.schedule.rounds * config.clients)
    between = config.schedule.eval_freq1 if log.save_every is None else log.save_every
    overwritten = min(rows, between * config.clients) if log.save_minutes is None else rows
    directory = Path(log.log_pth or "runs").expanduser().absolute()
    folder = directory / FOLDER_NAME
    existing = next(parent for parent in (folder, *folder.parents) if os.path.isdir(parent))
    written = sum(path.stat().st_blocks * BLOCK_BYTES for path in folder.glob("*") if path.is_file())
    images = log.keep * overwritten * row
    return StorePlan(clients, rows, row, images, folder, written, shutil.disk_usage(existing).free)


def refuse_full_disk(config: RunConfig, problem: LocalProblem) -> None:
    """Raise UsageError if the disk has too little free space for the rows of all clients and their before-images."""
    if not on_disk(config, problem):  # a plan allocates on the device "meta", for which torch imports sympy: 0.8 s
        return
    plan = plan_store(config, problem)
    if plan is None or plan.folder is None:
        return
    needed = plan.size + plan.images - plan.written
    if needed > plan.free:
        raise UsageError(
            f"--client-store disk: {plan.folder} may take {needed / MIB:,.0f} MiB more, of it {plan.images / MIB:,.0f} "
            f"MiB of before-images for --keep {config.log.keep}, and {plan.free / MIB:,.0f} MiB are free; name another "
            "--log-pth, or free some"
        )
