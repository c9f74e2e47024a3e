"""Runs of several processes, started by torchrun."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
"""With a port that is free, so that tests can run beside each other."""


def environment(**more: str) -> dict[str, str]:
    """For programs that find this tree, and take one core each."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def launch(ranks: int, *runs: Sequence[object], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run these command lines one after the other on as many ranks; each is the words after `fastlocal`."""
    words = [json.dumps([str(word) for word in run]) for run in runs]
    command = [*TORCHRUN, "--nproc-per-node", str(ranks), "-m", "tests.rank_program", *words]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def start(
    *ranks: Sequence[object], program: Sequence[str] = ("-m", "fastlocal"), **more: str
) -> list[subprocess.Popen[str]]:
    """One process a rank, each with its own words after `program`, told by variables alone how to find the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(len(ranks)), "LOCAL_WORLD_SIZE": str(len(ranks))}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *program, *map(str, words)],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **(shared | more)),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, words in enumerate(ranks)
    ]


def ends(processes: Sequence[subprocess.Popen[str]], timeout: float = 60) -> list[tuple[int, str]]:
    """Status and standard error of each; whatever lives beyond `timeout` seconds is killed and the test fails."""
    try:
        return [(process.wait(timeout), process.communicate()[1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
