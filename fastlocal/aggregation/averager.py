"""The mean of all clients of all ranks: summed chunk by chunk, added up across ranks bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .buckets import ALIGNED, Buckets
from .compressed_route import SixteenBits
from .routes import AllReduce, Route, ThroughNodes, group_of, in_two_levels, nodes_of
from .sums import FixedSums, FloatSums, Sums

Format = Literal["full", "bf16", "fp16"]
"""Of numbers on the wire."""
OWED = "owed to the mean"
IN_CACHE = 2**16
"""Numbers that a core adds to at a time: in float64 they stay in its second-level cache. A chunk of one client and 25
million parameters takes a third of the time that it takes in one piece."""

IN_MEMORY = 32 * 2**20
"""Bytes of one float64 copy of some columns of a chunk on a GPU: sums of a fixed order hold up to five at once."""


class Aggregator:
    """A round's mean. In each round: `accumulate` every chunk, `start`, `finish`.

    Collectives that fail, because a rank is gone or the group's timeout is over, raise what torch.distributed raises, a
    RuntimeError, in `start` or `finish`; there is no going on with this object then.
    """

    def __init__(self, row: Tensor, sums: Sums, buckets: Buckets | None, owed: Tensor | None) -> None:
        self._arithmetic, self._buckets, self._owed = sums, buckets, owed
        self._sums = torch.zeros(sums.rows, row.numel(), dtype=torch.float64, device=row.device)
        self._added = torch.zeros((), dtype=torch.int64)
        self._stale = True  # nothing is in the sums, or they are those of the round before
        self._last: Tensor | None = None
        self._block: Tensor | None = None
        self._debt: Tensor | None = None
        self._mean = self._sums[0]

    def accumulate(self, params: Tensor, last: bool = False) -> None:
        """Add the clients of a chunk, params [clients, n_params].

        last: none follows in this round, and `params` stays as it is until `finish`. It is then read bucket by bucket,
            while others are on the way.
        """
        self._settle()
        self._added += len(params)
        if last:
            self._last = params
        else:
            self._accumulate(params)

    def so_far(self) -> dict[str, Tensor]:
        """The sums of what was added, themselves: what is changed in them is changed here.

        Those of several ranks, added up name by name, are the sums of one rank that added all of it.
        """
        self._settle()
        if self._stale:
            self._sums.zero_()
            self._stale = False
        return {"sums so far": self._sums, "clients so far": self._added}

    def state(self) -> dict[str, Tensor]:
        """What this rank still owes to the mean in 16-bit formats, itself; empty where it owes nothing.

        As in `so_far`, what several ranks owe may be added up and owed by one.
        """
        owed = self._debt if self._owed is None else self._owed
        return {} if owed is None else {OWED: owed}

    def load_residual(self, owed: Tensor) -> None:
        """Take over a debt [n_params] of `state`'s, also where this rank rounds nothing: it then pays at once."""
        if self._owed is None:
            self._debt = owed.to(self._sums.device, copy=True)
        else:
            self._owed.copy_(owed)

    def start(self, row: Tensor) -> None:
        """All is added. Begin to add up the ranks' sums, and return before that is done.

        row: [n_params], what the clients started from, alike on every rank and left alone until `finish`, which may put
            the mean there: a pass over memory less
        """
        if self._debt is not None:
            self.so_far()["sums so far"][0] += self._debt
            self._debt = None
        added = int(self._added)
        if self._buckets is None:
            self._mean = self._alone(row, added)
        else:
            mean = row if self._arithmetic.rows == 1 and self._arithmetic.sent == row.dtype else self._sums[0]
            self._buckets.start(
                lambda wire, columns: self._fill(wire, columns, row, added),
                lambda wire, columns: self._arithmetic.from_wire(wire, row[columns], mean[columns]),
            )
            self._mean = mean
        self._added.zero_()
        self._last = None

    def finish(self) -> Tensor:
        """Return the mean [n_params], alike to the bit on every rank, and start over.

        It is valid until the next `accumulate` or `start`. It is in float64; or rounded to the row's dtype, and then it
        is the `row` that was given.
        """
        if self._buckets is not None:
            self._buckets.wait()
        self._stale = True
        return self._mean

    def _alone(self, row: Tensor, added: int) -> Tensor:
        """The mean of a single rank."""
        if added == 1 and self._stale and self._last is not None and self._arithmetic.rows == 1:
            return row.copy_(self._last[0])  # a third of the time of the way through sums
        self._settle()
        return self._arithmetic.finalize_local(self._sums)

    def _settle(self) -> None:
        """Leave no chunk unread."""
        if self._last is not None:
            self._accumulate(self._last)
            self._last = None

    def _accumulate(self, params: Tensor) -> None:
        for columns in self._blocks(slice(0, params.shape[1]), params):
            sums = self._sums[:, columns]
            if self._stale:
                sums.zero_()
            self._arithmetic.accumulate(params[:, columns], sums)
        self._stale = False

    def _fill(self, wire: Tensor, columns: slice, row: Tensor, added: int) -> None:
        """Write this rank's part of a bucket."""
        last = self._last
        if last is not None and self._stale and added == 1:
            if self._arithmetic.one_to_wire(last[0, columns], row[columns], wire):
                return
        for block in self._blocks(columns, last):
            sums = self._sums[:, block]
            if self._stale:
                sums = sums.zero_() if last is None else self._scratch(block).zero_()
            if last is not None:
                self._arithmetic.accumulate(last[:, block], sums)
            part = wire[:, block.start - columns.start : block.stop - columns.start]
            self._arithmetic.to_wire(sums, row[block], added, part)

    def _scratch(self, block: slice) -> Tensor:
        """Room for the sums of a block that are needed only now."""
        size = block.stop - block.start
        if self._block is None or self._block.shape[1] < size:
            self._block = torch.empty(len(self._sums), size, dtype=self._sums.dtype, device=self._sums.device)
        return self._block[:, :size]

    def _blocks(self, columns: slice, params: Tensor | None) -> Iterator[slice]:
        """The columns in pieces, each of which writes no more on the way than a CPU's cache holds, or IN_MEMORY bytes.

        One row is written where the sums are, and a GPU takes all its columns at once.
        """
        step, rows = columns.stop, self._arithmetic.rows_written(0 if params is None else len(params))
        if self._sums.device.type == "cpu":
            step = max(4096, torch.get_num_threads() * IN_CACHE // max(rows, 1) // ALIGNED * ALIGNED)
        elif rows > 1:
            step = max(ALIGNED, IN_MEMORY // 8 // rows // ALIGNED * ALIGNED)
        for start in range(columns.start, columns.stop, step):
            yield slice(start, min(start + step, columns.stop))


def make_averager(
    row: Tensor,
    clients: int,
    *,
    nodes: Sequence[int],
    rank: int,
    bucket_mb: float,
    wire_format: Format = "full",
    reduce_order: Literal["any", "fixed"] = "any",
    timeout: timedelta | None = None,
) -> Aggregator:
    """The averager of one rank; every rank has to call it, for it may make process groups.

    row: [n_params], whose dtype and device it takes        clients: of all ranks
    nodes: the node of every rank; one rank needs no torch.distributed, several its default group
    bucket_mb: MiB of a bucket on the wire
    wire_format: what goes from rank to rank, within a node in full; "full" is the row's dtype
    reduce_order: "fixed" gives the same bits on any number of ranks and with any chunks, and goes with "full" alone
    timeout: of the groups that are made; None: torch's default
    """
    assert wire_format == "full" or reduce_order == "any"
    full = torch.float32 if wire_format != "full" else row.dtype
    sums: Sums = FixedSums(clients) if reduce_order == "fixed" else FloatSums(clients, full, row.device)
    if len(nodes) == 1:
        return Aggregator(row, sums, None, None)
    route, owed = _route(row, nodes, rank, wire_format, timeout)
    bucket_bytes = bucket_mb * 2**20 * (1 if wire_format == "full" else 2)  # two bytes go for four of the bucket's
    buckets = Buckets(sums.rows, row.numel(), sums.sent, row.device, bucket_bytes, route)
    return Aggregator(row, sums, buckets, owed)


def _route(
    row: Tensor, nodes: Sequence[int], rank: int, wire_format: Format, timeout: timedelta | None
) -> tuple[Route, Tensor | None]:
    """The way of this rank's buckets, and what rounding on it owes."""
    if not in_two_levels(nodes):
        return _across(row, None, wire_format)
    by_node = nodes_of(nodes)
    within = [group_of(ranks, timeout) for ranks in by_node]
    among = group_of([ranks[0] for ranks in by_node], timeout)
    number = next(number for number, ranks in enumerate(by_node) if rank in ranks)
    if by_node[number][0] != rank:
        return ThroughNodes(by_node[number], within[number], None), None
    across, owed = _across(row, among, wire_format)
    return ThroughNodes(by_node[number], within[number], across), owed


def _across(row: Tensor, group: dist.ProcessGroup | None, wire_format: Format) -> tuple[Route, Tensor | None]:
    if wire_format == "full":
        return AllReduce(group), None
    route = SixteenBits(row.numel(), wire_format, row.device, group)
    return route, route.error_feedback
