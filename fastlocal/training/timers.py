"""How much of the time local steps wait for their data, and ranks for each other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..distributed.world import World

INPUT_BOUND = 0.1
EVENTS = 64
"""Pairs of events that are kept at most before their times are read."""


@dataclass
class Waiting:
    """Seconds since the last evaluation.

    steps: that local steps took        data: that went by without a batch there
    ranks: between this rank's last step of a round and that of the slowest        average: that averaging took
    """

    steps: float = 0.0
    data: float = 0.0
    ranks: float = 0.0
    average: float = 0.0
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    def trained(self, steps: float, data: float) -> None:
        """One round's local steps."""
        self.steps += steps
        self.data += data

    def met(self, seconds: float) -> None:
        """One round's wait for the other ranks."""
        self.ranks += seconds

    @contextlib.contextmanager
    def averaging(self, device: torch.device) -> Iterator[None]:
        """One round's averaging, which a GPU does later than it is told to: its own clock is asked."""
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

    def take(self, world: World) -> Iterator[str]:
        """Lines for a person; starts afresh. The one on data where it was more than INPUT_BOUND of the time."""
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
