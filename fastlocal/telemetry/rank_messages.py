"""What a rank that keeps no log has to tell a person."""

from __future__ import annotations

from fastlocal.common.standard_streams import say

from .base import Logger


class RankMessages(Logger):
    """Prints messages on standard error, with the rank that they come from."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def message(self, text: str) -> None:
        say(f"rank {self._rank}: {text}")
