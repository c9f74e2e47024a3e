"""How the ranks of a run find each other: one of them, or their launcher, keeps a store at a known address."""

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
"""What a rank says of itself: id (of this start alone), node, peer (the fields of a Peer), launch, restart, and left:
whether a signal ended it."""


def rendezvous(ranks: LaunchInfo, url: str, timeout: float) -> tuple[Store, str, list[RankInfo]]:
    """The store, a name for what this meeting of ranks keeps there, and the card of each rank.

    url: env:// as the launcher says, or tcp://HOST:PORT        timeout: seconds that ranks wait for each other
    Raises RankMissing where not all ranks come, KeyboardInterrupt where a signal ends this rank or another that waits,
    UsageError where there is no address.
    """
    host, port = _place(ranks, url)
    limit = datetime.timedelta(seconds=timeout)
    hosts = ranks.rank == 0 and not (ranks.hosted and url == "env://")
    until = time.monotonic() + timeout
    while True:
        try:
            store = TCPStore(host, port, None, hosts, limit, wait_for_workers=False)
            with defer_signals():  # until the others can be told
                return store, *_meet(store, ranks, timeout, hosts)
        except DistError as error:
            # it may have been that of the process's run before, which ended just now
            if hosts or time.monotonic() > until:
                line = str(error).splitlines()[0][:160]
                raise RankMissing(f"rank {ranks.rank} cannot reach the store at {host}:{port} ({line})") from error
            time.sleep(0.1)


def _place(ranks: LaunchInfo, url: str) -> tuple[str, int]:
    if url.startswith("tcp://"):
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        return host, int(port)
    if ranks.address is None or ranks.port is None:
        raise UsageError("MASTER_ADDR, MASTER_PORT: are not set; start the run with torchrun, or give --dist-url")
    return ranks.address, ranks.port


def _meet(store: Store, ranks: LaunchInfo, timeout: float, hosts: bool) -> tuple[str, list[RankInfo]]:
    """A name that this meeting of ranks alone has, and what each of them says of itself.

    The store may hold what ranks said that a launcher has started again since, and it counts restarts by node. So the
    first rank reads who is there until all have answered to the name that it made for just these.
    """
    card = {"id": uuid.uuid4().hex, "node": ranks.node, "peer": asdict(Peer.this())}
    card |= {"launch": ranks.launch, "restart": ranks.restart, "left": False}
    own = f"hello/{ranks.rank}"
    before = _left(_cards(store, ranks.size)) if ranks.restarts else set[str]()
    store.set(own, json.dumps(card))
    try:
        return _membership(store, ranks, card, before, timeout)
    except KeyboardInterrupt:
        store.set(own, json.dumps(card | {"left": True}))
        if hosts:
            time.sleep(FAREWELL_S)  # the others would find no store, and look for one
        raise


def _cards(store: Store, size: int) -> dict[int, RankInfo]:
    """Of the ranks that have said something so far."""
    there = [rank for rank in range(size) if store.check([f"hello/{rank}"])]
    values = store.multi_get([f"hello/{rank}" for rank in there]) if there else []
    return {rank: json.loads(value) for rank, value in zip(there, values, strict=True)}


def _left(cards: Mapping[int, RankInfo]) -> set[str]:
    """Those that a signal has ended."""
    return {card["id"] for card in cards.values() if card["left"]}


def _membership(
    store: Store, ranks: LaunchInfo, card: RankInfo, before: set[str], timeout: float
) -> tuple[str, list[RankInfo]]:
    """As `_meet`, once this rank's `card` is there.

    before: ids of those that had left when it came: of an earlier attempt
    """
    until = time.monotonic() + timeout
    token, cards, found = "", list[RankInfo](), dict[int, RankInfo]()
    while time.monotonic() < until:
        found = _cards(store, ranks.size)
        interrupts.check_signals()
        if _left(found) - before:
            raise KeyboardInterrupt
        if ranks.rank == 0 and len(found) == ranks.size:
            if list(found.values()) != cards:
                token, cards = uuid.uuid4().hex, list(found.values())
                store.set("roster", json.dumps([token, cards]))
            if all(store.check([f"{token}/here/{rank}"]) for rank in range(1, ranks.size)):
                store.set(f"{token}/go", "")
                return token, cards
        elif ranks.rank and store.check(["roster"]):
            token, cards = json.loads(store.get("roster"))
            if cards[ranks.rank : ranks.rank + 1] == [card]:
                store.set(f"{token}/here/{ranks.rank}", "")
                if store.check([f"{token}/go"]):
                    return token, cards
        time.sleep(LOOK_S)
    missing = ", ".join(str(rank) for rank in range(ranks.size) if rank not in found)
    who = f"rank {missing}" if missing else "a rank"
    raise RankMissing(f"{who} did not come within {timeout:g} s, waited for at the start")
