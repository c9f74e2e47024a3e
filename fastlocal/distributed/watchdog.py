"""Detection of missing ranks, and the end of a process that hangs outside Python."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from torch._C._distributed_c10d import Store

from ..common.errors import RankMissing
from ..common.standard_streams import say
from .store import Peer, StoreClient

MARGIN_S = 5.0
"""Time beyond the timeout after which a hanging process ends."""
FAREWELL_S, REPORT_S = 5.0, 2.0
"""Time for all ranks to answer, and time for rank 0 to report who did not."""
CHECK_S = 0.2
STUCK_STATUS = 1


class Watchdog:
    """Name the ranks that are missing, and end this process if it hangs.

    Attributes:
        timeout: Seconds that ranks wait for each other.
        exchanges: Number of exchanges so far, alike on all ranks; it names the keys of a roll call.
    """

    def __init__(self, rank: int, store: Store | None, peers: Sequence[Peer]) -> None:
        self.timeout = 0.0
        self.exchanges = 0
        self._rank, self._store, self._peers = rank, store, peers
        self._end: float | None = None
        self._what = ""

    def client(self, timeout: float) -> StoreClient:
        """Return a connection to the store for this thread."""
        assert self._store is not None, "a single process has no store"
        return StoreClient(self._store, timeout, self.missing)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the watchdog's thread during the block."""
        over = threading.Event()
        threading.Thread(target=self._run, args=(over,), name="watch", daemon=True).start()
        try:
            yield
        finally:
            self._end = None
            over.set()

    @contextlib.contextmanager
    def watch(self, what: str) -> Iterator[None]:
        """End the process if the block takes much longer than the timeout, even if Python cannot run."""
        self._what, self._end = what, time.monotonic() + self.timeout + MARGIN_S
        try:
            yield
        finally:
            self._end = None

    def missing(self, keys: Sequence[str], late: bool) -> str | None:
        """Name the ranks that left `keys` unset: those whose process has ended; after the timeout, all of them."""
        ranks = {int(end) if (end := key.rpartition("/")[2]).isdigit() else 0 for key in keys}
        if text := self.ended(rank for rank in range(len(self._peers)) if rank in ranks or self._rank > 0):
            return text
        if late:
            return f"{self._describe(sorted(ranks))} did not come within {self.timeout:g} s"
        return None

    def ended(self, ranks: Iterable[int]) -> str | None:
        """Name the ranks whose processes have ended, or return None."""
        found = [rank for rank in ranks if self._peers[rank].has_ended()]
        return f"{self._describe(found)} {'are' if len(found) > 1 else 'is'} gone" if found else None

    def roll_call(self, what: str, error: BaseException) -> str:
        """Name the ranks that do not answer within FAREWELL_S after the process group failed."""
        reason = str(error).splitlines()[0][:160]
        client = self.client(FAREWELL_S)
        try:
            client.set(f"failed {self.exchanges}/{self._rank}", "")
            client.wait([f"failed {self.exchanges}/{rank}" for rank in range(len(self._peers))], what)
        except RankMissing as missing:
            return str(missing)
        return f"{what} failed on every rank: {reason}"

    def _describe(self, ranks: Sequence[int]) -> str:
        names = [f"{rank} (process {self._peers[rank].pid} on {self._peers[rank].host})" for rank in ranks]
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(names)}"

    def _run(self, over: threading.Event) -> None:
        while not over.wait(CHECK_S):
            end = self._end
            if end is not None and time.monotonic() > end:
                text = (
                    self._roll_call_in_thread()
                    or f"rank {self._rank}: the other ranks cannot be reached at {self._what}"
                )
                say(f"fastlocal: error: {text}")
                os._exit(STUCK_STATUS)

    def _roll_call_in_thread(self) -> str | None:
        """Return the roll call's text; None if the store does not answer, whose calls may then block forever."""
        answers: list[str] = []
        thread = threading.Thread(
            target=lambda: answers.append(self.roll_call(self._what, TimeoutError("timed out"))), daemon=True
        )
        thread.start()
        thread.join(FAREWELL_S + REPORT_S)
        return answers[0] if answers else None
