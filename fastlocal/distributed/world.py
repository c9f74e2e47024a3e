"""The processes of a run: how they agree, and notice that one is missing.

What ranks tell each other beside parameters is short and goes through a store, so that a rank that does not come is
known by its number; parameters are averaged by torch.distributed's default process group, which is set up here.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from ..common.errors import AgreedError, RankMissing, UsageError
from ..common.interrupts import defer_signals
from ..common.standard_streams import say
from .ranks import LaunchInfo, split_contiguous
from .rendezvous import rendezvous
from .store import Channel, Peer

MARGIN_S = 5.0
"""Beyond the timeout, after which a thread ends a process that is stuck where Python cannot help itself."""
FAREWELL_S, SAYING_S = 5.0, 2.0
LOOK_S = 0.5
POLL_S = 0.0002
NCCL_MARGIN_S = 60.0
"""Beyond the timeout, after which NCCL's own watchdog ends a process, and names no rank: later than ours does."""
STUCK_STATUS = 1


class World:
    """This process among all of a run.

    nodes: the node of each rank        group_timeout: of process groups
    stopped: whether some rank asked the others to stop
    launches: of the nodes' launchers, where they start ranks again        restarted: whether one has
    """

    def __init__(
        self,
        ranks: LaunchInfo,
        store: Store | None,
        peers: Sequence[Peer],
        nodes: Sequence[int],
        launches: Sequence[str] = (),
        restarted: bool = False,
    ) -> None:
        self.ranks = ranks
        self.rank, self.size = ranks.rank, ranks.size
        self.local_rank, self.local_size = ranks.local_rank, ranks.local_size
        self.nodes = tuple(nodes)
        self.launches = sorted({launch for launch in launches if launch})
        self.restarted = restarted
        self.stopped = False
        self.timeout = 0.0
        self.group_timeout: datetime.timedelta | None = None
        self._store, self._peers = store, peers
        self._count = 0
        self._look_again = 0.0
        self._until: float | None = None
        self._what = ""

    @classmethod
    def alone(cls, ranks: LaunchInfo | None = None) -> World:
        """One process, which waits for nobody."""
        ranks = ranks or LaunchInfo()
        return cls(ranks, None, [], [0], [ranks.launch], ranks.restart > 0)

    @property
    def is_rank0(self) -> bool:
        """Whether this rank writes what there is one of."""
        return self.rank == 0

    def local_clients(self, clients: int) -> range:
        """This rank's part of so many clients."""
        return split_contiguous(clients, self.rank, self.size)

    def channel(self) -> Channel:
        """A connection for another thread."""
        assert self._store is not None, "nobody to talk to"
        return Channel(PrefixStore("other", self._store.clone()), self.timeout, self._missing)

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt where another rank waits for this one to stop; looks every now and then."""
        if self.size > 1 and time.monotonic() > self._look_again:
            self._look_again = time.monotonic() + LOOK_S
            if self._channel(0.0).get("stop") is not None:
                raise KeyboardInterrupt

    def ask_to_stop(self) -> None:
        """Wait until every rank stops; returns where the ranks meet, none of them having gone on from there."""
        if self.size > 1 and not self.stopped:
            self._channel(0.0).set("stop", "")
            with contextlib.suppress(KeyboardInterrupt):
                self.all_gather_object(None, "the end that a signal asks for", stop=True)

    def _channel(self, timeout: float) -> Channel:
        assert self._store is not None, "nobody to talk to"
        return Channel(self._store, timeout, self._missing)

    def all_gather_object(self, value: Any, what: str, *, stop: bool = False, error: str | None = None) -> list[Any]:
        """One value of each rank, which JSON can hold, in rank order, on every rank.

        what: for a person, where the ranks meet
        stop: ask all of them to stop        error: make all of them fail
        Raises on every rank UsageError where one fails, KeyboardInterrupt where one asks to stop, RankMissing where one
        does not come.
        """
        if self.size == 1:
            return [value]
        with defer_signals(), self.watched(what):  # a rank that leaves half-way would be a meeting behind
            told = self._gathered(json.dumps([stop, error, value]), what)
        errors = {rank: text for rank, (_, text, _) in enumerate(told) if text}
        if errors:
            who = "" if 0 in errors else f"rank {', '.join(map(str, errors))}: "
            raise AgreedError(who + next(iter(errors.values())))
        if any(stop for stop, _, _ in told):
            self.stopped = True
            raise KeyboardInterrupt
        return [value for _, _, value in told]

    @contextlib.contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """While it lasts, a UsageError of one rank, or a signal to it, ends them all, where they meet next."""
        try:
            yield
        except AgreedError:
            raise
        except KeyboardInterrupt:
            self.ask_to_stop()
            raise
        except UsageError as mistake:
            self.all_gather_object(None, "the error of another rank", error=str(mistake))
            raise

    @contextlib.contextmanager
    def averaging(self, what: str) -> Iterator[None]:
        """While it lasts, an error of the process group becomes a RankMissing that says who is not there any more."""
        if self.size == 1:
            yield
            return
        with self.watched(what):
            try:
                yield
            except (RuntimeError, TimeoutError) as error:
                raise RankMissing(self._roll_call(what, error)) from error

    def await_device(self, device: torch.device) -> None:
        """Wait for a GPU's queue within `averaging`, where an error of a collective names the missing rank.

        Raises RuntimeError if a collective fails, TimeoutError after the timeout, RankMissing if a rank is gone.
        """
        if self.size == 1 or device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
        end, look = time.monotonic() + self.timeout, time.monotonic() + LOOK_S
        while not done.query():
            time.sleep(POLL_S)
            if time.monotonic() > end:
                raise TimeoutError(f"not done within {self.timeout:g} s")
            if time.monotonic() > look:
                look += LOOK_S
                if gone := self._gone(range(self.size)):
                    raise RankMissing(gone)

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """While it lasts, the process ends where it takes much longer than the timeout, Python or no Python."""
        self._what, self._until = what, time.monotonic() + self.timeout + MARGIN_S
        try:
            yield
        finally:
            self._until = None

    def _gathered(self, text: str, what: str) -> list[Any]:
        # the first rank says who is missing, and the others wait for that
        channel = self._channel(self.timeout + (0 if self.is_rank0 else SAYING_S))
        self._count += 1
        name = f"meeting {self._count}"
        keys = [f"{name}/{rank}" for rank in range(self.size)]
        if self.is_rank0:
            try:
                told = [text, *channel.wait(keys[1:], what)]
            except RankMissing as error:
                channel.set(f"{name}/all", json.dumps(str(error)))
                raise
            channel.set(f"{name}/all", json.dumps(told))
            channel.delete([f"meeting {self._count - 1}/all", *keys[1:]])
        else:
            channel.set(keys[self.rank], text)
            told = json.loads(channel.wait([f"{name}/all"], what)[0])
            if isinstance(told, str):
                raise RankMissing(told)
        return [json.loads(one) for one in told]

    def _missing(self, keys: Sequence[str], late: bool) -> str | None:
        ranks = {int(end) if (end := key.rpartition("/")[2]).isdigit() else 0 for key in keys}
        if gone := self._gone(rank for rank in range(self.size) if rank in ranks or not self.is_rank0):
            return gone
        if late:
            return f"{self._named(sorted(ranks))} did not come within {self.timeout:g} s"
        return None

    def _gone(self, ranks: Iterable[int]) -> str | None:
        """Name those of these ranks whose processes have ended, or return None."""
        gone = [rank for rank in ranks if self._peers[rank].is_gone()]
        return f"{self._named(gone)} {'are' if len(gone) > 1 else 'is'} gone" if gone else None

    def _named(self, ranks: Sequence[int]) -> str:
        names = [f"{rank} (process {self._peers[rank].pid} on {self._peers[rank].host})" for rank in ranks]
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(names)}"

    def _roll_call(self, what: str, error: BaseException) -> str:
        """Who does not answer within a few seconds after the process group failed."""
        why = str(error).splitlines()[0][:160]
        channel = self._channel(FAREWELL_S)
        try:
            channel.set(f"failed {self._count}/{self.rank}", "")
            channel.wait([f"failed {self._count}/{rank}" for rank in range(self.size)], what)
        except RankMissing as missing:
            return str(missing)
        return f"{what} failed on every rank: {why}"

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.2):
            until = self._until
            if until is not None and time.monotonic() > until:
                text = self._asked() or f"rank {self.rank}: the other ranks cannot be reached at {self._what}"
                say(f"fastlocal: error: {text}")
                os._exit(STUCK_STATUS)

    def _asked(self) -> str | None:
        """Who does not answer; None where the store does not either, which may keep whoever asks for ever."""
        answers: list[str] = []
        asking = threading.Thread(
            target=lambda: answers.append(self._roll_call(self._what, TimeoutError("timed out"))), daemon=True
        )
        asking.start()
        asking.join(FAREWELL_S + SAYING_S)
        return answers[0] if answers else None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        over = threading.Event()
        threading.Thread(target=self._watch, args=(over,), name="watch", daemon=True).start()
        try:
            yield
        finally:
            self._until = None
            over.set()

    def _shutdown_barrier(self) -> None:
        """The first rank may keep the store, and goes last."""
        with contextlib.suppress(RankMissing):
            channel = self._channel(FAREWELL_S)
            channel.set(f"farewell/{self.rank}", "")
            if self.is_rank0:
                channel.wait([f"farewell/{rank}" for rank in range(self.size)], "the end")


@contextlib.contextmanager
def connected(ranks: LaunchInfo, *, url: str, timeout: float, device: torch.device) -> Iterator[World]:
    """The world of this process, its process group set up, until it ends.

    url: env:// as the launcher says, or tcp://HOST:PORT        timeout: seconds that ranks wait for each other
    device: where this rank's parameters are
    Raises RankMissing where not all ranks come.
    """
    if ranks.size == 1:
        yield World.alone(ranks)
        return
    limit = datetime.timedelta(seconds=timeout)
    store, token, cards = rendezvous(ranks, url, timeout)
    peers, launches = [Peer(**card["peer"]) for card in cards], [card["launch"] for card in cards]
    restarted = any(card["restart"] for card in cards)
    nodes = [card["node"] for card in cards]
    world = World(ranks, PrefixStore(token, store), peers, nodes, launches, restarted)
    world.timeout = timeout
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        limit += datetime.timedelta(seconds=NCCL_MARGIN_S)
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # else an error ends the process before we say it
    world.group_timeout = limit
    with world._connected():
        with world.averaging("the start"):
            group = PrefixStore(f"{token} group", store)
            dist.init_process_group(backend, store=group, rank=ranks.rank, world_size=ranks.size, timeout=limit)
        try:
            with world.propagate_errors():
                yield world
            world._shutdown_barrier()
        finally:
            # where a rank is missing, waiting for its process group would take as long again
            if sys.exc_info()[0] is None:
                dist.destroy_process_group()
