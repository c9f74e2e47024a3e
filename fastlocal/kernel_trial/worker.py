"""Server process that imports torch once and forks a child for each job, which may crash or hang.

    python -m fastlocal.kernel_trial.worker

Each line of standard input is a job. The job's messages go to standard output, one JSON object a line, and then
{"ended": None} or the reason of its end: "a time limit of 60 s", or the name of a signal. The server never initializes
CUDA, because a process that has cannot be forked.
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
    os.dup2(2, 1)  # other output must not be taken for an answer
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for text in sys.stdin:
        values = json.loads(text)
        values["ops"] = tuple(values["ops"])
        _serve(jobs.Job(**values), answers)
    return 0


def _serve(job: jobs.Job, answers: Any) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _work(job, write_end)
    os.close(write_end)
    _children.append(child)
    ended = _relay(read_end, job.seconds, answers)
    os.close(read_end)
    if ended is not None:
        _kill(child)
    status = _status(child)
    _children.remove(child)
    if ended is None and status:
        ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    print(json.dumps({"ended": ended}), file=answers, flush=True)


def _work(job: jobs.Job, write_end: int) -> NoReturn:
    """Run a job in the forked process."""
    status = 1
    try:
        os.setpgid(0, 0)  # its compilers end with it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(write_end, "w") as pipe:
            jobs.run(job, lambda message: print(json.dumps(message), file=pipe, flush=True))
        status = 0
    except BaseException as error:
        print(jobs.line(error), file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _relay(read_end: int, seconds: float, answers: Any) -> str | None:
    """Pass on the child's messages until it ends; return the reason to kill it, or None."""
    rest, deadline = b"", time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return f"a time limit of {seconds:g} s"
        ready = select.select([read_end, 0], [], [], left)[0]
        if 0 in ready:  # no job is due meanwhile: the input has ended, and the client with it
            _end(signal.SIGTERM, None)
        if not ready:
            continue
        data = os.read(read_end, 65536)
        if not data:
            return None
        *lines, rest = (rest + data).split(b"\n")
        for message in lines:
            print(message.decode(), file=answers, flush=True)
            deadline = time.monotonic() + seconds


def _status(child: int) -> int:
    """Return a child's exit status; after a few seconds, kill a child that a device blocks."""
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
