"""One writer for a run directory: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import UsageError

LOCK_NAME = ".lock"

_held: set[str] = set()
"""Directories of this process, which the system's lock does not keep apart."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of `directory`, which exists.

    It is the process's own, so that it is gone the moment the process is, though processes that it started may live on.
    Raises UsageError that names the process that holds it.
    """
    key = os.path.realpath(directory)
    if key in _held:
        raise _refusal(directory, f"process {os.getpid()}, this one")
    file = _acquire(directory)
    _held.add(key)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        _held.discard(key)
        (directory / LOCK_NAME).unlink(missing_ok=True)
        os.close(file)


def refuse_locked(directory: Path) -> None:
    """Raise UsageError where another run holds the lock of `directory`; changes nothing."""
    key = os.path.realpath(directory)
    if key in _held:
        raise _refusal(directory, f"process {os.getpid()}, this one")
    with contextlib.suppress(FileNotFoundError):
        file = os.open(directory / LOCK_NAME, os.O_RDWR)
        try:
            _try(directory, file)
        finally:
            os.close(file)


def _acquire(directory: Path) -> int:
    path = directory / LOCK_NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _try(directory, file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder removed it as it ended: what we have locked is no longer there


def _try(directory: Path, file: int) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _refusal(directory, os.pread(file, 200, 0).decode(errors="replace") or "another process") from None


def _refusal(directory: Path, holder: str) -> UsageError:
    return UsageError(f"--log-pth {directory}: another run is writing there ({holder}); wait for it or stop it")
