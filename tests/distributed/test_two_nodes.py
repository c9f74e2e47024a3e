"""Two nodes, as two network namespaces of this machine that a cable joins: torchrun's rendezvous between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fastlocal.cli import main
from tests.distributed.test_many_processes import assert_alike, rows
from tests.helpers.processes import ROOT, environment

RUN = (
    *("train", "--dataset", "digits", "--device", "cpu", "--precision", "fp64", "--clients", "5", "--batch-size", "4"),
    *("--client-lr", "0.05", "--momentum", "0.9", "--step1", "3", "--tune-seconds", "0", "--debug", "1"),
)
ADDRESSES = ("10.177.31.1", "10.177.31.2")
PORT = 29_411
PATIENCE_S = 120


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
            ip("-n", name, "link", "set", end, "up")

    def cut(self) -> None:
        ip("-n", self.names[1], "link", "set", self._ends[1], "down")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def torchrun(self, folder: Path, *words: object) -> list[subprocess.Popen[str]]:
        """One process on each node, whose errors go to the files 0 and 1 in `folder`."""
        folder.mkdir()
        return [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"),
                    *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", name[:-1]),
                    *("--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--local-addr", address),
                    *("--rdzv-conf", f"is_host={int(address == ADDRESSES[0])},join_timeout=60"),
                    *("-m", "fastlocal", *map(str, words)),
                ],
                env=environment(GLOO_SOCKET_IFNAME=end),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=(folder / str(node)).open("w"),
                text=True,
            )
            for node, (name, end, address) in enumerate(zip(self.names, self._ends, ADDRESSES, strict=True))
        ]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    if shutil.which("ip") is None:
        stop = pytest.fail if os.environ.get("FASTLOCAL_TEST_ALL") == "1" else pytest.skip
        stop("the program `ip` is not installed (Debian's iproute2, `make test` installs it)")
    cable = Cable()
    try:
        cable.lay()
    except subprocess.CalledProcessError as error:
        cable.remove()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    yield cable
    cable.remove()


def test_a_run_across_nodes_and_a_cut_cable(cable: Cable, tmp_path: Path) -> None:
    """One process continues the run of the two nodes as if it had trained it from the first round."""
    alone, run, cut = tmp_path / "alone", tmp_path / "run", tmp_path / "cut"
    words = (*RUN, "--eval-freq1", "10", "--log-pth")
    nodes = cable.torchrun(cut, *words, run, "--rounds", "1000000", "--timeout", "8")
    try:
        assert becomes_true((run / "resume.pt").exists)
        cable.cut()
        assert nodes[0].wait(PATIENCE_S)
        # torchrun's own agent on the other side may not notice for long
        assert becomes_true(lambda: "rank 1: the other ranks cannot be reached at" in (cut / "1").read_text())
    finally:
        end(nodes)
    said = (cut / "0").read_text()
    assert "rank 1 (process" in said and "did not come within 8 s, waited for at" in said, said[-2000:]
    rounds = str(10 * len(rows(run / "metrics.jsonl")) + 20)
    for directory, more in ((run, ("--continue",)), (alone, ())):
        assert main([*words, str(directory), "--rounds", rounds, *more]) == 0
    assert_alike(run, alone)


def becomes_true(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.wait()
