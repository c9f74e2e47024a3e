"""Saves of resume.pt and the states before it, in the background."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..common import interrupts
from ..common.atomic_file import write_atomically
from .file_names import RESUME_NAME, remove_old_journals, remove_unreferenced_parts, saved_paths
from .state_file import State, state_bytes


class Abandoned(Exception):
    """The run ends before a state is written; the previous state stands."""


class Saver:
    """Save a run's state when it is due, one save at a time, in a thread.

    An error in the thread is raised by the next call.

    Args:
        directory: Run directory.
        every: Communication rounds between saves, 0 for none; None: after each evaluation, or by `minutes` alone.
        minutes: Minutes between saves, or None.
        keep: States on the disk.
        sync: Flushes the run's other files to the disk, so that no state is ahead of them.
    """

    def __init__(
        self, directory: Path, *, every: int | None, minutes: float | None, keep: int, sync: Callable[[], None]
    ) -> None:
        self.enabled = every != 0
        self._directory, self._every, self._minutes, self._keep, self._sync = directory, every, minutes, keep, sync
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._abandon = threading.Event()
        self._due = False
        self._last = time.monotonic()

    def after_round(self, comm_round: int, evaluated: bool, snapshot: Callable[[], State]) -> None:
        """Save the state of `snapshot` after a round, if a save is due."""
        self._due |= self._by_rounds(comm_round, evaluated)
        self.after_chunk(snapshot)

    def after_chunk(self, snapshot: Callable[[], State]) -> None:
        """Save after a chunk of clients within a round: if due by the clock, or overdue."""
        self._raise_error()
        self._due |= self._by_clock()
        if self.enabled and self._due and not self._writing():
            self._start(snapshot())

    def requested_save(self) -> int:
        """Return the number of the last save that all ranks must begin; 0 for a single rank."""
        return 0

    def catch_up(self, number: int, snapshot: Callable[[], State]) -> None:
        """Begin the save of this number, which rank 0 requested, unless it has begun here."""

    def finish(self, state: State) -> None:
        """Save `state` and wait until it is on the disk.

        Raises:
            KeyboardInterrupt: `interrupts.grace_period` is over; the previous save stands.
        """
        if self.enabled:
            self.wait()
            self._start(state)
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        try:
            while self._writing():
                interrupts.check_signals()
                self._join(0.02)
        except KeyboardInterrupt:
            self._abandon.set()
            raise
        self._raise_error()

    def close(self) -> None:
        """Join the thread at the end of the run; raises nothing."""
        self._join(None)

    def _by_rounds(self, comm_round: int, evaluated: bool) -> bool:
        if self._every:
            return comm_round % self._every == 0
        return self._minutes is None and evaluated

    def _by_clock(self) -> bool:
        return self._minutes is not None and time.monotonic() - self._last >= 60 * self._minutes

    def _writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join(self, seconds: float | None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _start(self, state: State) -> None:
        self._due, self._last = False, time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(state,), name="saver", daemon=True)
        self._thread.start()

    def _write(self, state: State) -> None:
        try:
            self._write_newest(state)
        except Abandoned:
            pass
        except BaseException as error:
            self._error = error

    def _write_newest(self, state: State) -> None:
        """Write `state` as resume.pt; the previous one becomes resume.1.pt."""
        self._sync()
        write_atomically(self._directory / RESUME_NAME, lambda file: self._copy(state, file), first=self._rotate)
        remove_unreferenced_parts(self._directory)
        remove_old_journals(self._directory)

    def _copy(self, state: State, file: BinaryIO) -> None:
        for block in state_bytes(state):
            if self._abandon.is_set():
                raise Abandoned
            file.write(block)

    def _rotate(self) -> None:
        """Rename the old states to make place for a new resume.pt."""
        paths = saved_paths(self._directory)
        for number in reversed(range(len(paths))):
            if number + 1 < self._keep:
                os.replace(paths[number], self._directory / f"resume.{number + 1}.pt")
            elif paths[number].name != RESUME_NAME:  # resume.pt itself is replaced, so that it always exists
                paths[number].unlink()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
