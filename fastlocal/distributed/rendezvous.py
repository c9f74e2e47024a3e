"""Rendezvous of the ranks at a store with a known address, kept by rank 0 or by the launcher."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import DistError

from ..common import interrupts
from ..common.errors import RankMissing, UsageError
from ..common.interrupts import defer_signals
from .ranks import LaunchInfo
from .store import Peer

LOOK_S = 0.01
FAREWELL_S = 0.5
RankInfo = dict[str, Any]
"""One rank's entry: id (unique to this start), node, peer (fields of a Peer), launch_id, restart, and left (whether a
signal ended it)."""


def rendezvous(ranks: LaunchInfo, url: str, timeout: float) -> tuple[Store, str, list[RankInfo]]:
    """Connect to the store and wait for all ranks.

    Args:
        ranks: Place of this process.
        url: env:// for the launcher's address, or tcp://HOST:PORT.
        timeout: Seconds that ranks wait for each other.

    Returns:
        The store, a unique prefix for this run's keys in it, and the entry of each rank.

    Raises:
        RankMissing: Not all ranks arrive.
        KeyboardInterrupt: A signal ends this rank or another one that waits.
        UsageError: There is no address.
    """
    host, port = _address(ranks, url)
    limit = datetime.timedelta(seconds=timeout)
    hosts = ranks.rank == 0 and not (ranks.agent_store and url == "env://")
    until = time.monotonic() + timeout
    while True:
        try:
            store = TCPStore(host, port, None, hosts, limit, wait_for_workers=False)
            with defer_signals():  # the other ranks must learn of a signal
                return store, *_join(store, ranks, timeout, hosts)
        except DistError as error:
            # the store may have been that of a previous run, which ended just now
            if hosts or time.monotonic() > until:
                line = str(error).splitlines()[0][:160]
                raise RankMissing(f"rank {ranks.rank} cannot reach the store at {host}:{port} ({line})") from error
            time.sleep(0.1)


def _address(ranks: LaunchInfo, url: str) -> tuple[str, int]:
    if url.startswith("tcp://"):
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        return host, int(port)
    if ranks.address is None or ranks.port is None:
        raise UsageError("MASTER_ADDR, MASTER_PORT: are not set; start the run with torchrun, or give --dist-url")
    return ranks.address, ranks.port


def _join(store: Store, ranks: LaunchInfo, timeout: float, hosts: bool) -> tuple[str, list[RankInfo]]:
    """Return a unique prefix for this start of the run, and the entry of each rank.

    The store may hold entries of ranks that a launcher has restarted since, and the launcher counts restarts by node.
    So rank 0 reads the entries until every rank has confirmed the prefix that it made for exactly these entries.
    """
    info = {"id": uuid.uuid4().hex, "node": ranks.node, "peer": asdict(Peer.this())}
    info |= {"launch_id": ranks.launch_id, "restart": ranks.restart, "left": False}
    key = f"hello/{ranks.rank}"
    left_before = _ids_left(_read_infos(store, ranks.size)) if ranks.max_restarts else set[str]()
    store.set(key, json.dumps(info))
    try:
        return _membership(store, ranks, info, left_before, timeout)
    except KeyboardInterrupt:
        store.set(key, json.dumps(info | {"left": True}))
        if hosts:
            time.sleep(FAREWELL_S)  # without the store, the other ranks would retry the connection
        raise


def _read_infos(store: Store, size: int) -> dict[int, RankInfo]:
    """Return the entries present so far."""
    present = [rank for rank in range(size) if store.check([f"hello/{rank}"])]
    values = store.multi_get([f"hello/{rank}" for rank in present]) if present else []
    return {rank: json.loads(value) for rank, value in zip(present, values, strict=True)}


def _ids_left(infos: Mapping[int, RankInfo]) -> set[str]:
    """Return the ids of ranks that a signal has ended."""
    return {info["id"] for info in infos.values() if info["left"]}


def _membership(
    store: Store, ranks: LaunchInfo, info: RankInfo, left_before: set[str], timeout: float
) -> tuple[str, list[RankInfo]]:
    """Agree on prefix and entries, once this rank's `info` is in the store.

    Args:
        store: The store.
        ranks: Place of this process.
        info: This rank's entry.
        left_before: Ids of ranks of an earlier attempt that had left before this one started.
        timeout: Seconds that ranks wait for each other.
    """
    until = time.monotonic() + timeout
    token, members, found = "", list[RankInfo](), dict[int, RankInfo]()
    while time.monotonic() < until:
        found = _read_infos(store, ranks.size)
        interrupts.check_signals()
        if _ids_left(found) - left_before:
            raise KeyboardInterrupt
        if ranks.rank == 0 and len(found) == ranks.size:
            if list(found.values()) != members:
                token, members = uuid.uuid4().hex, list(found.values())
                store.set("membership", json.dumps([token, members]))
            if all(store.check([f"{token}/here/{rank}"]) for rank in range(1, ranks.size)):
                store.set(f"{token}/go", "")
                return token, members
        elif ranks.rank and store.check(["membership"]):
            token, members = json.loads(store.get("membership"))
            if members[ranks.rank : ranks.rank + 1] == [info]:
                store.set(f"{token}/here/{ranks.rank}", "")
                if store.check([f"{token}/go"]):
                    return token, members
        time.sleep(LOOK_S)
    missing = ", ".join(str(rank) for rank in range(ranks.size) if rank not in found)
    who = f"rank {missing}" if missing else "a rank"
    raise RankMissing(f"{who} did not come within {timeout:g} s, waited for at the start")
