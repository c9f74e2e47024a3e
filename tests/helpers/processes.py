"""Runs of several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
"""With a port that is free, so that tests can run beside each other."""


def environment(**more: str) -> dict[str, str]:
    """For programs that find this tree, and take one core each."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def on_ranks(fork_server: ForkServer, ranks: int, words: Sequence[object], log: Path) -> str:
    """Train with this command line on so many ranks; what they print, which goes to `log`."""
    statuses = fork_server.start([*words, "--timeout", "120"], log, ranks).statuses()
    text = log.read_text()
    assert statuses == [0] * ranks, text[-3000:]
    return text


class Rank(subprocess.Popen[bytes]):
    """One rank; its standard error goes to a file, which takes all there is, unlike a pipe that nobody reads yet."""

    def __init__(self, command: Sequence[str], variables: dict[str, str]) -> None:
        self._said = tempfile.TemporaryFile()
        super().__init__(command, env=environment(**variables), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=self._said)

    def said(self) -> str:
        return os.pread(self._said.fileno(), 2**20, 0).decode()


def start(*ranks: Sequence[object], program: Sequence[str] = ("-m", "fastlocal"), **more: str) -> list[Rank]:
    """One process a rank, each with its own words after `program`, told by variables alone how to find the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(len(ranks)), "LOCAL_WORLD_SIZE": str(len(ranks))}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Rank(
            [sys.executable, *program, *map(str, words)], {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared, **more}
        )
        for rank, words in enumerate(ranks)
    ]


def ends(processes: Sequence[Rank], timeout: float = 240) -> list[tuple[int, str]]:
    """Status and standard error of each; whatever lives beyond `timeout` seconds is killed and the test fails."""
    try:
        return [(process.wait(timeout), process.said()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
