"""Runs of the command line, forked from a process that has imported everything: a start takes 20 ms instead of 4 s.

The parent process imports and runs nothing else, so that a forked process equals a fresh one. It ends without taking
the interpreter down, which would copy every page that it shares with its parent: 0.2 s of processor time instead of 1.
Rank 0 of several does take it down, for as long as that the others can ask its store.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """
import atexit, gc, json, os, signal, sys, threading
import torch
import fastlocal.commands.train, fastlocal.runs.from_config, fastlocal.runs.run
import fastlocal.telemetry.console, fastlocal.telemetry.loggers, fastlocal.distributed.world
import torch.fx.experimental.symbolic_shapes, tyro
from fastlocal.cli import main
gc.freeze()
for line in sys.stdin:
    program, ranks = json.loads(line)
    processes = []
    for words, log, variables in ranks:
        process = os.fork()
        if process == 0:
            file = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(variables)
            sys.argv[1:] = words
            try:
                status = exec(program, {"__name__": "__main__"}) if program else main()
            except SystemExit as end:
                status = end.code
            if os.environ.get("RANK") == "0":
                sys.exit(status)
            threading._shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
        processes.append(process)
    print(json.dumps(processes), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]), flush=True)
"""


@dataclass
class ForkServer:
    """Context manager that forks one run at a time; a run that has not ended when the next one starts is killed."""

    last: ForkedRun | None = None

    def __enter__(self) -> ForkServer:
        self.server = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._end_last()
        # a forked process may hold the pipe open, and the server would wait for the end of its input
        self.server.kill()
        self.server.communicate()

    def start(self, words: Sequence[object], log: Path, ranks: int = 1) -> ForkedRun:
        """Start `fastlocal WORDS...` as this many ranks, which print to the file `log`."""
        return self._begin("", log, [words] * ranks, {})

    def start_each(self, log: Path, *words: Sequence[object], program: str = "", **variables: str) -> ForkedRun:
        """Start one rank for each list of words, which prints to a file of its own.

        Args:
            log: Path of the files, with {rank} in its name.
            words: Arguments of each rank.
            program: Python code that runs in place of fastlocal.
            variables: More environment variables.
        """
        return self._begin(program, log, words, variables)

    def _begin(
        self, program: str, log: Path, words: Sequence[Sequence[object]], variables: dict[str, str]
    ) -> ForkedRun:
        assert self.server.stdin is not None and self.server.stdout is not None
        self._end_last()
        logs = [Path(str(log).format(rank=rank)) for rank in range(len(words))]
        for path in logs:
            path.write_bytes(b"")
        ranks = [
            ([*map(str, own)], str(path), one | variables)
            for own, path, one in zip(words, logs, _variables(len(words)), strict=True)
        ]
        self.server.stdin.write(json.dumps([program, ranks]) + "\n")
        self.server.stdin.flush()
        self.last = ForkedRun(json.loads(self.server.stdout.readline()), self.server, log)
        return self.last

    def _end_last(self) -> None:
        if self.last is not None and self.last.exit_statuses is None:
            self.last.send(signal.SIGKILL)
            self.last.statuses()


def _variables(ranks: int) -> list[dict[str, str]]:
    """Return the environment variables by which each rank finds the others."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@dataclass
class ForkedRun:
    """A run with one process per rank."""

    pids: list[int]
    server: subprocess.Popen[str]
    log: Path
    exit_statuses: list[int] | None = None

    @property
    def pid(self) -> int:
        """Process id of rank 0."""
        return self.pids[0]

    def running(self, ranks: Sequence[int] | None = None) -> bool:
        """Return True if one of these ranks, None for all, has not ended.

        A rank that has ended stays a zombie in /proc until the server waits for it.
        """
        return any(_runs(pid) for rank, pid in enumerate(self.pids) if ranks is None or rank in ranks)

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to these ranks, None for all, unless they have ended."""
        for rank, pid in enumerate(self.pids):
            if ranks is None or rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def said(self, rank: int) -> str:
        """Return what a rank with a log of its own has printed."""
        return Path(str(self.log).format(rank=rank)).read_text()

    def statuses(self) -> list[int]:
        """Wait for all ranks; return their exit statuses, minus the number of the signal for a rank that one ended."""
        assert self.server.stdout is not None
        if self.exit_statuses is None:
            self.exit_statuses = json.loads(self.server.stdout.readline())
        assert self.exit_statuses is not None
        return self.exit_statuses

    def status(self) -> int:
        """Wait for the only rank and return its exit status."""
        (status,) = self.statuses()
        return status


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended between the opening and the reading
        return False


def wait_until(happened: Callable[[], bool], seconds: float, every: float = 0.002) -> bool:
    """Poll `happened()` so often; return False if it is not true within this many seconds."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True
