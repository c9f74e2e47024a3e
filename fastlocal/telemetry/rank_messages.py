"""Log lines of the ranks other than 0."""

from __future__ import annotations

from fastlocal.common.standard_streams import say

from .base import Logger


class RankMessages(Logger):
    """Print messages on standard error, with their rank."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def message(self, text: str) -> None:
        say(f"rank {self._rank}: {text}")
