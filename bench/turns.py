"""Several ways to train cases, each in a process of its own, timed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.case import Case, cores

PRECISIONS = ("fp64", "fp32", "tf32", "bf16")
WARM_UP = 1
"""Rounds that are not counted, beside the one of the gate: the first touch of buffers."""
TOLERANCE = {"fp64": 1e-6, "fp32": 2e-3, "tf32": 2e-2, "bf16": 0.3}
"""How far a round's change of the parameters may be from the reference's, relative to its norm."""
START_SECONDS = 150.0
ENDED, SILENT, LATE = "its process ended", "no answer", "no time was left to start it"


@dataclass
class Variant:
    """backend: what the process says it runs        fault: why it is not timed        seconds: of each counted round"""

    name: str
    backend: str = ""
    fault: str = ""
    seconds: list[float] = field(default_factory=list)


def way_and_precision(name: str) -> tuple[str, str | None]:
    """Of a variant's name; "vmap, fp32" trains in fp32 whatever the cases' precision is, "vmap" in theirs."""
    way, _, last = name.rpartition(", ")
    return (way, last) if last in PRECISIONS else (name, None)


class Worker:
    """A process that trains a round of one case after the other whenever it is told to.

    cases: by number, without those that are in the precision of its name anyway, as there is a variant for these
    """

    def __init__(self, name: str, cases: Sequence[Case], folder: Path, settings: Mapping[str, Any]) -> None:
        self.name, self._folder, self._settings = name, folder, settings
        self._said = folder / "stderr"
        self._way, precision = way_and_precision(name)
        self.cases = {
            number: dataclasses.replace(case, precision=precision or case.precision)
            for number, case in enumerate(cases)
            if case.precision != precision
        }
        self.variant = Variant(name)
        self._process: subprocess.Popen[bytes] | None = None
        self._given: list[int] = []
        self._waits_for: int | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()  # a run that is told to stop would save its state first
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process = None

    def begin(self, number: int) -> None:
        """Let it start a case, in a new process unless one waits for it, and train a first round; `begun` waits."""
        gone = self._process is None or self.variant.fault.startswith(ENDED)
        self.variant = Variant(self.name)
        if gone or self._waits_for != number:
            self.__exit__()
            self._start(number)
        else:
            self._tell("next")
        self._waits_for = min((later for later in self._given if later > number), default=None)

    def begun(self, timeout: float = START_SECONDS) -> None:
        """Wait until the first round is trained."""
        said = self.answer(timeout)
        self.variant.backend, self.variant.fault = str(said.get("backend", "")), str(said.get("fault", ""))

    def row(self, number: int) -> torch.Tensor:
        """The parameters after the first round of a case."""
        found: torch.Tensor = torch.load(self._folder / f"{self._given.index(number)}.pt", weights_only=True)
        return found.double()

    def _start(self, number: int) -> None:
        self._given = [later for later in self.cases if later >= number]
        self._folder.mkdir(exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(cores()), "MKL_NUM_THREADS": str(cores())}
        environment = os.environ | threads | {"TMPDIR": str(self._folder)}
        cases = json.dumps([dataclasses.asdict(self.cases[later]) for later in self._given])
        command = [sys.executable, "-m", "bench.worker", self._way, cases, str(self._folder)]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, json.dumps(dict(self._settings))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
            )

    def _tell(self, word: str) -> bool:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def answer(self, timeout: float) -> dict[str, object]:
        """Its next line; a fault where none comes in time, and then it is stopped so that it keeps nobody waiting."""
        assert self._process is not None and self._process.stdout is not None
        out = self._process.stdout
        if not select.select([out], [], [], max(timeout, 0.1))[0]:
            self.__exit__()
            return {"fault": f"{SILENT} within {timeout:.0f} s"}
        line = out.readline()
        return dict(json.loads(line)) if line else {"fault": self._end()}

    def _end(self) -> str:
        """How the process ended, and what it said last."""
        assert self._process is not None
        lines = self._said.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{ENDED} with status {self._process.wait()}: {last}"

    def turn(self, timeout: float) -> float | None:
        """Seconds of one round."""
        said = self.answer(timeout) if self._tell("go") else {"fault": self._end()}
        self.variant.fault = str(said.get("fault", ""))
        return None if self.variant.fault else float(str(said["seconds"]))


def measure(
    cases: Sequence[Case],
    variants: Sequence[str],
    reference: str | None,
    seconds: float,
    *,
    at_least: int = 3,
    most: int = 15,
    case_seconds: float = float("inf"),
    settings: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Case, list[Variant]]]:
    """Of each case, start the variants, check their first round against the reference's, and time them in turns.

    seconds: about how long the turns of a case may take together
    case_seconds: the same with what its variants take to start; three quarters of it are for starting, and those that
        come later have a fault        settings: fields of fastlocal's RunConfig
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(Worker(name, cases, folder / str(place), settings or {}))
            for place, name in enumerate(variants)
        ]
        for number, case in enumerate(cases):
            began = time.monotonic()
            present = [worker for worker in workers if number in worker.cases]
            _begin(number, present, began + 0.75 * case_seconds)
            if reference is not None:
                _gate(case, number, present, reference)
            left = case_seconds - (time.monotonic() - began)
            take_turns(present, min(seconds, left), at_least, most)
            yield case, [worker.variant for worker in present]


def _begin(number: int, workers: Sequence[Worker], end: float) -> None:
    """Start a case: loops together, as most of it is one thread's imports; the others alone, as they may time."""
    loops = [worker for worker in workers if not worker.name.startswith("fastlocal ")]
    for together in (loops, *([worker] for worker in workers if worker not in loops)):
        late = time.monotonic() >= end
        for worker in together:
            if late:
                worker.variant = Variant(worker.name, fault=LATE)
            else:
                worker.begin(number)
        for worker in together:
            if not late:
                left = end - time.monotonic()
                worker.begun(min(left, START_SECONDS))
                if left < START_SECONDS and worker.variant.fault.startswith(SILENT):
                    worker.variant.fault = LATE


def take_turns(workers: Sequence[Worker], seconds: float, at_least: int, most: int) -> None:
    """Time rounds of those that have begun, one of each after the other."""
    end = time.monotonic() + seconds
    for turn in range(WARM_UP + most):
        if turn >= WARM_UP + at_least and time.monotonic() > end:
            break
        for worker in workers:
            if not worker.variant.fault:
                took = worker.turn(timeout=120.0)
                if took is not None and turn >= WARM_UP:
                    worker.variant.seconds.append(took)


def _gate(case: Case, number: int, workers: Sequence[Worker], reference: str) -> None:
    """Give a fault to every variant whose first round is not the reference's."""
    rows = {worker.name: worker.row(number) for worker in workers if not worker.variant.fault}
    if reference not in rows:
        return
    change = rows[reference] - _start(case)
    for worker in workers:
        if worker.name in rows:
            off = float((rows[worker.name] - rows[reference]).norm() / change.norm())
            if not off <= TOLERANCE[case.precision]:
                worker.variant.fault = f"its first round is {off:.2g} away from the reference's"


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
