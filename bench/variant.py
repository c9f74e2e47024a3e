"""A way to train cases, as a process that takes turns with others: bench.worker, seen from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.case import Case, cores
from bench.processes import DUMP_SECONDS, kept

PRECISIONS = ("fp64", "fp32", "tf32", "bf16")
START_SECONDS, TURN_SECONDS = 150.0, 120.0
ENDED, SILENT, LATE = "its process ended", "no answer", "no time was left to start it"


@dataclass
class Variant:
    """One way to train a case, and what became of it.

    backend: what the process says it runs
    fault: why it is not timed
    seconds: of each counted round
    said: the last lines that a process with a fault printed
    start: seconds until its first round was trained, those in which it waited for others to start left out
    """

    name: str
    backend: str = ""
    fault: str = ""
    seconds: list[float] = field(default_factory=list)
    said: str = ""
    start: float | None = None


def way_and_precision(name: str) -> tuple[str, str | None]:
    """Split a variant's name: "vmap, fp32" always trains in fp32, "vmap" in the precision of the case."""
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
        self._began, self._new = 0.0, False

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

    def prepare(self, number: int) -> None:
        """Start a process for a case, unless one waits for it; `prepared` waits until it has imported everything."""
        fault = self.variant.fault
        # after an error of the GPU nothing else works in its process
        gone = self._process is None or fault.startswith(ENDED) or (bool(fault) and torch.cuda.is_available())
        self.variant = Variant(self.name)
        self._began = time.monotonic()
        self._new = gone or self._waits_for != number
        if self._new:
            self.__exit__()
            self._start(number)
        self._waits_for = min((later for later in self._given if later > number), default=None)

    def prepared(self, timeout: float = START_SECONDS) -> None:
        if self._new:
            self._note(self.answer(timeout))
        self.variant.start = time.monotonic() - self._began

    def begin(self) -> None:
        """Let it start the case and train a first round; `begun` waits for that."""
        self._began = time.monotonic()
        if not self._tell("next"):
            self._note({"fault": self._end()})

    def begun(self, timeout: float = START_SECONDS) -> None:
        """Wait until the first round is trained."""
        if not self.variant.fault:
            said = self.answer(timeout)
            self._note(said)
            self.variant.backend = str(said.get("backend", ""))
            self.variant.start = (self.variant.start or 0.0) + time.monotonic() - self._began

    def _note(self, said: Mapping[str, object]) -> None:
        self.variant.fault = str(said.get("fault", ""))
        if self.variant.fault:
            self.variant.said = "\n".join(kept(self._lines()))

    def row(self, number: int) -> torch.Tensor:
        """The parameters after the first round of a case."""
        found: torch.Tensor = torch.load(self._folder / f"{self._given.index(number)}.pt", weights_only=True)
        return found.double()

    def _start(self, number: int) -> None:
        self._given = [later for later in self.cases if later >= number]
        self._folder.mkdir(exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(cores()), "MKL_NUM_THREADS": str(cores())}
        environment = os.environ | threads | {"TMPDIR": str(self._folder), "PYTHONFAULTHANDLER": "1"}
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
            self._process.send_signal(signal.SIGABRT)  # its fault handler prints where it stands
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DUMP_SECONDS)
            self.__exit__()
            return {"fault": f"{SILENT} within {timeout:.0f} s"}
        line = out.readline()
        return dict(json.loads(line)) if line else {"fault": self._end()}

    def _end(self) -> str:
        """Describe the end of the process: its exit status and its last line of output."""
        assert self._process is not None
        status = self._process.wait()
        return f"{ENDED} with status {status}: {''.join(self._lines()[-1:]).strip()}"

    def _lines(self) -> list[str]:
        lines = self._said.read_text(errors="replace").split("\n")
        return [line.rstrip() for line in lines if line.strip()]

    def turn(self, timeout: float) -> float | None:
        """Seconds of one round."""
        said = self.answer(timeout) if self._tell("go") else {"fault": self._end()}
        self._note(said)
        return None if self.variant.fault else float(str(said["seconds"]))
