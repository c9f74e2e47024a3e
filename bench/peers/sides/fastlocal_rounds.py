"""fastlocal by its public `fastlocal.train`, on a user's module and tensors; nothing is tuned by hand.

    PYTHON fastlocal_rounds.py FOLDER FACTS [NAME=VALUE ...]

NAME=VALUE are further arguments of fastlocal.train. The run's loggers are replaced by one that waits between rounds. No
executor is timed, as in a short run, unless tune_seconds=... says so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from nets import torch_module
from protocol import Turns, Workload, read_workload
from torch_client import check_loss

import fastlocal
import fastlocal.api.train
from fastlocal.telemetry.base import Logger, RoundReport, RunSummary

CHECKED_ROUNDS = 2
"""Rounds after which the global model's loss is asked for."""
LONG = 1_000_000
"""More rounds than anybody asks for."""


class RoundByRound(Logger):
    """Trains a round whenever one is wanted."""

    def __init__(self, turns: Turns, loss: float, momentum: str) -> None:
        self._turns, self._loss, self._momentum = turns, loss, momentum

    def start(self, summary: RunSummary) -> None:
        """Report the executor that was chosen, and wait."""
        executor = summary.config["machine"]["executor"]
        self._turns.ready(lambda: self._loss, momentum=self._momentum, packages=("torch",), executor=executor)
        self._turns.next_round()

    def round(self, report: RoundReport) -> None:
        """Report the end of a round, and wait."""
        self._turns.end_round()
        self._turns.next_round()


def train(work: Workload, settings: dict[str, Any], rounds: int, directory: Path) -> fastlocal.Run:
    """Train the workload by fastlocal."""
    inputs, targets = torch.from_numpy(work.inputs), torch.from_numpy(work.targets)
    return fastlocal.train(
        torch_module(work.net, work.start),
        (inputs, targets),
        tuple(torch.from_numpy(values) for values in work.check_samples()),
        partition=work.folder / "partition.npz",
        clients=work.clients,
        local_steps=work.local_steps,
        batch_size=work.batch,
        lr=work.lr,
        momentum=work.momentum,
        weight_decay=work.weight_decay,
        rounds=rounds,
        eval_every=LONG,
        save_every=LONG,
        directory=directory,
        progress=False,
        device="cpu",
        **settings,
    )


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    settings: dict[str, Any] = {"tune_seconds": 0.0}
    if work.momentum:
        settings["client_state"] = "keep"
    for word in sys.argv[3:]:
        name, _, value = word.partition("=")
        settings[name] = json.loads(value)
    with tempfile.TemporaryDirectory() as name:
        first = train(work, settings, CHECKED_ROUNDS, Path(name) / "checked")
        momentum = "kept" if settings.get("client_state", "keep") == "keep" else "reset"
        logger = RoundByRound(turns, check_loss(work, first.model), momentum)
        vars(fastlocal.api.train)["make_loggers"] = lambda *arguments, **values: [logger]
        train(work, settings, LONG, Path(name) / "timed")


if __name__ == "__main__":
    main()
