"""Fuse the cross-entropy of a traced step and its gradient into one operation."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .nodes import name, origin, users

aten = torch.ops.aten
MEAN = 1


@dataclass(frozen=True)
class FusedLoss:
    """log_softmax(outputs) -> nll_loss_forward -> loss, and back to the gradient of the outputs.

    Attributes:
        node: The node in whose place the fused operation runs.
        fused_nodes: The other nodes that it replaces.
    """

    node: fx.Node
    outputs: fx.Node
    targets: fx.Node
    ignored: int
    loss: fx.Node
    grad: fx.Node
    fused_nodes: frozenset[fx.Node]

    def lines(self) -> list[str]:
        """Return the TorchScript that replaces `node`."""
        outputs, loss, grad = f"{name(self.outputs)}.contiguous()", name(self.loss), name(self.grad)
        arguments = f"{outputs}, {name(self.targets)}.contiguous(), {loss}, {grad}, {self.ignored}"
        return [
            f"{loss} = {name(self.outputs)}.new_empty([])",
            f"{grad} = torch.empty_like({outputs})",
            f"torch.ops.fastlocal_native.cross_entropy({arguments})",
        ]


def find(calls: Iterable[fx.Node]) -> list[FusedLoss]:
    """Find the mean losses of float32 outputs [samples, classes] that torch.ops.fastlocal_native computes."""
    ends = (node for node in calls if node.target is aten._log_softmax_backward_data.default)
    return [loss for end in ends if (loss := _loss(end)) is not None]


def _loss(grad: Any) -> FusedLoss | None:
    back, log_softmax = map(origin, grad.args[:2])
    if back.target is not aten.nll_loss_backward.default or log_softmax.target is not aten._log_softmax.default:
        return None
    outputs, axis, _ = log_softmax.args
    ones, _, targets, weight, reduction, ignored, total = back.args
    ones, total = origin(ones), origin(total)
    meta, target_meta = (origin(node).meta.get("tensor_meta") for node in (outputs, targets))
    if meta is None or meta.dtype != torch.float32 or len(meta.shape) != 2 or axis not in (1, -1):
        return None
    if target_meta is None or target_meta.dtype != torch.int64:
        return None
    if weight is not None or reduction != MEAN or ones.target is not aten.ones_like.default:
        return None
    loss = origin(ones.args[0])
    if {loss.target, total.target} != {operator.getitem} or (loss.args[1], total.args[1]) != (0, 1):
        return None
    forward = loss.args[0]
    same = forward.target is aten.nll_loss_forward.default and forward is total.args[0]
    if not same or [*map(origin, forward.args[:2])] != [log_softmax, origin(targets)]:
        return None
    # the loss is no inner node: it is an output of the step, and other nodes may use it
    inner = {log_softmax: {forward, back, grad}, forward: {loss, total}, total: {back}, ones: {back}, back: {grad}}
    if any(not consumers.issuperset(users(node)) for node, consumers in inner.items()):
        return None
    return FusedLoss(forward, outputs, targets, ignored, loss, grad, frozenset({*inner, loss, grad} - {forward}))
