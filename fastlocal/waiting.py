"""How much of the time local steps wait for their data, and ranks for each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .world import World

INPUT_BOUND = 0.1


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

    def trained(self, steps: float, data: float) -> None:
        """One round's local steps."""
        self.steps += steps
        self.data += data

    def met(self, seconds: float) -> None:
        """One round's wait for the other ranks."""
        self.ranks += seconds

    def averaged(self, seconds: float) -> None:
        """One round's averaging."""
        self.average += seconds

    def take(self, world: World) -> Iterator[str]:
        """Lines for a person; starts afresh. The one on data where it was more than INPUT_BOUND of the time."""
        share = min(1.0, self.data / self.steps) if self.steps else 0.0
        if share > INPUT_BOUND:
            cure = "more workers: --nw; further ahead: --prefetch"
            yield f"input-bound: {share:.0%} of the step waiting for data ({cure})"
        total = self.steps + self.ranks + self.average
        if world.size > 1 and world.is_first and total:
            waiting, averaging = self.ranks / total, self.average / total
            yield f"this rank: {waiting:.1%} of the time waiting for the others, {averaging:.1%} averaging"
        self.steps = self.data = self.ranks = self.average = 0.0
