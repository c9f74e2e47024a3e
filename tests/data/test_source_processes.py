"""Streaming sources give two processes the samples that one process has.

The same source in each of them, in whole runs; what a source gives to a part of the clients, and FFCV, which would
compile for ten seconds in every process, are in test_source_equality.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastlocal.cli import main
from fastlocal.data.images.arrays import ArrayImages
from tests.data import sources
from tests.helpers.command_line import metrics
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import on_ranks

SIZES = (
    *("--model", "mlp", "--precision", "fp64", "--batch-size", "4", "--clients", "5", "--momentum", "0.9"),
    *("--client-lr", "0.05", "--epochs", "2", "--step1", "2", "--seed", "3"),
    *("--device", "cpu", "--executor", "stacked"),
)


def steps(directory: Path) -> list[dict[str, Any]]:
    """The rate and loss of every client at every step, in their order."""
    rows = [json.loads(line) for line in (directory / "steps.jsonl").read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["step"], row["client"]))


@pytest.mark.needs("ffcv", "nvidia.dali")
def test_two_processes_train_on_the_samples_of_one(fork_server: ForkServer, tmp_path: Path) -> None:
    beton = str(sources.beton(tmp_path, ArrayImages(sources.cifar().inputs), "raw"))
    data = ("train", "--dataset", "beton", "--train-pth", beton, "--val-pth", beton, "--aug", "1", "--debug", "1")
    kinds = ("torch", "dali")
    words = {
        kind: [*data, *SIZES, "--nw", "1", "--source", kind, "--log-pth", str(tmp_path / kind)]
        for kind in ("resident", *kinds)
    }
    assert main(words["resident"]) == 0
    for kind in kinds:
        on_ranks(fork_server, 2, words[kind], tmp_path / "log")
    expected = steps(tmp_path / "resident"), metrics(tmp_path / "resident")
    assert len(expected[0]) == 2 * 3 * 5
    for kind in kinds:
        for found, wanted in zip((steps(tmp_path / kind), metrics(tmp_path / kind)), expected, strict=True):
            for row, other in zip(found, wanted, strict=True):
                assert row == pytest.approx(other, rel=1e-9, abs=1e-12), kind
