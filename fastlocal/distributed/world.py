"""The ranks of a run: exchange of small values, agreement on errors and signals, the process group.

Small values go through a store, so that a missing rank is known by its number. Parameters are averaged by
torch.distributed's default process group.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from ..common.errors import PropagatedError, RankMissing, UsageError
from ..common.interrupts import defer_signals
from .ranks import LaunchInfo, split_contiguous
from .rendezvous import rendezvous
from .store import Peer, StoreClient
from .watchdog import FAREWELL_S, REPORT_S, Watchdog

LOOK_S = 0.5
POLL_S = 0.0002
NCCL_MARGIN_S = 60.0
"""Time beyond the timeout after which NCCL's watchdog ends a process. It names no rank, so ours must act first."""


class World:
    """This process among all processes of a run.

    Attributes:
        ranks: Place of this process.
        nodes: Node of each rank.
        launch_ids: Ids of the nodes' launchers, if they restart ranks.
        restarted: Whether a launcher has restarted a rank.
        group_timeout: Timeout of process groups.
        stopped: Whether a rank asked all ranks to stop.
    """

    def __init__(
        self,
        ranks: LaunchInfo,
        store: Store | None,
        peers: Sequence[Peer],
        nodes: Sequence[int],
        launch_ids: Sequence[str] = (),
        restarted: bool = False,
    ) -> None:
        self.ranks = ranks
        self.rank, self.size = ranks.rank, ranks.size
        self.local_rank, self.local_size = ranks.local_rank, ranks.local_size
        self.nodes = tuple(nodes)
        self.launch_ids = sorted({launch_id for launch_id in launch_ids if launch_id})
        self.restarted = restarted
        self.stopped = False
        self.group_timeout: datetime.timedelta | None = None
        self.watchdog = Watchdog(ranks.rank, store, peers)
        self._store = store
        self._next_look = 0.0

    @classmethod
    def single(cls, ranks: LaunchInfo | None = None) -> World:
        """Return the world of a single process."""
        ranks = ranks or LaunchInfo()
        return cls(ranks, None, [], [0], [ranks.launch_id], ranks.restart > 0)

    @property
    def is_rank0(self) -> bool:
        """Return True if this rank writes the files and messages of the whole run."""
        return self.rank == 0

    @property
    def timeout(self) -> float:
        """Seconds that ranks wait for each other."""
        return self.watchdog.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self.watchdog.timeout = seconds

    def local_clients(self, clients: int) -> range:
        """Return this rank's share of the clients."""
        return split_contiguous(clients, self.rank, self.size)

    def store_client(self) -> StoreClient:
        """Return a connection to the store for another thread."""
        assert self._store is not None, "a single process has no store"
        return StoreClient(PrefixStore("other", self._store.clone()), self.timeout, self.watchdog.missing)

    def watch(self, what: str) -> AbstractContextManager[None]:
        """End the process if the block takes much longer than the timeout, even if Python cannot run."""
        return self.watchdog.watch(what)

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt if another rank asks all to stop; asks the store every LOOK_S."""
        if self.size > 1 and time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            if self.watchdog.client(0.0).get("stop") is not None:
                raise KeyboardInterrupt

    def ask_to_stop(self) -> None:
        """Stop all ranks at their next exchange, and wait for them there."""
        if self.size > 1 and not self.stopped:
            self.watchdog.client(0.0).set("stop", "")
            with contextlib.suppress(KeyboardInterrupt):
                self.all_gather_object(None, "the end that a signal asks for", stop=True)

    def all_gather_object(self, value: Any, what: str, *, stop: bool = False, error: str | None = None) -> list[Any]:
        """Return every rank's value in rank order, on every rank.

        Args:
            value: JSON-serializable.
            what: Name of this exchange, for messages.
            stop: Stop all ranks.
            error: Fail on all ranks with this message.

        Raises:
            UsageError: A rank passed an error.
            KeyboardInterrupt: A rank asked to stop.
            RankMissing: A rank is missing.
        """
        if self.size == 1:
            return [value]
        with defer_signals(), self.watch(what):  # a rank that leaves half-way would be one exchange behind
            entries = self._exchange(json.dumps([stop, error, value]), what)
        errors = {rank: text for rank, (_, text, _) in enumerate(entries) if text}
        if errors:
            who = "" if 0 in errors else f"rank {', '.join(map(str, errors))}: "
            raise PropagatedError(who + next(iter(errors.values())))
        if any(stop for stop, _, _ in entries):
            self.stopped = True
            raise KeyboardInterrupt
        return [value for _, _, value in entries]

    @contextlib.contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """Propagate a UsageError or signal on any rank to all ranks at their next exchange."""
        try:
            yield
        except PropagatedError:
            raise
        except KeyboardInterrupt:
            self.ask_to_stop()
            raise
        except UsageError as mistake:
            self.all_gather_object(None, "the error of another rank", error=str(mistake))
            raise

    @contextlib.contextmanager
    def averaging(self, what: str) -> Iterator[None]:
        """Turn an error of the process group into a RankMissing that names the missing ranks."""
        if self.size == 1:
            yield
            return
        with self.watch(what):
            try:
                yield
            except (RuntimeError, TimeoutError) as error:
                raise RankMissing(self.watchdog.roll_call(what, error)) from error

    def await_device(self, device: torch.device) -> None:
        """Wait for a GPU's queue within `averaging`, where an error of a collective names the missing rank.

        Raises:
            RuntimeError: A collective fails.
            TimeoutError: The timeout is over.
            RankMissing: A rank's process has ended.
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
                if text := self.watchdog.ended(range(self.size)):
                    raise RankMissing(text)

    def _exchange(self, text: str, what: str) -> list[Any]:
        """Gather every rank's text on rank 0, distribute the list, and parse it."""
        watchdog = self.watchdog
        # rank 0 reports who is missing, and the others wait for its report
        client = watchdog.client(self.timeout + (0 if self.is_rank0 else REPORT_S))
        watchdog.exchanges += 1
        name = f"meeting {watchdog.exchanges}"
        keys = [f"{name}/{rank}" for rank in range(self.size)]
        if self.is_rank0:
            try:
                texts = [text, *client.wait(keys[1:], what)]
            except RankMissing as error:
                client.set(f"{name}/all", json.dumps(str(error)))
                raise
            client.set(f"{name}/all", json.dumps(texts))
            client.delete([f"meeting {watchdog.exchanges - 1}/all", *keys[1:]])
        else:
            client.set(keys[self.rank], text)
            texts = json.loads(client.wait([f"{name}/all"], what)[0])
            if isinstance(texts, str):
                raise RankMissing(texts)
        return [json.loads(each) for each in texts]

    def _shutdown_barrier(self) -> None:
        """Let rank 0 leave last: it may keep the store."""
        with contextlib.suppress(RankMissing):
            client = self.watchdog.client(FAREWELL_S)
            client.set(f"shutdown/{self.rank}", "")
            if self.is_rank0:
                client.wait([f"shutdown/{rank}" for rank in range(self.size)], "the end")


@contextlib.contextmanager
def connect(ranks: LaunchInfo, *, url: str, timeout: float, device: torch.device) -> Iterator[World]:
    """Connect this process to the other ranks and set up the process group, for the length of the block.

    Args:
        ranks: Place of this process.
        url: env:// for the launcher's address, or tcp://HOST:PORT.
        timeout: Seconds that ranks wait for each other.
        device: Device of this rank's parameters.

    Raises:
        RankMissing: Not all ranks arrive.
    """
    if ranks.size == 1:
        yield World.single(ranks)
        return
    limit = datetime.timedelta(seconds=timeout)
    store, token, members = rendezvous(ranks, url, timeout)
    world = World(
        ranks,
        PrefixStore(token, store),
        peers=[Peer(**info["peer"]) for info in members],
        nodes=[info["node"] for info in members],
        launch_ids=[info["launch_id"] for info in members],
        restarted=any(info["restart"] for info in members),
    )
    world.timeout = timeout
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        limit += datetime.timedelta(seconds=NCCL_MARGIN_S)
        # otherwise NCCL ends the process before the missing rank is named
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    world.group_timeout = limit
    with world.watchdog.running():
        with world.averaging("the start"):
            group = PrefixStore(f"{token} group", store)
            dist.init_process_group(backend, store=group, rank=ranks.rank, world_size=ranks.size, timeout=limit)
        try:
            with world.propagate_errors():
                yield world
            world._shutdown_barrier()
        finally:
            # if a rank is missing, the destruction of the group would wait for it again; of a mistake all ranks know
            if sys.exc_info()[0] in (None, PropagatedError):
                dist.destroy_process_group()
