"""Hundreds to thousands of clients on real images, and memory that grows with the chunk alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastlocal.cli import main
from fastlocal.config.serialization import read_config
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import run_each

MANY = "--dataset digits --model mlp --replacement 1 --batch-size 8 --step1 2 --steps-per-epoch 4 --device cpu"
MANY += " --start-lr 0.0002 --epochs 1 --executor stacked"
# not getrusage, whose peak a process takes over from the one that started it
PEAK = """
import sys
from pathlib import Path
from fastlocal.cli import main
assert main(sys.argv[1:]) == 0
lines = Path("/proc/self/status").read_text().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def peak_mib(fork_server: ForkServer, folder: Path, clients: int, chunk: int) -> float:
    """Peak resident memory of a process of its own that trains in `folder`, in MiB."""
    words = ["train", *MANY.split(), "--clients", clients, "--chunk", chunk, "--log-pth", folder]
    ((status, said),) = run_each(fork_server, folder.with_suffix(".log{rank}"), words, program=PEAK)
    assert status == 0, said
    return int(said.rsplit("peak", 1)[1]) / 1024


def test_a_thousand_clients_in_chunks_are_the_same_in_less_memory(fork_server: ForkServer, tmp_path: Path) -> None:
    whole = peak_mib(fork_server, tmp_path / "whole", clients=1000, chunk=1000)
    chunked = peak_mib(fork_server, tmp_path / "chunked", clients=1000, chunk=50)
    more = peak_mib(fork_server, tmp_path / "more", clients=2000, chunk=50)

    states = [torch.load(tmp_path / name / "latest.pt", weights_only=True) for name in ("whole", "chunked", "more")]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, states[2][name])
    # 38 kB of parameters a client, once more as gradients, and their pieces on the way there
    row_mib = 4 * sum(value.numel() for value in states[0].values()) / 2**20
    assert whole - chunked > 950 * 2 * row_mib
    assert abs(more - chunked) < 400 * row_mib


def train(folder: Path, words: str) -> list[dict[str, float]]:
    """Train through the command line; returns the steps, one row per client and step."""
    assert main(["train", *words.split(), "--log-pth", str(folder), "--debug", "1"]) == 0
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_many_clients_on_fashion_mnist(tmp_path: Path) -> None:
    clients, h, rounds = 64, 8, 3
    words = f"--dataset fashion_mnist --model cnn --clients {clients} --chunk 16 --batch-size 8 --device cpu"
    steps = train(tmp_path / "run", f"{words} --client-lr 0.1 --step1 {h} --rounds {rounds} --eval-freq1 {rounds}")
    assert read_config(tmp_path / "run" / "config.json").clients == clients
    assert {row["client"] for row in steps} == set(range(clients))
    by_step = [sum(row["loss"] for row in steps if row["step"] == step) / clients for step in range(h * rounds)]
    # the mean over all clients, from the start to the last step before averaging
    assert by_step[-1] < 0.7 * by_step[0]
