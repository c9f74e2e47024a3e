"""Saves by several ranks: each rank writes its part, and rank 0 then lists all parts in resume.pt."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..common.atomic_file import write_atomically
from ..distributed.world import World
from .file_names import last_save, part_name
from .resharding import part_entry, split
from .saver import Abandoned, Saver
from .state_file import State, stored_digest

LOOK_S = 0.5
"""Interval at which a rank asks the store whether rank 0 has requested a save."""


class DistributedSaver(Saver):
    """A Saver on every rank, for the state of all ranks.

    Saves are numbered; every rank begins each of them, within the same round. After rounds and evaluations each rank
    computes by itself whether a save is due. By the clock rank 0 decides, at the end of a chunk or at the exchange
    before averaging; there `requested_save` and `catch_up` start the save on ranks that missed it after their chunks. A
    save that is due during the previous one waits for its end; otherwise the ranks would disagree.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every: int | None,
        minutes: float | None,
        keep: int,
        sync: Callable[[], None],
        world: World,
    ) -> None:
        super().__init__(directory, every=every, minutes=minutes, keep=keep, sync=sync)
        self._world, self._requests, self._results = world, world.store_client(), world.store_client()
        last = world.rank == 0 and last_save(directory)
        self._number = self._requested = world.all_gather_object(last, "the first save")[0]
        self._looked = 0.0
        self._abandoned = False

    def after_round(self, comm_round: int, evaluated: bool, snapshot: Callable[[], State]) -> None:
        self._raise_error()
        if self.enabled and self._by_rounds(comm_round, evaluated):
            self._begin(snapshot)

    def after_chunk(self, snapshot: Callable[[], State]) -> None:
        self._raise_error()
        self.catch_up(self.requested_save(), snapshot)

    def requested_save(self) -> int:
        self._requested = max(self._requested, self._number)
        if self._requested == self._number and self.enabled and self._minutes is not None:
            key = f"save {self._number + 1}/requested"
            if self._world.rank == 0:
                if self._by_clock() and not self._writing():
                    self._requests.set(key, "")
                    self._requested += 1
            elif time.monotonic() - self._looked >= LOOK_S:
                self._looked = time.monotonic()
                self._requested += self._requests.get(key) is not None
        return self._requested

    def catch_up(self, number: int, snapshot: Callable[[], State]) -> None:
        if number > self._number:
            self._begin(snapshot)

    def finish(self, state: State) -> None:
        """See Saver.finish. If one rank abandons the save, or a late signal interrupts it, all ranks raise.

        All ranks call this after the same exchange, and so at the same save.
        """
        if self.enabled:
            self._begin(lambda: state)
            interrupted = False
            try:
                self.wait()
            except KeyboardInterrupt:
                interrupted = True
            failed = self._world.all_gather_object(interrupted or self._abandoned, "the end of the last save")
            if any(failed):
                raise KeyboardInterrupt

    def _begin(self, snapshot: Callable[[], State]) -> None:
        self._join(None)  # not interruptible: the other ranks would wait for this one
        self._raise_error()
        self._number += 1
        self._start(snapshot())

    def _write(self, state: State) -> None:
        number = self._number
        shared, own = split(state)
        result: dict[str, Any]
        try:
            self._sync()
            name = part_name(number, self._world.rank)
            path = self._directory / name
            write_atomically(path, lambda file: self._copy(own, file))
            result = {"part": part_entry(own, name, stored_digest(path))}
        except BaseException as error:
            result = self._error_result(error)
        try:
            self._results.set(f"save {number} part/{self._world.rank}", json.dumps(result))
            outcome = self._conclude(number, shared) if self._world.rank == 0 else self._outcome(number)
            self._abandoned = "abandoned" in outcome
            if "error" in outcome and self._error is None:
                rank, code, text = outcome["error"]
                self._error = OSError(code, text if rank == self._world.rank else f"{text} on rank {rank}")
        except BaseException as error:
            self._error = self._error or error

    def _error_result(self, error: BaseException) -> dict[str, Any]:
        """Return an error as JSON for the other ranks, and keep it to be raised on this one."""
        if isinstance(error, Abandoned):
            return {"abandoned": True}
        self._error = error
        code, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        return {"error": [self._world.rank, code or errno.EIO, text or f"{type(error).__name__}: {error}"]}

    def _conclude(self, number: int, shared: State) -> dict[str, Any]:
        """List all parts in resume.pt, and return the outcome for all ranks."""
        keys = [f"save {number} part/{rank}" for rank in range(self._world.size)]
        results = [json.loads(text) for text in self._results.wait(keys, "a save")]
        outcome = next((result for kind in ("error", "abandoned") for result in results if kind in result), None)
        if outcome is None:
            parts = [result["part"] for result in results]
            outcome = {"saved": True}
            try:
                moments = {(part["trained"], part.get("epoch")) for part in parts}
                assert len(moments) == 1, "ranks save in different rounds"
                self._write_newest(State(shared.metadata | {"parts": parts}, shared.tensors))
            except BaseException as error:
                outcome = self._error_result(error)
        self._results.set(f"save {number} outcome/0", json.dumps(outcome))
        before = number - 1  # every rank that began this save has read the outcome of the previous one
        kinds = [f"part/{rank}" for rank in range(self._world.size)]
        self._results.delete([f"save {before} outcome/0", *(f"save {before} {kind}" for kind in kinds)])
        self._results.delete([f"save {number}/requested"])
        return outcome

    def _outcome(self, number: int) -> dict[str, Any]:
        outcome: dict[str, Any] = json.loads(self._results.wait([f"save {number} outcome/0"], "a save")[0])
        return outcome


def make_saver(
    directory: Path,
    *,
    every: int | None,
    minutes: float | None,
    keep: int,
    sync: Callable[[], None],
    world: World,
) -> Saver:
    """Return the saver of a run; the arguments are those of Saver."""
    if world.size == 1:
        return Saver(directory, every=every, minutes=minutes, keep=keep, sync=sync)
    return DistributedSaver(directory, every=every, minutes=minutes, keep=keep, sync=sync, world=world)
