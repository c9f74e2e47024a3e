"""Shares of the time spent waiting for data, waiting for other ranks, and averaging."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..distributed.world import World

INPUT_BOUND = 0.1
"""Share of data waits from which a log line reports them."""
EVENTS = 64
"""Maximum number of event pairs whose times are not read yet."""


@dataclass
class Timers:
    """Seconds since the last evaluation.

    Attributes:
        steps: Local steps, including waits for data.
        data: Waits for the next batch.
        ranks: Waits for the slowest rank at the end of a round.
        average: Averaging.
    """

    steps: float = 0.0
    data: float = 0.0
    ranks: float = 0.0
    average: float = 0.0
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def add_steps(self, steps: float, data: float) -> None:
        """Add the local steps of one round and their waits for data."""
        self.steps += steps
        self.data += data

    def add_rank_wait(self, seconds: float) -> None:
        """Add one round's wait for the other ranks."""
        self.ranks += seconds

    @contextlib.contextmanager
    def time_average(self, device: torch.device) -> Iterator[None]:
        """Time one round's averaging, on a GPU by events, because the host runs ahead of it."""
        if device.type != "cuda":
            began = time.perf_counter()
            yield
            self.average += time.perf_counter() - began
            return
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record(torch.cuda.current_stream(device))
        yield
        end.record(torch.cuda.current_stream(device))
        self._events.append((begin, end))
        if len(self._events) >= EVENTS:
            self._read_events()

    def _read_events(self) -> None:
        for begin, end in self._events:
            end.synchronize()
            self.average += begin.elapsed_time(end) / 1e3
        self._events.clear()

    def pop_messages(self, world: World) -> Iterator[str]:
        """Yield log lines and reset the timers; waits for data appear only above INPUT_BOUND."""
        self._read_events()
        share = min(1.0, self.data / self.steps) if self.steps else 0.0
        if share > INPUT_BOUND:
            cure = "more workers: --nw; further ahead: --prefetch"
            yield f"input-bound: {share:.0%} of the step waiting for data ({cure})"
        total = self.steps + self.ranks + self.average
        if world.size > 1 and world.is_rank0 and total:
            waiting, averaging = self.ranks / total, self.average / total
            yield f"this rank: {waiting:.1%} of the time waiting for the others, {averaging:.1%} averaging"
        self.steps = self.data = self.ranks = self.average = 0.0
