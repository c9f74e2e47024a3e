"""Two nodes, as two network namespaces of this machine that a cable joins: torchrun's rendezvous between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastlocal.cli import main
from tests.many import ROOT, ends, environment
from tests.test_many_processes import assert_alike, rows

RUN = (
    *("train", "--dataset", "digits", "--device", "cpu", "--precision", "fp64", "--clients", "5", "--batch-size", "4"),
    *("--client-lr", "0.05", "--momentum", "0.9", "--step1", "3", "--tune-seconds", "0", "--debug", "1"),
)
ADDRESSES = ("10.177.31.1", "10.177.31.2")
PORT = 29_411


class Cable:
    """Two namespaces, node 0 and node 1, and what joins them."""

    def __init__(self) -> None:
        self.names = [f"fastlocal{os.getpid()}n{node}" for node in (0, 1)]
        self._ends = [f"fl{os.getpid() % 100_000}e{node}" for node in (0, 1)]

    def lay(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self._ends[0], "type", "veth", "peer", "name", self._ends[1])
        for name, end, address in zip(self.names, self._ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
        self.join()

    def join(self) -> None:
        for name, end in zip(self.names, self._ends, strict=True):
            ip("-n", name, "link", "set", end, "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", self._ends[1], "down")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def torchrun(self, *words: object) -> list[subprocess.Popen[str]]:
        """One process on each node."""
        return [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
                    *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", name[:-1]),
                    *("--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--local-addr", address),
                    *("-m", "fastlocal", *map(str, words)),
                ],
                env=environment(GLOO_SOCKET_IFNAME=end),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name, end, address in zip(self.names, self._ends, ADDRESSES, strict=True)
        ]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None:
        pytest.skip("the program `ip` (Debian's iproute2) is not installed")
    cable = Cable()
    try:
        cable.lay()
    except subprocess.CalledProcessError as error:
        cable.remove()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    yield cable
    cable.remove()


def test_a_run_across_nodes_and_a_cut_cable(cable: Cable, tmp_path: Path) -> None:
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert main([*RUN, "--rounds", "400", "--eval-freq1", "50", "--log-pth", str(alone)]) == 0

    words = (*RUN, "--rounds", "400", "--eval-freq1", "50", "--log-pth", run, "--timeout", "3")
    nodes = cable.torchrun(*words)
    until = time.monotonic() + 60
    while not (run / "resume.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    cable.cut()
    (status, said), (other, also_said) = ends(nodes, timeout=90)
    assert status and other
    assert "did not come within 3 s, waited for at" in said and "rank 1 (process" in said, said[-2000:]
    assert 0 < len(rows(run / "metrics.jsonl")) < 8

    cable.join()
    ended = ends(cable.torchrun(*words, "--continue"), timeout=90)
    assert [status for status, _ in ended] == [0, 0], ended[0][1][-2000:]
    assert_alike(run, alone)
