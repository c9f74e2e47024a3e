"""Key-value store of short texts that all ranks share, and the processes that use it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch._C._distributed_c10d import Store
from torch.distributed import DistError

from ..common.errors import RankMissing

T = TypeVar("T")
LOOK_S = 0.5
"""Interval between checks that the processes of this machine still run."""
MAX_SLEEP_S = 0.005


@dataclass(frozen=True)
class Peer:
    """Process of a rank.

    Attributes:
        machine: Identifies the process namespace: host, boot and PID namespace.
        host: Host name, for messages.
        pid: Process id.
        started: Start time, which tells the process from a later one with the same id.
    """

    machine: str
    host: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Peer:
        """This process."""
        machine = platform.node() + _read("/proc/sys/kernel/random/boot_id") + _link("/proc/self/ns/pid")
        return cls(machine, platform.node(), os.getpid(), _state(os.getpid())[1])

    def has_ended(self) -> bool:
        """Return True if the process ran on this machine and has ended; False if that is unknown."""
        if not Path("/proc/self/stat").exists() or self.machine != Peer.this().machine:
            return False
        state, started = _state(self.pid)
        return state in ("", "Z", "X") or started != self.started


class StoreClient:
    """Connection to the run's store; only one thread may use it.

    Args:
        store: Its keys belong to this run alone.
        timeout: Seconds that `wait` waits.
        missing: Called with keys that are absent and whether the time is over; returns a text that names the missing
            ranks, or None if none is known to be missing.
    """

    def __init__(self, store: Store, timeout: float, missing: Callable[[Sequence[str], bool], str | None]) -> None:
        self._store, self._timeout, self._missing = store, timeout, missing

    def set(self, key: str, value: str) -> None:
        """Store `value` under `key`."""
        self._call(lambda: self._store.set(key, value))

    def get(self, key: str) -> str | None:
        """Return the value of `key`, or None if it is absent."""
        return self._call(lambda: self._store.get(key).decode() if self._store.check([key]) else None)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys that no rank will read again."""
        self._call(lambda: [self._store.delete_key(key) for key in keys])

    def wait(self, keys: Sequence[str], what: str) -> list[str]:
        """Wait for all `keys` and return their values.

        Args:
            keys: Keys that other ranks set.
            what: Name of this exchange, for the message.

        Raises:
            RankMissing: After the timeout, or as soon as a process of this machine is known to have ended.
        """
        began = looked = time.monotonic()
        sleep, absent = 2e-5, list(keys)
        while absent:
            absent = self._absent(absent)
            now = time.monotonic()
            late = now - began > self._timeout
            if absent and (late or now - looked > LOOK_S):
                looked = now
                missing = self._missing([key for key in absent if self._absent([key])], late)
                if missing is not None:
                    raise RankMissing(f"{missing}, waited for at {what}")
            if absent:
                time.sleep(sleep)
                sleep = min(1.5 * sleep, MAX_SLEEP_S)
        return self._call(lambda: [value.decode() for value in self._store.multi_get(list(keys))])

    def _absent(self, keys: list[str]) -> list[str]:
        """Return `keys` from the first absent one on; most waits are for a single key."""
        for place, key in enumerate(keys):
            if not self._is_there(key):
                return keys[place:]
        return []

    def _is_there(self, key: str) -> bool:
        return self._call(lambda: self._store.check([key]))

    def _call(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except DistError as error:
            reason = str(error).splitlines()[0][:120]
            raise RankMissing(
                f"the store that ranks meet at is gone, with rank 0 or its launcher ({reason})"
            ) from error


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, str]:
    """Return state letter and start time of a process, or two empty strings if there is none."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")
