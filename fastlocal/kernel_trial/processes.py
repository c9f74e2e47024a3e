"""Jobs in processes of their own, seen from the process that asks for them."""

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
"""In the fault of an op that was not through in time."""


@dataclass(frozen=True)
class Outcome:
    """The result of checking an op.

    Attributes:
        op: Its name.
        fault: What is wrong, in one line, or None.
        checked: How many cases were checked.
        seconds: How long that took.
    """

    op: str
    fault: str | None
    checked: int
    seconds: float


class Processes:
    """Checks ops, each where it can do no harm; a context manager.

    An op whose process crashes, or is not through with a case in time, has that as its fault, and a new process goes on
    with the next. Ctrl-C ends everything.
    """

    def __enter__(self) -> Processes:
        self._said = tempfile.TemporaryFile("w+", errors="replace")
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        settings["PYTHONSAFEPATH"] = "1"  # no module of the folder that this is started in
        settings["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # whoever asks whether there is a GPU must not touch it
        self._server = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
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
        self._said.close()

    def stop(self) -> None:
        """End what is running; who waits for it gets a RuntimeError. From any thread."""
        self._server.send_signal(signal.SIGTERM)

    def check(self, job: Job) -> Iterator[Outcome]:
        """Check the ops of a job, in their order.

        Raises RuntimeError where no process can be started.
        """
        left = list(job.ops)
        while left:
            self._ask(dataclasses.replace(job, ops=tuple(left)))
            start, at, ended = time.monotonic(), "its first call", None
            while "ended" not in (said := self._answer(job.seconds + START_SECONDS)):
                if "at" in said:
                    at = said["at"]
                if "op" in said:
                    left.remove(said["op"])
                    yield Outcome(said["op"], said["fault"], said["checked"], time.monotonic() - start)
                    start, at = time.monotonic(), "its first call"
            ended = said["ended"]
            if ended is not None and left:
                word = "hangs" if LATE in ended else "crashes"
                if ended.startswith("exit status"):
                    word, ended = "fails", self._last_line() or ended
                yield Outcome(left.pop(0), f"{word} on {at}: {ended}", 1, time.monotonic() - start)

    def _ask(self, job: Job) -> None:
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says so
            self._server.stdin.write(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
            self._server.stdin.flush()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._server.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            interrupts.check_signals()
            if time.monotonic() > deadline:
                raise RuntimeError("the process that checks kernels does not answer")
            if select.select([self._server.stdout], [], [], POLL_SECONDS)[0]:
                some = os.read(self._server.stdout.fileno(), 65536)
                if not some:
                    raise RuntimeError(f"the process that checks kernels ended: {self._last_line()}")
                self._rest += some
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return self._answer(seconds) if "ready" in said else said

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        return lines[-1][:160] if lines else ""
