"""Short texts that ranks leave for each other in a store, and who has not left one."""

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
"""Between two looks whether processes of this machine are still there."""
LONGEST_SLEEP_S = 0.005


@dataclass(frozen=True)
class Peer:
    """A rank's process.

    machine: what processes that see each other's numbers have in common        host: for a person
    started: of the process, so that another that was given its number later is not taken for it
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

    def is_gone(self) -> bool:
        """Whether it ran on this machine and does no longer; False where that cannot be told."""
        if not Path("/proc/self/stat").exists() or self.machine != Peer.this().machine:
            return False
        state, started = _state(self.pid)
        return state in ("", "Z", "X") or started != self.started


class Channel:
    """One connection to a run's store, for one thread at a time.

    store: whose keys are this run's alone        timeout: seconds that `wait` waits
    missing: who of a set of keys has not come, for a person, or None while nobody is known to be gone
    """

    def __init__(self, store: Store, timeout: float, missing: Callable[[Sequence[str], bool], str | None]) -> None:
        self._store, self._timeout, self._missing = store, timeout, missing

    def set(self, key: str, value: str) -> None:
        """Let every rank read `value`."""
        self._guarded(lambda: self._store.set(key, value))

    def get(self, key: str) -> str | None:
        """What was posted, None where nothing was yet."""
        return self._guarded(lambda: self._store.get(key).decode() if self._store.check([key]) else None)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove what nobody is going to read any more."""
        self._guarded(lambda: [self._store.delete_key(key) for key in keys])

    def wait(self, keys: Sequence[str], what: str) -> list[str]:
        """What was posted under each of `keys`, when all are there.

        what: for a person, what is waited for
        Raises RankMissing after `timeout` seconds, and earlier where a process of this machine is seen to be gone.
        """
        began = looked = time.monotonic()
        sleep, wanted = 2e-5, list(keys)
        while wanted:
            wanted = self._absent(wanted)
            now = time.monotonic()
            late = now - began > self._timeout
            if wanted and (late or now - looked > LOOK_S):
                looked = now
                missing = self._missing([key for key in wanted if self._absent([key])], late)
                if missing is not None:
                    raise RankMissing(f"{missing}, waited for at {what}")
            if wanted:
                time.sleep(sleep)
                sleep = min(1.5 * sleep, LONGEST_SLEEP_S)
        return self._guarded(lambda: [value.decode() for value in self._store.multi_get(list(keys))])

    def _absent(self, keys: list[str]) -> list[str]:
        """The first of `keys` that is not there and all after it; nearly all waiting is for one."""
        for place, key in enumerate(keys):
            if not self._is_there(key):
                return keys[place:]
        return []

    def _is_there(self, key: str) -> bool:
        return self._guarded(lambda: self._store.check([key]))

    def _guarded(self, operation: Callable[[], T]) -> T:
        try:
            return operation()
        except DistError as error:
            why = str(error).splitlines()[0][:120]
            raise RankMissing(f"the store that ranks meet at is gone, with rank 0 or its launcher ({why})") from error


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
    """State letter and time of start of a process, empty where there is none."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")
