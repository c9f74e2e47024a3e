"""Samples that cannot be decoded, and the samples that take their places."""

from __future__ import annotations

import threading
from typing import Literal

import numpy as np

from fastlocal.common.errors import UsageError

from ..transforms import Ints
from .engine import DecodeJob

MAX_NAMED = 10
"""Bad samples that are named each; the others are counted."""


class BadSamples:
    """Record of the samples of a source that cannot be decoded.

    Args:
        samples: Number of samples of the source.
        policy: Whether to end the run at a bad sample, or to replace it by the next good one.
        lock: Held while the record is read or changed.
        substitutes: The next sample of each, or None for the next in order.
    """

    def __init__(
        self, samples: int, policy: Literal["stop", "skip"], lock: threading.RLock, substitutes: Ints | None
    ) -> None:
        self._samples, self.policy, self._lock, self._substitutes = samples, policy, lock, substitutes
        self._next_good: Ints | None = None
        self._bad: set[int] = set()
        self._has_unreported = False
        self._messages: list[str] = []

    def record(self, job: DecodeJob) -> None:
        """Record the bad samples of a job; raises UsageError if they end the run."""
        for row, bad in sorted(job.bad, key=lambda entry: entry[0]):
            if self.policy == "stop":
                raise UsageError(f"{bad}; replace or remove it, or give --on-bad-sample skip")
            index = int(job.rows.ids[row])
            with self._lock:
                if index in self._bad:
                    continue
                self._has_unreported |= len(self._bad) >= MAX_NAMED
                if len(self._bad) < MAX_NAMED:
                    self._messages.append(f"{bad}; the next sample takes its place (--on-bad-sample skip)")
                self._bad.add(index)
                if self._next_good is None:
                    self._next_good = np.arange(self._samples)
                following = self._next_good[index] = self._following(index)
                while following in self._bad and following != index:
                    following = self._following(int(following))
                if following == index:
                    whose = "" if self._substitutes is None else " of its client"
                    raise UsageError(f"{bad}; nor can any other sample{whose}")

    def _following(self, index: int) -> int:
        """Return the sample that takes the place of a bad one."""
        return (index + 1) % self._samples if self._substitutes is None else int(self._substitutes[index])

    def replace(self, ids: Ints) -> Ints:
        """Return `ids` with the next good sample in place of each bad one."""
        with self._lock:
            if self._next_good is None:
                return ids
            found = self._next_good[ids]
            while len(self._bad) < self._samples and (self._next_good[found] != found).any():
                found = self._next_good[found]
            self._next_good[ids] = found  # path compression: later look-ups skip a series of bad samples at once
            return found

    def pop_messages(self) -> list[str]:
        """Return the messages since the last call."""
        with self._lock:
            messages, self._messages = self._messages, []
            if self._has_unreported:
                messages.append(f"{len(self._bad)} samples cannot be decoded so far; the next ones take their places")
                self._has_unreported = False
            return messages
