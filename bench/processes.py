"""Child processes: programs with a deadline, and workers that answer line by line."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

DUMP_SECONDS = 2.0
"""Time for a stopped program to print its stack."""
DUMP, CURRENT = "Fatal Python error", "Current thread"
"""First lines of the fault handler's output, and of the main thread's section in it."""
LINES, FRAMES = 40, 20
"""Number of last lines that are reported, and of stack frames among them."""
ENDED, SILENT = "its process ended", "no answer"
"""Beginnings of the faults of a worker."""


@dataclass(frozen=True)
class ProgramResult:
    """Result of a program.

    Attributes:
        status: Exit status; None where the program was stopped at its deadline.
        lines: Last lines of its output, see `last_lines`.
    """

    status: int | None
    lines: tuple[str, ...] = ()


def run(
    command: Sequence[str], deadline: float, variables: Mapping[str, str | None] | None = None, cwd: Path | None = None
) -> ProgramResult:
    """Run a program; at the deadline stop it and everything it has started.

    Before it is stopped, Python's fault handler prints its stack.

    Args:
        command: Program and arguments.
        deadline: Value of time.monotonic().
        variables: Changes of the environment; None removes a variable.
        cwd: Working directory, by default that of this process.
    """
    merged = {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", **(variables or {})}
    environment = {name: value for name, value in merged.items() if value is not None}
    # a file: a pipe would stay open in processes that the program leaves behind
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=environment, start_new_session=True
        )
        try:
            status = process.wait(max(deadline - DUMP_SECONDS - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            status = None
            _signal_group(process, signal.SIGABRT)
            _wait(process)
        _signal_group(process, signal.SIGKILL)
        _wait(process)  # without effect on a process that hangs in a driver
        log.seek(0)
        lines = [line.rstrip() for line in log if line.strip()]
    return ProgramResult(status, tuple(last_lines(lines)))


def last_lines(lines: Sequence[str]) -> Sequence[str]:
    """Return the last lines of an output; of a fault handler's dump the main thread's inner frames alone."""
    dump = next((number for number, line in enumerate(lines) if line.startswith(DUMP)), None)
    if dump is None:
        return lines[-LINES:]
    current = next((number for number in range(dump, len(lines)) if lines[number].startswith(CURRENT)), dump)
    return [*lines[max(0, dump - LINES + FRAMES) : dump], *lines[current : current + FRAMES]]


class AnsweringProcess:
    """A child process that answers each line with a line of JSON on its standard output.

    Args:
        command: Program and arguments; the program uses `answer_pipe` and `answer`.
        log: File for its standard error.
        variables: Additional environment variables.
        own_group: Start a process group, so that `close` also ends what the process has started. Without, the process
            stays in the group of its parent and ends with it.
    """

    def __init__(
        self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None, *, own_group: bool = False
    ) -> None:
        self._log, self._own_group = log, own_group
        environment = os.environ | {"PYTHONFAULTHANDLER": "1"} | dict(variables or {})
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=own_group,
            )

    def send(self, line: str) -> None:
        """Send a line; an ended process is noticed by `answer`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended, or is closed
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any]:
        """Return the next answer, or {"fault": why} where there is none; a process that stays silent is ended."""
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return {"fault": f"{ENDED} before"}
        if not select.select([self._process.stdout], [], [], max(timeout, 0.1))[0]:
            self._process.send_signal(signal.SIGABRT)  # the fault handler prints the stack
            _wait(self._process)
            self.close()
            return {"fault": f"{SILENT} within {timeout:.0f} s"}
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self._process.wait()
        return {"fault": f"{ENDED} with status {status}: {''.join(self.log_lines()[-1:]).strip()}"}

    def log_lines(self) -> list[str]:
        """Return the lines of the log that are not blank."""
        lines = self._log.read_text(errors="replace").split("\n")
        return [line.rstrip() for line in lines if line.strip()]

    def close(self) -> None:
        """Kill the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if self._own_group:
            _signal_group(self._process, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def answer_pipe() -> TextIO:
    """In a child process: return the pipe for answers, and send everything else that is printed to standard error."""
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return pipe


def answer(pipe: TextIO, **values: object) -> None:
    """In a child process: answer with these values."""
    print(json.dumps(values), file=pipe, flush=True)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(DUMP_SECONDS)
