"""fastlocal's command line in processes that are forked from one that has imported everything: 20 ms to start, not 4 s.

The first process imports and runs nothing else, so that a forked one is as a fresh one would be.
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
import json, os, signal, sys
import torch
import fastlocal.commands.train, fastlocal.runs.from_config, fastlocal.runs.run
import fastlocal.telemetry.console, fastlocal.telemetry.loggers, fastlocal.distributed.world
import torch.fx.experimental.symbolic_shapes, tyro
from fastlocal.cli import main
for line in sys.stdin:
    words, log, ranks = json.loads(line)
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    processes = []
    for variables in ranks:
        process = os.fork()
        if process == 0:
            file = os.open(log, os.O_WRONLY | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(variables)
            sys.argv[1:] = words
            sys.exit(main())
        processes.append(process)
    print(json.dumps(processes), flush=True)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]), flush=True)
"""


@dataclass
class Forks:
    """Forks one run at a time; a context manager. A run that goes on when the next one starts is killed."""

    last: Fork | None = None

    def __enter__(self) -> Forks:
        self.first = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._end_last()
        # the end of its input would not reach it as long as another process that was forked here holds the pipe
        self.first.kill()
        self.first.communicate()

    def start(self, words: Sequence[object], log: Path, ranks: int = 1) -> Fork:
        """`fastlocal WORDS...` as so many processes, what they print going to the file `log`."""
        assert self.first.stdin is not None and self.first.stdout is not None
        self._end_last()
        told = [[str(word) for word in words], str(log), _variables(ranks)]
        self.first.stdin.write(json.dumps(told) + "\n")
        self.first.stdin.flush()
        self.last = Fork(json.loads(self.first.stdout.readline()), self.first, log)
        return self.last

    def _end_last(self) -> None:
        if self.last is not None and self.last.ended is None:
            self.last.send(signal.SIGKILL)
            self.last.statuses()


def _variables(ranks: int) -> list[dict[str, str]]:
    """What each rank's environment says of where the others are."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@dataclass
class Fork:
    """A running run: one process a rank."""

    pids: list[int]
    first: subprocess.Popen[str]
    log: Path
    ended: list[int] | None = None

    @property
    def pid(self) -> int:
        """Of the first rank."""
        return self.pids[0]

    def running(self, ranks: Sequence[int] | None = None) -> bool:
        """Whether one of these ranks, None for all, has not ended.

        One that has stays a zombie, which /proc tells, until it is waited for.
        """
        return any(_runs(pid) for rank, pid in enumerate(self.pids) if ranks is None or rank in ranks)

    def send(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """A signal to these ranks, None for all, unless they have ended."""
        for rank, pid in enumerate(self.pids):
            if ranks is None or rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def statuses(self) -> list[int]:
        """The exit status of each rank once all have ended, minus the number of the signal that ended it."""
        assert self.first.stdout is not None
        if self.ended is None:
            self.ended = json.loads(self.first.stdout.readline())
        assert self.ended is not None
        return self.ended

    def status(self) -> int:
        """That of the only process."""
        (status,) = self.statuses()
        return status


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between the opening and the reading
        return False


def wait_until(happened: Callable[[], bool], seconds: float) -> bool:
    """Whether `happened()` came true within so many seconds, asked as often as goes."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.0002)
    return True
