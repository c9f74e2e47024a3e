"""Several ways to train one case, each in a process of its own, timed in turns."""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.case import Case, cores

WARM_UP = 1
"""Rounds that are not counted, beside the one of the gate: the first touch of buffers."""
TOLERANCE = {"fp64": 1e-6, "fp32": 2e-3, "tf32": 2e-2, "bf16": 0.3}
"""How far a round's change of the parameters may be from the reference's, relative to its norm."""
START_SECONDS = 150.0


@dataclass
class Variant:
    """backend: what the process says it runs        fault: why it is not timed        seconds: of each counted round"""

    name: str
    backend: str = ""
    fault: str = ""
    seconds: list[float] = field(default_factory=list)


class Worker:
    """A process that trains a round whenever it is told to."""

    def __init__(self, variant: str, case: Case, file: Path) -> None:
        self.variant = Variant(variant)
        threads = {"OMP_NUM_THREADS": str(cores()), "MKL_NUM_THREADS": str(cores())}
        environment = os.environ | threads | {"TMPDIR": str(file.parent)}
        command = [sys.executable, "-m", "bench.worker", variant, case.to_json(), str(file)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()  # a run that is told to stop would save its state first
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def answer(self, timeout: float) -> dict[str, object]:
        """Its next line; a fault where none comes in time."""
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], max(timeout, 0.1))[0]:
            return {"fault": f"no answer within {timeout:.0f} s"}
        line = out.readline()
        return dict(json.loads(line)) if line else {"fault": "its process ended"}

    def ready(self) -> None:
        """Wait until it has started and trained its first round."""
        if not (self.variant.backend or self.variant.fault):
            said = self.answer(START_SECONDS)
            self.variant.backend = str(said.get("backend", ""))
            self.variant.fault = str(said.get("fault", ""))

    def turn(self, timeout: float) -> float | None:
        """Seconds of one round."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.variant.fault = "its process ended"
            return None
        said = self.answer(timeout)
        self.variant.fault = str(said.get("fault", ""))
        return None if self.variant.fault else float(str(said["seconds"]))


def measure(
    case: Case, variants: Sequence[str], reference: str | None, seconds: float, *, at_least: int = 3, most: int = 15
) -> list[Variant]:
    """Start the variants, check their first round against the reference's, and time them in turns.

    seconds: about how long the turns may take together
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = []
        for index, name in enumerate(variants):
            if name.startswith("fastlocal"):  # may time what it takes; the others start on one thread each
                for earlier in workers:
                    earlier.ready()
            workers.append(stack.enter_context(Worker(name, case, folder / f"{index}.pt")))
        for worker in workers:
            worker.ready()
        files = {name: folder / f"{index}.pt" for index, name in enumerate(variants)}
        if reference is not None:
            _gate(case, workers, files, reference)
        end = time.monotonic() + seconds
        for number in range(WARM_UP + most):
            if number >= WARM_UP + at_least and time.monotonic() > end:
                break
            for worker in workers:
                if not worker.variant.fault:
                    took = worker.turn(timeout=120.0)
                    if took is not None and number >= WARM_UP:
                        worker.variant.seconds.append(took)
        return [worker.variant for worker in workers]


def _gate(case: Case, workers: Sequence[Worker], files: dict[str, Path], reference: str) -> None:
    """Give a fault to every variant whose first round is not the reference's."""
    rows = {worker.variant.name: _read(files[worker.variant.name]) for worker in workers if not worker.variant.fault}
    if reference not in rows:
        return
    start = _start(case)
    change = rows[reference] - start
    for worker in workers:
        if worker.variant.name in rows:
            off = float((rows[worker.variant.name] - rows[reference]).norm() / change.norm())
            if not off <= TOLERANCE[case.precision]:
                worker.variant.fault = f"its first round is {off:.2g} away from the reference's"


def _read(file: Path) -> torch.Tensor:
    row: torch.Tensor = torch.load(file, weights_only=True)
    return row.double()


def _start(case: Case) -> torch.Tensor:
    """The start weights, drawn from the seed."""
    from fastlocal.models import build

    module = build(case.model, in_channels=3, classes=10, image_size=(32, 32))
    return torch.cat([value.detach().flatten() for value in module.parameters()]).double()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=5, method="inclusive")
    return statistics.median(values), cuts[0], cuts[3]
