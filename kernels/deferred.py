"""Convolutions, norms and additions that are computed with what follows them, so that one kernel serves both.

    convolution -> BatchNorm                          the convolution returns the statistics of its result too
    norm [-> + residual] -> ReLU, ReLU6, SiLU         one norm_act
                            or Hardswish

A call returns a stand-in for its result: a tensor on the device "meta", with the result's shape and dtype. `Deferred`
knows its node, and every other use of it computes the value first. A use that Python does not show to a
TorchFunctionMode fails, because the stand-in is on another device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import copy_on_write
from .conv2d_clients.fused_operator import conv2d_stacked_fused
from .copy_on_write import in_place
from .norm_act.operator import norm_act_stacked
from .stacking import only

ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), "relu"),
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
}
ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}

SIZES = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
SIZES |= {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype")}
"""Attributes and operations that a stand-in answers without computing its value."""


class Forks:
    """The `fork` of the last convolution of each tensor, for the gradient of its other uses."""

    def __init__(self) -> None:
        self._forks: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def add(self, tensor: Tensor, fork: Tensor) -> None:
        """Remember the fork of a tensor while that exists."""
        place = id(tensor)
        self._forks[place] = weakref.ref(tensor, lambda _: self._forks.pop(place, None)), fork

    def get(self, tensor: Tensor | None) -> Tensor | None:
        """Return the fork of a tensor, or None."""
        found = self._forks.get(id(tensor))
        return None if found is None else found[1]

    def clear(self) -> None:
        """Forget all, because a tensor may have changed in place."""
        self._forks.clear()


class Convolution:
    """A stacked convolution that waits for its consumer.

    Attributes:
        input: The images [batch, in, h, w] if they are the module's own, neither cast nor padded.
        forks: Receives the convolution's fork.
        arguments: Of `conv2d_stacked`, with one client.
        counted: Whether it returned statistics.
    """

    def __init__(self, input: Tensor | None, shape: torch.Size, arguments: tuple[Any, ...], forks: Forks) -> None:
        self.shape, self.dtype, self.device = shape, arguments[0].dtype, arguments[0].device
        self.input, self.arguments, self.forks = input, arguments, forks
        self.counted = False
        self._value: Tensor | None = None

    @property
    def waits(self) -> bool:
        """Return True until the value is computed, of which there can be views then."""
        return self._value is None

    def value(self) -> Tensor:
        """Return the images [batch, out, h, w]."""
        return self.with_statistics(None)[0] if self._value is None else self._value

    def with_statistics(self, eps: float | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the images with BatchNorm's mean and rstd, or without them if the images were computed before."""
        if self._value is not None:
            return self._value, None, None
        y, mean, rstd, _, fork = conv2d_stacked_fused(*self.arguments, eps)
        if self.input is not None:
            self.forks.add(self.input, fork.squeeze(0))
        self._value, self.counted = only(y), eps is not None
        return (self._value, mean, rstd) if eps is not None else (self._value, None, None)


class Norm:
    """A norm that waits for a residual and an activation.

    Attributes:
        x: The images, perhaps a convolution that waits itself.
        affine: Weight and bias, [channels] or None.
        options: groups, eps and backend.
        deferred: Its forks, where the gradient of a residual flows that a convolution takes too, and its counts.
        residual: What is added after it, or None.
    """

    def __init__(
        self,
        x: Tensor | Convolution,
        affine: tuple[Tensor | None, Tensor | None],
        options: tuple[int, float, str],
        deferred: Deferred,
        residual: Tensor | None = None,
    ) -> None:
        self.x, self.affine, self.options, self.residual, self.deferred = x, affine, options, residual, deferred
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self._value: Tensor | None = None

    @property
    def waits(self) -> bool:
        """Return True until the value is computed: its inputs may have changed since."""
        return self._value is None

    def value(self) -> Tensor:
        """Return the result without an activation; the sum is torch's, which saves no residual for the gradients."""
        if self._value is None:
            alone = self if self.residual is None else Norm(self.x, self.affine, self.options, self.deferred)
            self._value = alone.activated("none") if self.residual is None else alone.value() + self.residual
        return self._value

    def activated(self, activation: str) -> Tensor:
        """Return the result of an activation, whose gradients need x and the residual as they are now."""
        groups, eps, backend = self.options
        mean = rstd = None
        if not isinstance(self.x, Convolution):
            x = self.x
        elif groups:
            x = self.x.value()
        else:
            x, mean, rstd = self.x.with_statistics(eps)
        self.deferred.count(self, activation)
        fork = self.deferred.forks.get(self.residual)
        residual = self.residual if fork is None or self.residual is None else self.residual.detach()
        *tensors, fork = (None if each is None else each.unsqueeze(0) for each in (*self.affine, residual, fork))
        with nullcontext() if residual is None else copy_on_write.saving():
            y, _, _ = norm_act_stacked(x.unsqueeze(0), *tensors, groups, eps, activation, backend, mean, rstd, fork)
        return only(y)

    def serves(self, activation: str) -> str:
        """Return the names of all that one call with this activation computes; empty for the norm alone."""
        parts = ["convolution"] if isinstance(self.x, Convolution) and self.x.counted else []
        parts.append("GroupNorm" if self.options[0] else "BatchNorm")
        parts += ["residual"] if self.residual is not None else []
        parts += [activation] if activation != "none" else []
        return " + ".join(parts) if len(parts) > 1 else ""

    def plus(self, residual: Tensor) -> Norm | None:
        """Return the sum with a residual as a norm that waits; None if it has to be torch's addition."""
        fits = residual.shape == self.shape and residual.dtype == self.dtype and residual.device == self.device
        if not fits or self.residual is not None or not self.waits:
            return None
        return Norm(self.x, self.affine, self.options, self.deferred, residual)


class Known:
    """A value that an operation in place has left behind a stand-in."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def value(self) -> Tensor:
        """Return it."""
        return self._value


Node = Convolution | Norm | Known


class Deferred:
    """The nodes behind the stand-ins that are still in use.

    Attributes:
        forks: Of the convolutions.
        fused: Number of calls by what one call serves.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, tuple[weakref.ref[Tensor], Node]] = {}
        self.forks = Forks()
        self.fused: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def stand_in(self, node: Convolution | Norm) -> Tensor:
        """Return a new stand-in for the value of a node."""
        stand_in = torch.empty(node.shape, dtype=node.dtype, device="meta")
        self._set(stand_in, node)
        return stand_in

    def node(self, value: Any) -> Node | None:
        """Return the node behind a stand-in; None for any other value."""
        found = self._nodes.get(id(value))
        return None if found is None else found[1]

    def settled(self, values: Any) -> Any:
        """Return a tree of values with the computed one in the place of every stand-in."""
        return tree_map_only(Tensor, self._settle, values)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Return the result of an activation or addition of a norm that waits; None for any other call."""
        activation = _activation(func, args, kwargs)
        if activation is not None:
            norm = self.node(args[0]) if args else None
            if not isinstance(norm, Norm) or not norm.waits:
                return None
            y = norm.activated(activation)
            if in_place(func, args, kwargs):
                self.replace(args[0], y)
            return y
        if func in ADDITIONS and len(args) == 2 and not kwargs:
            return self._sum(func, *args)
        return None

    def waits(self, value: Any) -> bool:
        """Return True for the stand-in of a value that is not computed yet."""
        node = self.node(value)
        return isinstance(node, Convolution | Norm) and node.waits

    def replace(self, stand_in: Tensor, value: Tensor) -> None:
        """Let a stand-in have this value from now on, as an operation in place leaves it."""
        self._nodes[id(stand_in)] = self._nodes[id(stand_in)][0], Known(self._settle(value))

    def settle_before(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compute all that waits, and copy what is saved, before an operation that may change its inputs."""
        if in_place(func, args, kwargs):
            for _, node in list(self._nodes.values()):
                node.value()
            self.forks.clear()
            copy_on_write.copy_before(func, args, kwargs)

    def count(self, norm: Norm, activation: str) -> None:
        """Count the call of norm_act for this norm if it serves anything else too."""
        name = norm.serves(activation)
        if name:
            self.fused[name] = self.fused.get(name, 0) + 1

    def _sum(self, func: Callable[..., Any], first: Any, second: Any) -> Tensor | None:
        pairs = [(first, second)] if in_place(func, (), {}) else [(first, second), (second, first)]
        for one, other in pairs:
            norm = self.node(one)
            if not isinstance(norm, Norm) or not isinstance(other, Tensor):
                continue
            total = norm.plus(self.settled(other))
            if total is None:
                continue
            if in_place(func, (), {}):
                self._nodes[id(one)] = self._nodes[id(one)][0], total
                return one
            return self.stand_in(total)
        return None

    def _set(self, stand_in: Tensor, node: Node) -> None:
        place = id(stand_in)
        self._nodes[place] = weakref.ref(stand_in, lambda _: self._nodes.pop(place, None)), node

    def _settle(self, value: Tensor) -> Tensor:
        node = self.node(value)
        return value if node is None else node.value()


def _activation(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the activation of a call by its name in norm_act; torch.nn.ReLU6 calls hardtanh."""
    if func is F.hardtanh:
        bounds = args[1:3] or (kwargs.get("min_val"), kwargs.get("max_val"))
        return "relu6" if bounds == (0.0, 6.0) else None
    return ACTIVATIONS.get(func)
