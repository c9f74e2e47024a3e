"""The workload, the batches and the turns of every side of bench.peers. Needs NumPy alone.

A side is started as `PYTHON SIDE FOLDER FACTS`: FOLDER holds what bench.peers.workloads wrote, FACTS is JSON of the
workload's numbers. It answers {} with facts of its own when it is ready, then each line of standard input: "rounds N"
trains N rounds and answers {"seconds": s}, "loss" answers {"loss": the global model's on the check samples}.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CHECK_SAMPLES = 512
"""Samples, the first of the data set, on which the global models of all sides are compared."""


class Workload(SimpleNamespace):
    """Numbers of a workload, see bench.peers.workloads.Workload, and its files.

    Attributes:
        inputs: fp32 [samples, *shape], read from the file as they are used.
        targets: int64 [samples].
        start: Start weights by the names of torch's parameters.
        clients_of: int64 [rounds, clients], who takes part in the rounds that are written down.
        ids_of: int64 [rounds, clients, local_steps, batch], their sample numbers.
    """

    def __init__(self, folder: Path, facts: str) -> None:
        super().__init__(**json.loads(facts))
        self.folder, self._facts = folder, facts
        self.inputs = np.load(folder / "inputs.npy", mmap_mode="c")
        self.targets = np.load(folder / "targets.npy")
        self.start = dict(np.load(folder / "start.npz"))
        given = np.load(folder / "rounds.npz")
        self.clients_of, self.ids_of = given["clients"], given["ids"]

    def __reduce__(self) -> Any:
        """Let other processes read the files for themselves, once."""
        return read, (self.folder, self._facts)

    def cohort(self, number: int) -> Any:
        """Return the clients of a round [clients]; rounds that are not written down repeat those that are."""
        return self.clients_of[number % len(self.clients_of)]

    def samples(self, number: int, place: int) -> tuple[Any, Any]:
        """Return inputs [local_steps, batch, *shape] and targets [local_steps, batch] of one client of a round."""
        ids = self.ids_of[number % len(self.ids_of), place]
        return self.inputs[ids], self.targets[ids]

    def check_samples(self) -> tuple[Any, Any]:
        """Return the samples on which global models are compared."""
        return np.array(self.inputs[:CHECK_SAMPLES]), self.targets[:CHECK_SAMPLES]


class Turns:
    """Lets a side train when it is told to. A side that owns its loop calls `next_round` and `end_round` around each.

    From its making on, what else is printed goes to standard error.
    """

    def __init__(self) -> None:
        self._pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._loss: Callable[[], float] = lambda: float("nan")
        self._left, self._start = 0, 0.0

    def ready(
        self,
        loss: Callable[[], float],
        *,
        momentum: str,
        packages: Sequence[str] = ("torch",),
        clients: int = 0,
        executor: str = "",
    ) -> None:
        """Report that the first round can begin.

        Args:
            loss: Returns the global model's loss on the check samples.
            momentum: What becomes of a client's momentum at the mean: "kept" or "reset".
            packages: Distributions whose versions are reported.
            clients: Clients of a round, where they are not the workload's.
            executor: The executor that fastlocal chose.
        """
        self._loss = loss
        versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
        self._answer(momentum=momentum, versions=versions, clients=clients, executor=executor)

    def next_round(self) -> None:
        """Wait until a round is wanted; the process ends where nobody asks any more."""
        while not self._left:
            words = sys.stdin.readline().split()
            if not words:
                raise SystemExit
            if words[0] == "loss":
                self._answer(loss=self._loss())
            else:
                self._left, self._start = int(words[1]), time.perf_counter()

    def end_round(self) -> None:
        """Report the seconds of the rounds that were wanted, if this was the last."""
        self._left -= 1
        if not self._left:
            self._answer(seconds=time.perf_counter() - self._start)

    def serve(self, train_round: Callable[[int], None]) -> None:
        """Train rounds by their number, from 0 on, until nobody asks any more."""
        number = 0
        while True:
            self.next_round()
            train_round(number)
            self.end_round()
            number += 1

    def _answer(self, **values: object) -> None:
        print(json.dumps(values), file=self._pipe, flush=True)


def read_workload() -> Workload:
    """Return the workload that the command line names."""
    return read(Path(sys.argv[1]), sys.argv[2])


@functools.cache
def read(folder: Path, facts: str) -> Workload:
    """Return a workload; a process and those that it forks read the files once."""
    return Workload(folder, facts)
