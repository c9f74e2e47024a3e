"""resume.pt and those before it: written in the background while the run goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..common import interrupts
from ..common.atomic_file import write_atomically
from .file_names import RESUME_NAME, remove_unnamed_parts, saved_paths
from .state_file import State, state_bytes


class Abandoned(Exception):
    """The run ends before a state is written; the one before stands."""


class Saver:
    """Saves a run's state when it is due, one at a time, by a thread.

    every: communication rounds between saves, 0 for none; None: after each evaluation, or by `minutes` alone
    minutes: also save when so many have passed        keep: states on the disk
    sync: brings to the disk what the run has written elsewhere, so that no state is ahead of it
    What goes wrong in the thread is raised by the next call.
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
        """A round ended; `snapshot` is called if its state is to be saved."""
        self._due |= self._by_rounds(comm_round, evaluated)
        self.after_chunk(snapshot)

    def after_chunk(self, snapshot: Callable[[], State]) -> None:
        """A chunk of clients ended within a round: save what is due by the clock, or could not be saved before."""
        self._raise_error()
        self._due |= self._by_clock()
        if self.enabled and self._due and not self._writing():
            self._start(snapshot())

    def asked(self) -> int:
        """The number of the last save that all ranks are to begin; one rank has nobody to agree with."""
        return 0

    def catch_up(self, number: int, snapshot: Callable[[], State]) -> None:
        """Begin the save of that number, which another rank has asked for, unless it began here before."""

    def finish(self, state: State) -> None:
        """Save `state` and wait until it is on the disk.

        Raises KeyboardInterrupt where `interrupts.grace_period` no longer waits; then the last save stands.
        """
        if self.enabled:
            self.wait()
            self._start(state)
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written."""
        try:
            while self._writing():
                interrupts.check_signals()
                self._join(0.02)
        except KeyboardInterrupt:
            self._abandon.set()
            raise
        self._raise_error()

    def close(self) -> None:
        """The run ends, in whatever way: leave no thread behind, and raise nothing."""
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
        """Make `state` the resume.pt, and the one before the resume.1.pt."""
        self._sync()
        write_atomically(self._directory / RESUME_NAME, lambda file: self._copy(state, file), first=self._rotate)
        remove_unnamed_parts(self._directory)

    def _copy(self, state: State, file: BinaryIO) -> None:
        for block in state_bytes(state):
            if self._abandon.is_set():
                raise Abandoned
            file.write(block)

    def _rotate(self) -> None:
        """Make place for a new resume.pt, the old one becoming resume.1.pt."""
        there = saved_paths(self._directory)
        for number in reversed(range(len(there))):
            if number + 1 < self._keep:
                os.replace(there[number], self._directory / f"resume.{number + 1}.pt")
            elif there[number].name != RESUME_NAME:  # which is replaced, so that there is one at every moment
                there[number].unlink()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
