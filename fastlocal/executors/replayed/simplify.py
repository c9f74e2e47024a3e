"""Fewer operations for the same results: no views that change nothing, no constants computed anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .recorder import VALUE, Recording

aten = torch.ops.aten
VIEWS = {aten.alias.default, aten.detach.default, aten.expand.default, aten.permute.default, aten.select.int}
VIEWS |= {aten.slice.Tensor, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.transpose.int}
VIEWS |= {aten.unsqueeze.default, aten.view.default, aten._unsafe_view.default}
"""Operations that give the memory of their argument another shape."""
FACTORIES = {aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.new_zeros.default}
FACTORIES |= {aten.new_ones.default, aten.new_full.default, aten.scalar_tensor.default, aten.full.default}
FACTORIES |= {aten.zeros.default, aten.ones.default, aten.arange.default}
"""Operations that read no values of tensors."""


def simplify(recording: Recording) -> None:
    """Simplify a recording in place; one with an operation that writes to its arguments stays as it is."""
    graph = recording.graph
    if any(_writes(node) for node in graph.nodes):
        return
    _shorten_views(graph)
    graph.eliminate_dead_code()
    _fold_constants(recording)
    graph.eliminate_dead_code()


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _of(node: fx.Node) -> Any:
    return node.meta[VALUE]


def _shorten_views(graph: fx.Graph) -> None:
    """Replace a sequence of views by the tensor that they end at, or by one view of an earlier tensor."""
    for node in graph.nodes:
        earlier: Any = node
        while earlier.target in VIEWS:
            earlier = earlier.args[0]
            if _is_same(_of(earlier), _of(node)):
                node.replace_all_uses_with(earlier)
            elif earlier is not node.args[0] and _is_view(_of(earlier), _of(node)):
                node.target, node.args, node.kwargs = aten.view.default, (earlier, list(_of(node).shape)), {}


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors in one memory have the same elements."""
    if one.shape != other.shape or one.data_ptr() != other.data_ptr():
        return False
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size < 2 or step == others for size, step, others in strides)


def _is_view(base: Tensor, result: Tensor) -> bool:
    """Return True if base.view(result.shape) is the result."""
    try:
        return _is_same(base.view(result.shape), result)
    except RuntimeError:  # other strides, or another number of elements
        return False


def _fold_constants(recording: Recording) -> None:
    """Make constants of what depends on constants and shapes alone."""
    graph, constant = recording.graph, set(recording.constant_nodes)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        if node.target in FACTORIES or (inputs and constant.issuperset(inputs)):
            constant.add(node)
    for node in list(graph.nodes):
        if node in constant and node.op == "call_function" and not constant.issuperset(node.users):
            node.replace_all_uses_with(recording.add_constant(_of(node)))
