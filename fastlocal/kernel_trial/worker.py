"""A process that imports torch once and forks another one for each job, which may crash or hang.

    python -m fastlocal.kernel_trial.worker

Each line of its standard input is a job. What the job says goes to standard output as it comes, one JSON object a
line, and then {"ended": None}, or how it ended: "a time limit of 60 s", or the name of a signal. It never touches a
CUDA device itself, as a process that has cannot be forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

from . import jobs

_children: list[int] = []


def main() -> int:
    """Serve jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything prints besides must not be taken for an answer
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for text in sys.stdin:
        values = json.loads(text)
        values["ops"] = tuple(values["ops"])
        _serve(jobs.Job(**values), answers)
    return 0


def _serve(job: jobs.Job, answers: Any) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(job, writing)
    os.close(writing)
    _children.append(child)
    ended = _relay(reading, job.seconds, answers)
    os.close(reading)
    if ended is not None:
        _kill(child)
    status = _status(child)
    _children.remove(child)
    if ended is None and status:
        ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    print(json.dumps({"ended": ended}), file=answers, flush=True)


def _work(job: jobs.Job, writing: int) -> NoReturn:
    """What the forked process does."""
    status = 1
    try:
        os.setpgid(0, 0)  # so that compilers that it started end with it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(writing, "w") as pipe:
            jobs.run(job, lambda said: print(json.dumps(said), file=pipe, flush=True))
        status = 0
    except BaseException as error:
        print(jobs.line(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _relay(reading: int, seconds: float, answers: Any) -> str | None:
    """Pass on what the child says, until it has ended; why it is to be ended, or None."""
    rest, deadline = b"", time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return f"a time limit of {seconds:g} s"
        ready = select.select([reading, 0], [], [], left)[0]
        if 0 in ready:  # nothing is asked meanwhile: whoever asks is gone
            _end(signal.SIGTERM, None)
        if not ready:
            continue
        some = os.read(reading, 65536)
        if not some:
            return None
        *lines, rest = (rest + some).split(b"\n")
        for said in lines:
            print(said.decode(), file=answers, flush=True)
            deadline = time.monotonic() + seconds


def _status(child: int) -> int:
    """A child's exit status, without waiting longer than some seconds for one that a device holds."""
    for _ in range(100):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    _kill(child)
    return -signal.SIGKILL


def _kill(child: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(child, signal.SIGKILL)


def _end(number: int, frame: FrameType | None) -> None:
    for child in _children:
        _kill(child)
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
