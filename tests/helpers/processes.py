"""Runs of several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.fork_server import ForkServer

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
"""With a port that is free, so that tests can run beside each other."""
Ends = list[tuple[int, str]]


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


def run_each(fork_server: ForkServer, log: Path, *words: Sequence[object], program: str = "", **variables: str) -> Ends:
    """Run one rank for each list of words, as ForkServer.start_each; its status, and what it printed to `log`."""
    run = fork_server.start_each(log, *words, program=program, **variables)
    return [(status, run.said(rank)) for rank, status in enumerate(run.statuses())]
