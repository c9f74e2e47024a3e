"""How much of the time local steps wait for their data."""

from __future__ import annotations

from dataclasses import dataclass

INPUT_BOUND = 0.1


@dataclass
class Waiting:
    """Seconds that local steps took since the last evaluation, and how many of them went by without data."""

    waited: float = 0.0
    taken: float = 0.0

    def add(self, waited: float, taken: float) -> None:
        """One round's."""
        self.waited += waited
        self.taken += taken

    def take(self) -> str | None:
        """A line for a person where it was more than INPUT_BOUND of the time; starts afresh."""
        share = min(1.0, self.waited / self.taken) if self.taken else 0.0
        self.waited = self.taken = 0.0
        if share <= INPUT_BOUND:
            return None
        return f"input-bound: {share:.0%} of the step waiting for data (more workers: --nw; further ahead: --prefetch)"
