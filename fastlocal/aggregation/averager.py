"""Mean over all clients of all ranks: sums chunk by chunk, communication bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fastlocal.kernels.transfers import to_device

from .buckets import ALIGNED, Buckets
from .compressed_route import CompressedRoute
from .routes import AllReduce, HierarchicalRoute, Route, is_hierarchical, new_group, ranks_by_node
from .sums import FixedSums, FloatSums, Sums

Format = Literal["full", "bf16", "fp16"]
"""Number format on the wire."""
FEEDBACK = "owed to the mean"
"""Name of the error feedback in resume.pt."""
IN_CACHE = 2**16
"""Numbers that a core adds at a time: in float64 they fit into its L2 cache. A chunk of one client with 25 million
parameters takes a third of the time of a single pass.
"""

IN_MEMORY = 32 * 2**20
"""Bytes of one float64 copy of a chunk's columns on a GPU; fixed-order sums hold up to five at once."""


class Aggregator:
    """Mean of each round: `accumulate` every chunk, `start`, `finish`.

    If a collective fails, because a rank is missing or the group's timeout is over, `start` or `finish` raises
    torch.distributed's RuntimeError, and the object is no longer usable.
    """

    def __init__(self, row: Tensor, sums: Sums, buckets: Buckets | None, error_feedback: Tensor | None) -> None:
        self._arithmetic, self._buckets, self._error_feedback = sums, buckets, error_feedback
        self._sums = torch.zeros(sums.rows, row.numel(), dtype=torch.float64, device=row.device)
        self._added = torch.zeros((), dtype=torch.float64)
        self._stale = True  # the sums are empty or those of the previous round
        self._last: Tensor | None = None
        self._last_weights: Tensor | None = None
        self._block: Tensor | None = None
        self._residual: Tensor | None = None
        self._mean = self._sums[0]

    def accumulate(self, params: Tensor, last: bool = False, weights: Tensor | None = None) -> None:
        """Add the clients of a chunk.

        Args:
            params: [clients, n_params].
            weights: float64 [clients] on the CPU, or None for 1.
            last: Whether this is the round's last chunk and `params` stays unchanged until `finish`; it is then read
                bucket by bucket, while other buckets are on the way.
        """
        self._flush()
        self._added += len(params) if weights is None else weights.sum()
        weights = None if weights is None else to_device(weights, params.device)
        if last:
            self._last, self._last_weights = params, weights
        else:
            self._accumulate(params, weights)

    def partial_sums(self) -> dict[str, Tensor]:
        """Return the sums of the round so far, as live references.

        Added up over ranks, name by name, they are the sums of a single rank with all clients.
        """
        self._flush()
        if self._stale:
            self._sums.zero_()
            self._stale = False
        return {"sums so far": self._sums, "clients so far": self._added}

    def error_feedback(self) -> dict[str, Tensor]:
        """Return the error-feedback residual of 16-bit compression (a live reference), or {}.

        As in `partial_sums`, one rank may take over the sum of several ranks' residuals.
        """
        residual = self._residual if self._error_feedback is None else self._error_feedback
        return {} if residual is None else {FEEDBACK: residual}

    def load_residual(self, residual: Tensor) -> None:
        """Load a residual [n_params] of `error_feedback`; without compression it is added in the next round."""
        if self._error_feedback is None:
            self._residual = residual.to(self._sums.device, copy=True)
        else:
            self._error_feedback.copy_(residual)

    def start(self, row: Tensor, total: float, weight: float | None = None) -> None:
        """Begin to add up the ranks' sums, and return before the end.

        Args:
            total: Weight of all clients of all ranks in this round: their number without weights.
            weight: Sum of all ranks' weights if that is not `total`: the mean is then `row` plus the weighted changes
                over `total`.
            row: [n_params], start of all clients in this round, alike on every rank. Leave it alone until `finish`,
                which may write the mean there to save a pass over memory.
        """
        if self._residual is not None:
            self.partial_sums()["sums so far"][0] += self._residual
            self._residual = None
        added, rest = float(self._added), 0.0 if weight is None else (total - weight) / total
        if self._buckets is None:
            self._mean = self._local_mean(row, added, total)
            if rest:
                self._mean.add_(row, alpha=rest)
        else:
            in_place = self._arithmetic.rows == 1 and self._arithmetic.wire_dtype == row.dtype
            mean = row if in_place else self._sums[0]
            rest = 0.0 if self._arithmetic.of_changes else rest

            def read(wire: Tensor, columns: slice) -> None:
                self._arithmetic.from_wire(wire, row[columns], mean[columns], total)
                if rest:
                    mean[columns].add_(row[columns], alpha=rest)

            self._buckets.start(lambda wire, columns: self._fill(wire, columns, row, added), read)
            self._mean = mean
        self._added.zero_()
        self._last = self._last_weights = None

    def finish(self) -> Tensor:
        """Return the mean [n_params], bit-identical on every rank.

        It is valid until the next `accumulate` or `start`: either in float64, or rounded to the row's dtype and then
        written to the `row` of `start`.
        """
        if self._buckets is not None:
            self._buckets.wait()
        self._stale = True
        return self._mean

    def _local_mean(self, row: Tensor, added: float, total: float) -> Tensor:
        """Return the mean of a single rank."""
        alone = total == 1 and self._is_one_client(added)
        if alone and self._stale and self._last is not None and self._arithmetic.rows == 1:
            return row.copy_(self._last[0])  # a third of the time of the sums
        self._flush()
        return self._arithmetic.finalize_local(self._sums, total)

    def _is_one_client(self, added: float) -> bool:
        """Return True if the last chunk is a single client of weight 1, and the only one so far."""
        return added == 1 and self._last is not None and len(self._last) == 1

    def _flush(self) -> None:
        """Add the last chunk if it is still unread."""
        if self._last is not None:
            self._accumulate(self._last, self._last_weights)
            self._last = self._last_weights = None

    def _accumulate(self, params: Tensor, weights: Tensor | None) -> None:
        for columns in self._blocks(slice(0, params.shape[1]), params):
            sums = self._sums[:, columns]
            if self._stale:
                sums.zero_()
            self._arithmetic.accumulate(params[:, columns], sums, weights)
        self._stale = False

    def _fill(self, wire: Tensor, columns: slice, row: Tensor, added: float) -> None:
        """Write this rank's part of a bucket."""
        last = self._last
        if last is not None and self._stale and self._is_one_client(added):
            if self._arithmetic.client_to_wire(last[0, columns], row[columns], wire):
                return
        for block in self._blocks(columns, last):
            sums = self._sums[:, block]
            if self._stale:
                sums = sums.zero_() if last is None else self._scratch(block).zero_()
            if last is not None:
                self._arithmetic.accumulate(last[:, block], sums, self._last_weights)
            part = wire[:, block.start - columns.start : block.stop - columns.start]
            self._arithmetic.to_wire(sums, row[block], added, part)

    def _scratch(self, block: slice) -> Tensor:
        """Return scratch memory for the sums of a block."""
        size = block.stop - block.start
        if self._block is None or self._block.shape[1] < size:
            self._block = torch.empty(len(self._sums), size, dtype=self._sums.dtype, device=self._sums.device)
        return self._block[:, :size]

    def _blocks(self, columns: slice, params: Tensor | None) -> Iterator[slice]:
        """Split the columns so that a block's temporaries fit into a CPU's cache, or into IN_MEMORY bytes on a GPU.

        Sums without temporaries need no split on a GPU.
        """
        step, rows = columns.stop, self._arithmetic.scratch_rows(0 if params is None else len(params))
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
    """Make the aggregator of one rank. Every rank must call this, because it may create process groups.

    Args:
        row: [n_params], whose dtype and device the aggregator takes.
        clients: Greatest number of clients of all ranks in a round.
        nodes: Node of every rank; several ranks use torch.distributed's default group.
        rank: This rank.
        bucket_mb: MiB of a bucket on the wire.
        wire_format: Number format between nodes; "full" is the row's dtype, which is also used within a node.
        reduce_order: "fixed" gives the same bits for any number of ranks and any chunks; requires "full".
        timeout: Of new groups; None: torch's default.
    """
    assert wire_format == "full" or reduce_order == "any"
    full = torch.float32 if wire_format != "full" else row.dtype
    sums: Sums = FixedSums(clients) if reduce_order == "fixed" else FloatSums(full, row.device)
    if len(nodes) == 1:
        return Aggregator(row, sums, None, None)
    route, error_feedback = _route(row, nodes, rank, wire_format, timeout)
    bucket_bytes = bucket_mb * 2**20 * (1 if wire_format == "full" else 2)  # 2 bytes on the wire per 4-byte value
    buckets = Buckets(sums.rows, row.numel(), sums.wire_dtype, row.device, bucket_bytes, route)
    return Aggregator(row, sums, buckets, error_feedback)


def _route(
    row: Tensor, nodes: Sequence[int], rank: int, wire_format: Format, timeout: timedelta | None
) -> tuple[Route, Tensor | None]:
    """Return the route of this rank's buckets and its error feedback, or None."""
    if not is_hierarchical(nodes):
        return _across(row, None, wire_format)
    by_node = ranks_by_node(nodes)
    within = [new_group(ranks, timeout) for ranks in by_node]
    among = new_group([ranks[0] for ranks in by_node], timeout)
    number = next(number for number, ranks in enumerate(by_node) if rank in ranks)
    if by_node[number][0] != rank:
        return HierarchicalRoute(by_node[number], within[number], None), None
    across, error_feedback = _across(row, among, wire_format)
    return HierarchicalRoute(by_node[number], within[number], across), error_feedback


def _across(row: Tensor, group: dist.ProcessGroup | None, wire_format: Format) -> tuple[Route, Tensor | None]:
    if wire_format == "full":
        return AllReduce(group), None
    route = CompressedRoute(row.numel(), wire_format, row.device, group)
    return route, route.error_feedback
