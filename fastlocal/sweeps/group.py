"""Train the runs of one program as replicas: groups of rows of one stack."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from ..distributed.world import World
from ..runs.build import PreparedRun
from ..runs.population import PARTITION_FILE
from ..runs.replicas import build_replica, can_replicate, replicas_at_once
from ..runs.run import OpenRun, open_run, unsaved_without_ranks
from ..telemetry.base import Logger
from ..telemetry.loggers import make_loggers
from ..training.driver import DrivenLoop, train_round
from .directory import ENDED, SweepDirectory
from .plan import SweepRun

ESTIMATE_AFTER_S = 60.0
"""Seconds after which the rest of a group's time is estimated."""


class Builder(Protocol):
    """Builds the runs of a sweep."""

    def build(self, run: SweepRun, *, stored_partition: Path | None, replicas: int) -> PreparedRun:
        """Build a run from its settings, with the executor that suits `replicas` runs like it."""
        ...

    def make_module(self, run: SweepRun, base: PreparedRun) -> Callable[[], nn.Module]:
        """Return what makes the plain module of a run with its start weights, on the data of `base`."""
        ...


class Watcher(Protocol):
    """Is told what happens in a sweep; on ranks other than 0 it shows nothing."""

    def logger(self, run: SweepRun) -> Logger:
        """Return a logger of a run that starts."""
        ...

    def ended(self, run: SweepRun) -> None:
        """Called when a run has ended, or waits for the others."""
        ...

    def message(self, text: str) -> None:
        """Show one line to the user."""
        ...


@dataclass
class LiveRun:
    """A run in training.

    Attributes:
        run: The run.
        opened: Its open directory and its loop.
        driven: Its loop on its way.
        resources: Closes them.
    """

    run: SweepRun
    opened: OpenRun
    driven: DrivenLoop
    resources: ExitStack


class Group:
    """Runs with equal program_key, in training; to be closed.

    Attributes:
        base: The first run, whose data and program the others share.
        at_once: Number of runs that train at once.
    """

    def __init__(
        self,
        runs: Sequence[SweepRun],
        builder: Builder,
        directory: SweepDirectory,
        world: World,
        watcher: Watcher,
        *,
        resume: bool,
        overwrite: bool,
    ) -> None:
        """Build the first run.

        Args:
            runs: The runs; those that have ended are left out.
            builder: Builds them.
            directory: Directory of the sweep.
            world: The processes.
            watcher: Is told what happens.
            resume: Whether runs go on from the state in their directories.
            overwrite: Whether runs start afresh in directories that hold runs.
        """
        self.runs = [run for run in runs if directory.states[run.name].status not in ENDED]
        self._builder, self._directory, self._world, self._watcher = builder, directory, world, watcher
        self._resume, self._overwrite = resume, overwrite
        self._started: set[str] = set()
        self._active: list[LiveRun] = []
        self._resources = ExitStack()
        self.base = self._build(self.runs[0], len(self.runs))
        self.at_once = replicas_at_once(self.base, len(self.runs))
        self._began, self._samples, self._estimated = time.monotonic(), 0, False

    def close(self) -> None:
        """Close the runs that still train, and what they share."""
        for live in self._active:
            live.resources.close()
        self._active.clear()
        self._resources.close()

    def train(self, names: Collection[str], until: int | None) -> None:
        """Train runs to their ends, or to the end of a round; then they are saved and closed.

        Args:
            names: Names of the runs.
            until: Number of the round, or None.

        Raises:
            KeyboardInterrupt: A signal came; the runs are saved.
        """
        waiting = deque(run for run in self.runs if run.name in names)
        with unsaved_without_ranks(self._world):
            try:
                while waiting or self._active:
                    while waiting and len(self._active) < self.at_once:
                        self._start(waiting.popleft())
                    for live in [*self._active]:
                        if live.driven.at is None or (until is not None and live.driven.loop.comm_round >= until):
                            self._end(live)
                    if waiting and len(self._active) < self.at_once:
                        continue  # a waiting run takes the rows of one that has ended
                    train_round([live.driven for live in self._active])
                    self._estimate()
            except KeyboardInterrupt:
                for live in self._active:
                    live.opened.interrupt()
                raise

    def _start(self, run: SweepRun) -> None:
        with ExitStack() as resources:
            prepared = self._prepare(run, resources)
            resume = self._resume or run.name in self._started
            loggers = self._loggers(run, prepared)
            opened = resources.enter_context(
                open_run(prepared, overwrite=self._overwrite and not resume, make_loggers=loggers, resume=resume)
            )
            self._started.add(run.name)
            if opened.complete:
                self._directory.set_status(run, "done")
                return
            self._directory.set_status(run, "running")
            driven = DrivenLoop(opened.loop, eval_on_start=opened.eval_on_start)
            self._active.append(LiveRun(run, opened, driven, resources.pop_all()))

    def _prepare(self, run: SweepRun, resources: ExitStack) -> PreparedRun:
        """Return the run as a replica of the base, or built on its own where that is not possible."""
        if run is self.runs[0]:
            return self.base
        if can_replicate(self.base):
            module = self._builder.make_module(run, self.base)
            replica = build_replica(self.base, run.config, module, self._stored_partition(run))
            if replica is not None:
                return replica
        return resources.enter_context(closing(self._build(run, 1)))

    def _build(self, run: SweepRun, replicas: int) -> PreparedRun:
        stored = self._stored_partition(run)
        prepared = self._builder.build(run, stored_partition=stored, replicas=replicas)
        if run is self.runs[0]:
            self._resources.enter_context(closing(prepared))
        return prepared

    def _stored_partition(self, run: SweepRun) -> Path | None:
        resume = self._resume or run.name in self._started
        return self._directory.path / run.name / PARTITION_FILE if resume else None

    def _loggers(self, run: SweepRun, prepared: PreparedRun) -> Callable[[Path], list[Logger]]:
        def make(directory: Path) -> list[Logger]:
            others = make_loggers(prepared.config.log, prepared.config.name, directory, console=False)
            return [self._watcher.logger(run), *others]

        return make

    def _end(self, live: LiveRun) -> None:
        """Close a run that has ended, or save one that waits for the others."""
        loop, error = live.driven.loop, live.driven.error
        if live.driven.at is not None:
            loop.save()
        live.resources.close()
        self._active.remove(live)
        self._samples += loop.cursor.samples
        if error is not None:
            self._directory.set_status(live.run, "failed", str(error))
        else:
            self._directory.set_status(live.run, "done" if live.driven.at is None else "waiting")
        self._watcher.ended(live.run)

    def _estimate(self) -> None:
        """Say once, after a minute, how long the group takes."""
        seconds = time.monotonic() - self._began
        if self._estimated or seconds < ESTIMATE_AFTER_S or not self._active:
            return
        self._estimated = True
        done = self._samples + sum(live.driven.loop.cursor.samples for live in self._active)
        each = self.base.progress.total_steps * self.base.config.client.total_batch_size
        left = max(0, len(self.runs) * each - done)
        if done:
            self._watcher.message(f"about {seconds * left / done / 60:.0f} minutes left for these runs")
