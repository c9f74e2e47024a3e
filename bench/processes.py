"""A program that is given so many seconds, and what it printed last."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DUMP_SECONDS = 2.0
"""For a program that is stopped to print where it stands."""
DUMP, CURRENT = "Fatal Python error", "Current thread"
"""First lines of the fault handler's output, and of its section on the main thread."""
LINES, FRAMES = 40, 20
"""Lines that are kept of what a program printed, of them at most so many where it stood."""


@dataclass(frozen=True)
class Ended:
    """The end of a program.

    status: of its exit, or None where it was stopped
    lines: of what it printed, see `kept`
    """

    status: int | None
    lines: tuple[str, ...] = ()


def run(command: Sequence[str], end: float, more: Mapping[str, str] | None = None) -> Ended:
    """Run a command until it ends, or stop it and whatever it has started when time.monotonic() reaches `end`.

    Where it is stopped, Python's fault handler first prints where it stands.
    more: variables of its environment
    """
    environment = os.environ | {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"} | dict(more or {})
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # no pipe, which would stay open in what a program leaves behind
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            status = process.wait(max(end - DUMP_SECONDS - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            status = None
            _signal(process, signal.SIGABRT)
            _wait(process)
        _signal(process, signal.SIGKILL)  # with whatever it has started
        _wait(process)  # in vain where it hangs in a driver
        log.seek(0)
        lines = [line.rstrip() for line in log if line.strip()]
    return Ended(status, tuple(kept(lines)))


def kept(lines: Sequence[str]) -> Sequence[str]:
    """The last lines; where the fault handler printed, the main thread's innermost frames and what came before."""
    dump = next((number for number, line in enumerate(lines) if line.startswith(DUMP)), None)
    if dump is None:
        return lines[-LINES:]
    current = next((number for number in range(dump, len(lines)) if lines[number].startswith(CURRENT)), dump)
    return [*lines[max(0, dump - LINES + FRAMES) : dump], *lines[current : current + FRAMES]]


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(DUMP_SECONDS)
