"""The way of a bucket through the ranks, as a generator: it starts a collective, yields it, and is resumed after it.

Every rank walks its buckets in the same order, so that each group sees the same collectives in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

Steps = Iterator[dist.Work]
Route = Callable[[Tensor, slice], Steps]
"""Of wire [rows, columns], the bucket that holds the given columns of the parameters: turn it into the ranks' sum."""


class AllReduce:
    """One all-reduce. gloo and NCCL give every rank the same bits: each element is summed in one place."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def __call__(self, wire: Tensor, columns: slice) -> Steps:
        yield work(dist.all_reduce(wire, group=self._group, async_op=True))


class ThroughNodes:
    """Sum within each node on its first rank, go `across` among the first ranks, hand the result out in the node.

    node: the ranks of this node, the first one first        group: theirs, or None where there is one
    across: the route among the nodes' first ranks, or None where this is not one
    """

    def __init__(self, node: Sequence[int], group: dist.ProcessGroup | None, across: Route | None) -> None:
        self._first, self._group, self._across = node[0], group, across

    def __call__(self, wire: Tensor, columns: slice) -> Steps:
        if self._group is not None:
            yield work(dist.reduce(wire, dst=self._first, group=self._group, async_op=True))
        if self._across is not None:
            yield from self._across(wire, columns)
        if self._group is not None:
            yield work(dist.broadcast(wire, src=self._first, group=self._group, async_op=True))


def nodes_of(nodes: Sequence[int]) -> list[list[int]]:
    """The ranks of every node, in the order of their first ranks."""
    found: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        found.setdefault(node, []).append(rank)
    return list(found.values())


def in_two_levels(nodes: Sequence[int]) -> bool:
    """Whether there is more than one node, and a node with more than one rank."""
    return 1 < len(set(nodes)) < len(nodes)


def group_of(ranks: Sequence[int], timeout: timedelta | None) -> dist.ProcessGroup | None:
    """Theirs, None for a single one. Every rank of the run has to call it, in the same order."""
    if len(ranks) == 1:
        return None
    group = dist.new_group(list(ranks), timeout=timeout)
    return group if isinstance(group, dist.ProcessGroup) else None


def work(started: dist.Work | None) -> dist.Work:
    """What an asynchronous collective gives a member of its group."""
    assert started is not None
    return started
