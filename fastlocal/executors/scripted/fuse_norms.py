"""Fuse GroupNorms of a traced step with the residual and the activation that follow them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fastlocal.kernels import native
from fastlocal.kernels.native import ACTIVATIONS

from ...kernel_trial.kernels_tried import load_native
from .nodes import RELUS, memory, meta, origin, users

aten = torch.ops.aten
SUMS = (aten.add.Tensor, aten.add_.Tensor)
LANES = 16
"""Vector width of kernels/native/group_norm.cpp; the channels must be a multiple of it."""
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class FusedNorm:
    """x -> native_group_norm -> [+ residual] -> [activation], and back.

    Attributes:
        norm: Node of native_group_norm.
        back: Node of native_group_norm_backward.
        residual: Node of the residual, or None.
        activation: Name of the activation, "none" without one.
        output: Node of the result.
        grad: Node of the gradient before the activation, which is also the gradient of the residual; None without an
            activation and a residual.
        grad_output: Node of the gradient of `output`.
        fused_nodes: All nodes that the two fused operations replace.
    """

    norm: fx.Node
    back: fx.Node
    residual: fx.Node | None
    activation: str
    output: fx.Node
    grad: fx.Node | None
    grad_output: fx.Node
    fused_nodes: frozenset[fx.Node]

    def lines(self, name: Callable[[Any], str]) -> Iterator[tuple[fx.Node, list[str]]]:
        """Yield (node, TorchScript that replaces it) of the forward and of the backward pass."""
        x, weight, bias, images, channels, _, groups, eps = self.norm.args  # arguments of aten::native_group_norm
        own = name(self.norm)
        mean, rstd, options = f"{own}_mean", f"{own}_rstd", f"{groups}, {ACTIVATIONS[self.activation]}"
        layout = ".contiguous(memory_format=torch.channels_last)"
        affine = f"{name(weight)}, {name(bias)}"
        residual = "None" if self.residual is None else f"{name(self.residual)}{layout}"
        forward = [f"{mean} = torch.empty([{images} * {groups}])", f"{rstd} = torch.empty([{images} * {groups}])"]
        forward += [f"{own}_x = {name(x)}{layout}", f"{name(self.output)} = torch.empty_like({own}_x)"]
        arguments = f"{own}_x, {affine}, {residual}, {name(self.output)}, {mean}, {rstd}"
        forward.append(
            f"torch.ops.fastlocal_native.group_norm_act({arguments}, {groups}, {eps!r}, {ACTIVATIONS[self.activation]})"
        )
        yield self.output, forward
        results = {node.args[1]: name(node) for node in self.back.users}
        dx, dweight, dbias = (results.get(index, f"{own}_d{index}") for index in range(3))
        before = "None" if self.residual is None or self.grad is None else name(self.grad)
        back = [f"{dx} = torch.empty_like({own}_x)"]
        back += [f"{sums} = torch.empty([{channels}])" for sums in (dweight, dbias)]
        if before != "None":
            back.append(f"{before} = torch.empty_like({own}_x)")
        arguments = f"{name(self.grad_output)}{layout}, {own}_x, {affine}, {residual}, {mean}, {rstd}"
        arguments += f", {dx}, {dweight}, {dbias}, {before}, {options}"
        back.append(f"torch.ops.fastlocal_native.group_norm_act_backward({arguments})")
        yield self.back if self.grad is None else self.grad, back


def norms_in_native(module: nn.Module) -> bool:
    """Return True if a module has norms that can be fused in channels-last; compiles the C++ library if so."""
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    if not any(norm.num_channels % LANES == 0 for norm in norms) or load_native() is not None:
        return False
    return native.has("group_norm_act") and native.has("group_norm_act_backward")


def find(calls: Iterable[fx.Node]) -> list[FusedNorm]:
    """Find the norms of a step that torch.ops.fastlocal_native computes."""
    calls = list(calls)
    places = {node: place for place, node in enumerate(calls)}
    last_writes = {memory(value): places[node] for node in calls for value in _mutated(node)}
    norms: list[FusedNorm] = []
    used: set[fx.Node] = set()
    for back in calls:
        if back.target is not aten.native_group_norm_backward.default:
            continue
        for fused in _fusions(back):
            if _is_constant(fused, places, last_writes) and not used & fused.fused_nodes and fused.residual not in used:
                norms.append(fused)
                used |= fused.fused_nodes
                break
    return norms


def _is_constant(fused: FusedNorm, places: dict[fx.Node, int], last_writes: dict[Any, int]) -> bool:
    """Return True if no node writes to the residual after the addition; the backward pass reads it again."""
    if fused.residual is None:
        return True
    added = min(places[node] for node in users(fused.residual) if node in fused.fused_nodes)
    return last_writes.get(memory(fused.residual), 0) < added


def _mutated(node: fx.Node) -> Iterator[Any]:
    """Yield the arguments that an operation changes in place."""
    target: Any = node.target
    if target is not operator.getitem and target._schema.is_mutable:
        for value, argument in zip(node.args, target._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                yield value


def _fusions(back: Any) -> Iterator[FusedNorm]:
    """Yield the possible fusions of a norm, the one with most operations first."""
    incoming, x, mean, _, _, *_, mask = back.args
    norm = origin(mean).args[0] if origin(mean).target is operator.getitem else None
    if norm is None or norm.target is not aten.native_group_norm.default or not _fits(norm) or not all(mask):
        return
    parts = {node.args[1]: node for node in norm.users}
    if any(set(users(parts[index])) - {back} for index in (1, 2) if index in parts):
        return
    value, grad = parts[0], origin(incoming)
    fused, consumer = {norm, back, *parts.values(), *back.users}, back
    if grad.target is aten.clone.default and set(users(grad)) == {back}:  # torch 2.13 copies a gradient to its layout
        fused, consumer, grad = fused | {grad}, grad, origin(grad.args[0])
    for plus, residual in _sums(value, x):
        for output, kind, grad_output in _activations(plus, grad, x):
            nodes = frozenset(fused | {plus, output, grad})
            yield FusedNorm(norm, back, residual, kind, output, grad, grad_output, nodes)
    for output, kind, grad_output in _activations(value, grad, x):
        if set(users(grad)) == {consumer}:
            yield FusedNorm(norm, back, None, kind, output, None, grad_output, frozenset(fused | {output, grad}))
    if _like(grad, x):
        yield FusedNorm(norm, back, None, "none", value, None, grad, frozenset(fused))


def _sums(value: Any, x: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield (sum, residual) if the only consumer of `value` adds one other tensor of its shape to it."""
    consumers = list(users(value))
    if len(consumers) == 1 and consumers[0].target in SUMS and not consumers[0].kwargs:
        total = consumers[0]
        if total.target is aten.add_.Tensor and origin(total.args[0]) is not value:
            return
        others = [origin(node) for node in total.args if isinstance(node, fx.Node) and origin(node) is not value]
        if len(others) == 1 and _like(others[0], x) and _like(total, x):
            yield total, others[0]


def _activations(before: Any, grad: Any, x: Any) -> Iterator[tuple[fx.Node, str, fx.Node]]:
    """Yield (output, kind, gradient of the output) of an activation that is the only consumer of `before`."""
    consumers = set(users(before))
    if grad.target is aten.silu_backward.default and origin(grad.args[1]) is before:
        after, kind = [node for node in consumers if node.target is aten.silu.default], "silu"
        consumers.discard(grad)
    elif grad.target is aten.threshold_backward.default and grad.args[2] == 0:
        after, kind = [node for node in consumers if node.target in RELUS], "relu"
        after = [node for node in after if origin(grad.args[1]) is node]
    else:
        return
    grad_output = origin(grad.args[0])
    if len(after) == 1 and consumers == set(after) and _like(grad_output, x):
        yield after[0], kind, grad_output


def _fits(norm: Any) -> bool:
    """Return True if the fused operation supports the norm's images and parameters."""
    x, weight, bias, _, channels, _, groups, _ = norm.args
    images = meta(x)
    if images is None or weight is None or bias is None or channels % LANES or channels % groups:
        return False
    last = len(images.shape) == 4 and images.memory_format is torch.channels_last
    affine = [meta(node) for node in (weight, bias)]
    return last and images.dtype in DTYPES and all(one is not None and one.dtype is torch.float32 for one in affine)


def _like(node: fx.Node, x: Any) -> bool:
    """Return True if the shapes and dtypes of two nodes are known and equal."""
    one, other = meta(node), meta(x)
    return one is not None and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)
