"""fastlocal's command line in processes that are forked from one that has imported everything: 20 ms to start, not 4 s.

The first process imports and runs nothing else, so that a forked one is as a fresh one would be.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """
import json, os, signal, sys
import torch
import fastlocal.commands.train, fastlocal.named, fastlocal.run, fastlocal.telemetry.console, fastlocal.telemetry.sinks
from fastlocal.cli import main
for line in sys.stdin:
    words, log = json.loads(line)
    process = os.fork()
    if process == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv[1:] = words
        sys.exit(main())
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@dataclass
class Forks:
    """Forks one process at a time; a context manager."""

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
        assert self.first.stdin is not None
        self.first.stdin.close()
        self.first.wait(timeout=60)

    def start(self, words: Sequence[object], log: Path) -> Fork:
        """`fastlocal WORDS...`, what it prints going to the file `log`."""
        assert self.first.stdin is not None and self.first.stdout is not None
        self.first.stdin.write(json.dumps([[str(word) for word in words], str(log)]) + "\n")
        self.first.stdin.flush()
        return Fork(int(self.first.stdout.readline()), self.first, log)


@dataclass
class Fork:
    """A running process."""

    pid: int
    first: subprocess.Popen[str]
    log: Path

    def running(self) -> bool:
        """Whether it has not ended; one that has stays a zombie, which /proc tells, only until it is waited for."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def send(self, number: int) -> None:
        """A signal, unless it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def status(self) -> int:
        """Its exit status once it has ended, minus the number of the signal that ended it."""
        assert self.first.stdout is not None
        return int(self.first.stdout.readline())


def wait_until(happened: Callable[[], bool], seconds: float) -> bool:
    """Whether `happened()` came true within so many seconds, asked as often as goes."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.0002)
    return True
