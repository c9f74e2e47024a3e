"""Saving by several ranks: each writes its part, and the first names all of them in resume.pt when they are there."""

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
from .resharding import entry, split
from .saver import Abandoned, Saver
from .state_file import State, stored_digest

LOOK_S = 0.5
"""Between two looks whether the first rank has asked for a save."""


class SharedSaver(Saver):
    """A Saver on every rank of a world, for the state of all of them.

    Saves are numbered, and every rank begins each of them, all within one round. After rounds and evaluations they
    know by themselves which is due. By the clock the first rank decides, when it has ended a chunk or where the ranks
    meet before they average: there `asked` and `catch_up` make those begin that did not see it after a chunk of theirs.
    A save that is due while the one before is still written waits for it, as ranks would else disagree.
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
        self._world, self._asking, self._telling = world, world.channel(), world.channel()
        last = world.rank == 0 and last_save(directory)
        self._number = self._asked = world.all_gather_object(last, "the first save")[0]
        self._looked = 0.0
        self._given_up = False

    def after_round(self, comm_round: int, evaluated: bool, snapshot: Callable[[], State]) -> None:
        self._raise_error()
        if self.enabled and self._by_rounds(comm_round, evaluated):
            self._begin(snapshot)

    def after_chunk(self, snapshot: Callable[[], State]) -> None:
        self._raise_error()
        self.catch_up(self.asked(), snapshot)

    def asked(self) -> int:
        self._asked = max(self._asked, self._number)
        if self._asked == self._number and self.enabled and self._minutes is not None:
            key = f"save {self._number + 1}/asked"
            if self._world.rank == 0:
                if self._by_clock() and not self._writing():
                    self._asking.set(key, "")
                    self._asked += 1
            elif time.monotonic() - self._looked >= LOOK_S:
                self._looked = time.monotonic()
                self._asked += self._asking.get(key) is not None
        return self._asked

    def catch_up(self, number: int, snapshot: Callable[[], State]) -> None:
        if number > self._number:
            self._begin(snapshot)

    def finish(self, state: State) -> None:
        """As a Saver's; where one rank gives up, or is interrupted when it can no longer, all raise.

        The ranks call it where they have met, so that all are at the same save.
        """
        if self.enabled:
            self._begin(lambda: state)
            interrupted = False
            try:
                self.wait()
            except KeyboardInterrupt:
                interrupted = True
            told = self._world.all_gather_object(interrupted or self._given_up, "the end of the last save")
            if any(told):
                raise KeyboardInterrupt

    def _begin(self, snapshot: Callable[[], State]) -> None:
        self._join(None)  # interrupted here, this rank alone would leave the others waiting
        self._raise_error()
        self._number += 1
        self._start(snapshot())

    def _write(self, state: State) -> None:
        number = self._number
        shared, own = split(state)
        told: dict[str, Any]
        try:
            name = part_name(number, self._world.rank)
            path = self._directory / name
            write_atomically(path, lambda file: self._copy(own, file))
            told = {"part": entry(own, name, stored_digest(path))}
        except BaseException as error:
            told = self._told(error)
        try:
            self._telling.set(f"save {number} part/{self._world.rank}", json.dumps(told))
            outcome = self._conclude(number, shared) if self._world.rank == 0 else self._outcome(number)
            self._given_up = "given up" in outcome
            if "error" in outcome and self._error is None:
                rank, code, text = outcome["error"]
                self._error = OSError(code, text if rank == self._world.rank else f"{text} on rank {rank}")
        except BaseException as error:
            self._error = self._error or error

    def _told(self, error: BaseException) -> dict[str, Any]:
        """What the other ranks get to know of an error; here it is raised as it is."""
        if isinstance(error, Abandoned):
            return {"given up": True}
        self._error = error
        code, text = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
        return {"error": [self._world.rank, code or errno.EIO, text or f"{type(error).__name__}: {error}"]}

    def _conclude(self, number: int, shared: State) -> dict[str, Any]:
        """Name all parts in resume.pt, or say what went wrong."""
        keys = [f"save {number} part/{rank}" for rank in range(self._world.size)]
        told = [json.loads(text) for text in self._telling.wait(keys, "a save")]
        outcome = next((one for kind in ("error", "given up") for one in told if kind in one), None)
        if outcome is None:
            named = State(shared.metadata | {"parts": [one["part"] for one in told]}, shared.tensors)
            outcome = {"saved": True}
            try:
                assert len({one["part"]["trained"] for one in told}) == 1, "ranks save in different rounds"
                self._write_newest(named)
            except BaseException as error:
                outcome = self._told(error)
        self._telling.set(f"save {number} outcome/0", json.dumps(outcome))
        before = number - 1  # whose end every rank has seen that began this one
        kinds = [f"part/{rank}" for rank in range(self._world.size)]
        self._telling.delete([f"save {before} outcome/0", *(f"save {before} {kind}" for kind in kinds)])
        self._telling.delete([f"save {number}/asked"])
        return outcome

    def _outcome(self, number: int) -> dict[str, Any]:
        outcome: dict[str, Any] = json.loads(self._telling.wait([f"save {number} outcome/0"], "a save")[0])
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
    """What saves the state of a run of so many ranks; arguments as those of Saver."""
    if world.size == 1:
        return Saver(directory, every=every, minutes=minutes, keep=keep, sync=sync)
    return SharedSaver(directory, every=every, minutes=minutes, keep=keep, sync=sync, world=world)
