"""Routes of a bucket through the ranks, as generators that yield each collective and resume after it.

Every rank advances its buckets in the same order, so that each group sees the same sequence of collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

Steps = Iterator[dist.Work]
Route = Callable[[Tensor, slice], Steps]
"""Called with wire [rows, columns] and the bucket's columns: replaces the wire by its sum over the ranks."""


class AllReduce:
    """One all-reduce. gloo and NCCL give every rank the same bits: each element is summed on one rank."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def __call__(self, wire: Tensor, columns: slice) -> Steps:
        yield as_work(dist.all_reduce(wire, group=self._group, async_op=True))


class HierarchicalRoute:
    """Reduce within each node, communicate among the nodes' first ranks, and broadcast within each node.

    Args:
        node: Ranks of this node, its first rank first.
        group: Their process group, or None for a single rank.
        across: Route among the nodes' first ranks, or None on other ranks.
    """

    def __init__(self, node: Sequence[int], group: dist.ProcessGroup | None, across: Route | None) -> None:
        self._first, self._group, self._across = node[0], group, across

    def __call__(self, wire: Tensor, columns: slice) -> Steps:
        if self._group is not None:
            yield as_work(dist.reduce(wire, dst=self._first, group=self._group, async_op=True))
        if self._across is not None:
            yield from self._across(wire, columns)
        if self._group is not None:
            yield as_work(dist.broadcast(wire, src=self._first, group=self._group, async_op=True))


def ranks_by_node(nodes: Sequence[int]) -> list[list[int]]:
    """Return the ranks of every node, ordered by their first rank."""
    found: dict[int, list[int]] = {}
    for rank, node in enumerate(nodes):
        found.setdefault(node, []).append(rank)
    return list(found.values())


def is_hierarchical(nodes: Sequence[int]) -> bool:
    """Return True if there are several nodes, and one with several ranks."""
    return 1 < len(set(nodes)) < len(nodes)


def new_group(ranks: Sequence[int], timeout: timedelta | None) -> dist.ProcessGroup | None:
    """Create a process group, or return None for a single rank. Every rank must call this in the same order."""
    if len(ranks) == 1:
        return None
    group = dist.new_group(list(ranks), timeout=timeout)
    return group if isinstance(group, dist.ProcessGroup) else None


def as_work(handle: dist.Work | None) -> dist.Work:
    """Narrow the handle of an asynchronous collective, which is None only outside its group."""
    assert handle is not None
    return handle
