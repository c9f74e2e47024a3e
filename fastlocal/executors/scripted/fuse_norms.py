"""GroupNorms of a traced step, each with the residual and the activation that follow it, as one operation."""

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
from .nodes import memory, origin, users

aten = torch.ops.aten
SUMS, RELUS = (aten.add.Tensor, aten.add_.Tensor), (aten.relu.default, aten.relu_.default)
LANES = 16
"""Of which the channels are a multiple, see kernels/native/group_norm.cpp."""
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class FusedNorm:
    """x -> native_group_norm -> [+ residual] -> [activation], and back.

    output, given: what comes out, and the gradient of it
    grad: the gradient before the activation, which with a residual is its own too        gone: what becomes one
    """

    norm: fx.Node
    back: fx.Node
    residual: fx.Node | None
    activation: str
    output: fx.Node
    grad: fx.Node | None
    given: fx.Node
    fused_nodes: frozenset[fx.Node]

    def lines(self, name: Callable[[Any], str]) -> Iterator[tuple[fx.Node, list[str]]]:
        """(node, TorchScript that takes its place) of the way forward and the way back."""
        x, weight, bias, images, channels, _, groups, eps = self.norm.args  # as aten::native_group_norm
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
        found = {node.args[1]: name(node) for node in self.back.users}
        dx, dweight, dbias = (found.get(index, f"{own}_d{index}") for index in range(3))
        before = "None" if self.residual is None or self.grad is None else name(self.grad)
        back = [f"{dx} = torch.empty_like({own}_x)"]
        back += [f"{sums} = torch.empty([{channels}])" for sums in (dweight, dbias)]
        if before != "None":
            back.append(f"{before} = torch.empty_like({own}_x)")
        arguments = f"{name(self.given)}{layout}, {own}_x, {affine}, {residual}, {mean}, {rstd}"
        results = f"{dx}, {dweight}, {dbias}, {before}"
        back.append(f"torch.ops.fastlocal_native.group_norm_act_backward({arguments}, {results}, {options})")
        yield self.back if self.grad is None else self.grad, back


def norms_in_native(module: nn.Module) -> bool:
    """Whether a module has norms that can be fused where it computes in channels-last; compiles what does so."""
    norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
    if not any(norm.num_channels % LANES == 0 for norm in norms) or load_native() is not None:
        return False
    return native.has("group_norm_act") and native.has("group_norm_act_backward")


def find(calls: Iterable[fx.Node]) -> list[FusedNorm]:
    """What torch.ops.fastlocal_native can compute of a step's calls."""
    calls = list(calls)
    places = {node: place for place, node in enumerate(calls)}
    written = {memory(value): places[node] for node in calls for value in _written(node)}  # the last time
    found: list[FusedNorm] = []
    taken: set[fx.Node] = set()
    for back in calls:
        if back.target is not aten.native_group_norm_backward.default:
            continue
        for fused in _ways(back):
            if _is_kept(fused, places, written) and not taken & fused.fused_nodes and fused.residual not in taken:
                found.append(fused)
                taken |= fused.fused_nodes
                break
    return found


def _is_kept(fused: FusedNorm, places: dict[fx.Node, int], written: dict[Any, int]) -> bool:
    """Whether nothing changes the residual after it was added, as it is read again on the way back."""
    if fused.residual is None:
        return True
    added = min(places[node] for node in users(fused.residual) if node in fused.fused_nodes)
    return written.get(memory(fused.residual), 0) < added


def _written(node: fx.Node) -> Iterator[Any]:
    """What an operation changes in place."""
    target: Any = node.target
    if target is not operator.getitem and target._schema.is_mutable:
        for value, about in zip(node.args, target._schema.arguments, strict=False):
            if about.alias_info is not None and about.alias_info.is_write:
                yield value


def _ways(back: Any) -> Iterator[FusedNorm]:
    """How a norm can be fused, first with most of what follows it."""
    incoming, x, mean, _, _, *_, mask = back.args
    norm = origin(mean).args[0] if origin(mean).target is operator.getitem else None
    if norm is None or norm.target is not aten.native_group_norm.default or not _fits(norm) or not all(mask):
        return
    parts = {node.args[1]: node for node in norm.users}
    if any(set(users(parts[index])) - {back} for index in (1, 2) if index in parts):
        return
    value, grad = parts[0], origin(incoming)
    gone, taker = {norm, back, *parts.values(), *back.users}, back
    if grad.target is aten.clone.default and set(users(grad)) == {back}:  # torch 2.13 lays a gradient out anew
        gone, taker, grad = gone | {grad}, grad, origin(grad.args[0])
    for plus, residual in _sums(value, x):
        for output, kind, given in _activations(plus, grad, x):
            yield FusedNorm(norm, back, residual, kind, output, grad, given, frozenset(gone | {plus, output, grad}))
    for output, kind, given in _activations(value, grad, x):
        if set(users(grad)) == {taker}:
            yield FusedNorm(norm, back, None, kind, output, None, given, frozenset(gone | {output, grad}))
    if _like(grad, x):
        yield FusedNorm(norm, back, None, "none", value, None, grad, frozenset(gone))


def _sums(value: Any, x: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(the sum, the other summand) where `value` goes into nothing but a sum of two alike, or is added to in place."""
    takers = list(users(value))
    if len(takers) == 1 and takers[0].target in SUMS and not takers[0].kwargs:
        if takers[0].target is aten.add_.Tensor and origin(takers[0].args[0]) is not value:
            return
        others = [origin(node) for node in takers[0].args if isinstance(node, fx.Node) and origin(node) is not value]
        if len(others) == 1 and _like(others[0], x) and _like(takers[0], x):
            yield takers[0], others[0]


def _activations(before: Any, grad: Any, x: Any) -> Iterator[tuple[fx.Node, str, fx.Node]]:
    """(output, kind, gradient that comes in) of the activation that is all that `before` goes into."""
    takers = set(users(before))
    if grad.target is aten.silu_backward.default and origin(grad.args[1]) is before:
        after, kind = [node for node in takers if node.target is aten.silu.default], "silu"
        takers.discard(grad)
    elif grad.target is aten.threshold_backward.default and grad.args[2] == 0:
        after, kind = [node for node in takers if node.target in RELUS], "relu"
        after = [node for node in after if origin(grad.args[1]) is node]
    else:
        return
    given = origin(grad.args[0])
    if len(after) == 1 and takers == set(after) and _like(given, x):
        yield after[0], kind, given


def _fits(norm: Any) -> bool:
    """Whether the operation takes these images."""
    x, weight, bias, _, channels, _, groups, _ = norm.args
    about = _about(x)
    if about is None or weight is None or bias is None or channels % LANES or channels % groups:
        return False
    last = len(about.shape) == 4 and about.memory_format is torch.channels_last
    affine = [_about(node) for node in (weight, bias)]
    return last and about.dtype in DTYPES and all(one is not None and one.dtype is torch.float32 for one in affine)


def _like(node: fx.Node, x: Any) -> bool:
    one, other = _about(node), _about(x)
    return one is not None and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)


def _about(node: Any) -> Any:
    return origin(node).meta.get("tensor_meta")
