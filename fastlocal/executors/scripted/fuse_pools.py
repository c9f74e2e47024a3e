"""Fuse maximum pooling of a traced step with the ReLU before or after it, and with a change of the memory layout."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fastlocal.kernels.native import ACTIVATIONS

from .nodes import RELUS, memory, meta, name, origin, users

aten = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16)
WINDOW = 128
"""Pixels of a window, at most, in kernels/native/max_pool.cpp."""


@dataclass(frozen=True)
class FusedPool:
    """x -> max_pool2d_with_indices and ReLU, in any order, or without the ReLU -> [contiguous copy], and back.

    Attributes:
        x: Node of the images, before the ReLU.
        pool: Node of max_pool2d_with_indices.
        window: Kernel, stride and padding, each of both axes.
        activation: Name of the activation, "none" without one.
        output: Node of the result.
        is_contiguous: Whether the result is contiguous, for rows of a linear map, and not channels-last.
        grad: Node of the gradient of x.
        grad_output: Node of the gradient of `output`.
        fused_nodes: All nodes that the two fused operations replace.
    """

    x: Any
    pool: fx.Node
    window: tuple[list[int], list[int], list[int]]
    activation: str
    output: fx.Node
    is_contiguous: bool
    grad: fx.Node
    grad_output: Any
    fused_nodes: frozenset[fx.Node]

    def lines(self) -> Iterator[tuple[fx.Node, list[str]]]:
        """Yield (node, TorchScript that replaces it) of the forward and of the backward pass."""
        own, y, dx = name(self.pool), name(self.output), name(self.grad)
        shape = list(self.output.meta["tensor_meta"].shape)
        layout = "contiguous_format" if self.is_contiguous else "channels_last"
        window = ", ".join(map(str, self.window))
        arguments = f"{own}_x, {y}, {own}_places, {window}, {ACTIVATIONS[self.activation]}"
        yield (
            self.output,
            [
                f"{own}_x = {name(self.x)}.contiguous(memory_format=torch.channels_last)",
                f"{y} = torch.empty({shape}, dtype={own}_x.dtype, memory_format=torch.{layout})",
                f"{own}_places = torch.empty([{math.prod(shape)}], dtype=torch.uint8)",
                f"torch.ops.fastlocal_native.max_pool_act({arguments})",
            ],
        )
        arguments = f"{name(self.grad_output)}, {own}_places, {dx}, {window}"
        yield (
            self.grad,
            [
                f"{dx} = torch.empty_like({own}_x)",
                f"torch.ops.fastlocal_native.max_pool_act_backward({arguments})",
            ],
        )


def find(calls: Iterable[fx.Node], fused: Collection[fx.Node]) -> Iterator[FusedPool]:
    """Yield the poolings of a step that torch.ops.fastlocal_native computes; `fused` are nodes of other fusions."""
    used = set(fused)
    for back in calls:
        if back.target is aten.max_pool2d_with_indices_backward.default:
            pool = _pool(back)
            if pool is not None:
                pool = _contiguous(_with_relu(pool, used))
                used |= pool.fused_nodes
                yield pool


def _pool(back: Any) -> FusedPool | None:
    """Return the pooling that a node is the gradient of, without a ReLU, if the fused operation supports it."""
    grad, x, kernel, stride, padding, dilation, _, indices = back.args
    pool, images = origin(indices).args[0], meta(x)
    kernel, stride, padding = (list(one) * (2 // len(one)) for one in (kernel, stride or kernel, padding))
    if images is None or len(images.shape) != 4 or images.memory_format is not torch.channels_last:
        return None
    if images.dtype not in DTYPES or not _is_of(grad, images.dtype):
        return None
    if set(dilation) != {1} or math.prod(kernel) > WINDOW:
        return None
    parts = {node.args[1]: node for node in pool.users}
    if set(users(parts[1])) != {back}:
        return None
    nodes = frozenset({pool, back, *parts.values()})
    window = kernel, stride, padding
    return FusedPool(origin(x), pool, window, "none", parts[0], False, back, origin(grad), nodes)


def _with_relu(pool: FusedPool, fused: Collection[fx.Node]) -> FusedPool:
    """Return a pooling with the ReLU before or after it, if there is one that nothing else needs."""
    value, back, incoming = pool.x, pool.grad, pool.grad_output
    gradients, consumers = list(users(back)), list(users(pool.output))
    if value.target in RELUS and value not in fused and len(gradients) == 1 and _is_slope(gradients[0], value):
        before, grad = origin(value.args[0]), gradients[0]
        # nothing else may write to the ReLU's argument before the pooling reads it: no view, and no other user
        owner = before.args[0] if before.target is operator.getitem else before
        own = memory(before) is owner and set(users(before)) == {value}
        if own and set(users(value)) == {pool.pool, back, grad} and origin(grad.args[0]) is back:
            return _extended(pool, value, grad, x=before, grad=grad)
    relu = next((node for node in consumers if node.target in RELUS and node not in fused), None)
    if relu is not None and len(consumers) == 1 and _is_slope(incoming, relu) and set(users(incoming)) == {back}:
        outer = origin(incoming.args[0])
        if _is_of(outer, meta(value).dtype):
            return _extended(pool, relu, incoming, output=relu, grad_output=outer)
    return pool


def _extended(pool: FusedPool, relu: fx.Node, slope: fx.Node, **changes: Any) -> FusedPool:
    return dataclasses.replace(pool, activation="relu", fused_nodes=pool.fused_nodes | {relu, slope}, **changes)


def _contiguous(pool: FusedPool) -> FusedPool:
    """Return a pooling with the contiguous copy of its result, if nothing else needs the result."""
    consumers = set(users(pool.output)) - pool.fused_nodes
    copy = next(iter(consumers), None)
    if copy is None or len(consumers) > 1 or copy.target is not aten.clone.default:
        return pool
    if copy.kwargs.get("memory_format") is not torch.contiguous_format:
        return pool
    nodes = pool.fused_nodes | {copy}
    return dataclasses.replace(pool, output=copy, is_contiguous=True, fused_nodes=nodes)


def _is_slope(node: Any, relu: fx.Node) -> bool:
    """Return True if a node is the gradient before a ReLU."""
    return node.target is aten.threshold_backward.default and node.args[2] == 0 and origin(node.args[1]) is relu


def _is_of(node: Any, dtype: torch.dtype) -> bool:
    known = meta(node)
    return known is not None and known.dtype is dtype
