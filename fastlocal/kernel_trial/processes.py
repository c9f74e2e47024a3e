"""Client of the checking processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common import interrupts
from .jobs import Job

START_SECONDS = 120.0
POLL_SECONDS = 0.2
LATE = "time limit"
"""Part of the fault of an op that exceeded its time limit."""


@dataclass(frozen=True)
class Outcome:
    """Result of checking an op.

    Attributes:
        op: Its name.
        fault: The fault in one line, or None.
        checked: Number of cases checked.
        seconds: Time taken.
    """

    op: str
    fault: str | None
    checked: int
    seconds: float


class Processes:
    """Context manager that checks ops in other processes.

    If an op's process crashes or exceeds the time limit of a case, that is the op's fault, and a new process continues
    with the next op. Ctrl-C ends all of them.
    """

    def __enter__(self) -> Processes:
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        settings["PYTHONSAFEPATH"] = "1"  # do not import from the current folder
        settings["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the check for a GPU must not initialize CUDA
        self._server = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **settings, "PYTHONPATH": path},
            start_new_session=True,
        )
        self._rest = b""
        return self

    def __exit__(self, *error: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        with contextlib.suppress(OSError):
            self._server.stdin.close()
        self.stop()
        self._server.wait()
        self._server.stdout.close()
        self._stderr.close()

    def stop(self) -> None:
        """End the running check; its caller gets a RuntimeError. Callable from any thread."""
        self._server.send_signal(signal.SIGTERM)

    def check(self, job: Job) -> Iterator[Outcome]:
        """Check the ops of a job, in order; raises RuntimeError if no process can be started."""
        left = list(job.ops)
        while left:
            self._send(dataclasses.replace(job, ops=tuple(left)))
            start, at, ended = time.monotonic(), "its first call", None
            while "ended" not in (reply := self._receive(job.seconds + START_SECONDS)):
                if "at" in reply:
                    at = reply["at"]
                if "op" in reply:
                    left.remove(reply["op"])
                    yield Outcome(reply["op"], reply["fault"], reply["checked"], time.monotonic() - start)
                    start, at = time.monotonic(), "its first call"
            ended = reply["ended"]
            if ended is not None and left:
                word = "hangs" if LATE in ended else "crashes"
                if ended.startswith("exit status"):
                    word, ended = "fails", self._last_line() or ended
                yield Outcome(left.pop(0), f"{word} on {at}: {ended}", 1, time.monotonic() - start)

    def _send(self, job: Job) -> None:
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _receive reports it
            self._server.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            self._server.stdin.flush()

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._server.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            interrupts.check_signals()
            if time.monotonic() > deadline:
                raise RuntimeError("the process that checks kernels does not answer")
            if select.select([self._server.stdout], [], [], POLL_SECONDS)[0]:
                data = os.read(self._server.stdout.fileno(), 65536)
                if not data:
                    raise RuntimeError(f"the process that checks kernels ended: {self._last_line()}")
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return self._receive(seconds) if "ready" in reply else reply

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        return lines[-1][:160] if lines else ""
