"""Lock of a run directory; it ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import UsageError

LOCK_NAME = ".lock"

_own_locks: set[str] = set()
"""Directories that this process has locked; the system's lock does not exclude its own process."""


@contextlib.contextmanager
def hold_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of an existing directory during the block.

    The lock belongs to the process alone, and ends with it even if its child processes live on.

    Raises:
        UsageError: Another run holds the lock; the message names its process.
    """
    key = os.path.realpath(directory)
    if key in _own_locks:
        raise _refusal(directory, f"process {os.getpid()}, this one")
    file = _acquire(directory)
    _own_locks.add(key)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        _own_locks.discard(key)
        (directory / LOCK_NAME).unlink(missing_ok=True)
        os.close(file)


def refuse_locked(directory: Path) -> None:
    """Raise UsageError if another run holds the lock of `directory`; changes nothing."""
    key = os.path.realpath(directory)
    if key in _own_locks:
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
        os.close(file)  # the previous holder has removed this file, so that its lock is void


def _try(directory: Path, file: int) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _refusal(directory, os.pread(file, 200, 0).decode(errors="replace") or "another process") from None


def _refusal(directory: Path, holder: str) -> UsageError:
    return UsageError(f"--log-pth {directory}: another run is writing there ({holder}); wait for it or stop it")
