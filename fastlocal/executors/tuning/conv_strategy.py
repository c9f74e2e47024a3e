"""Strategies of the convolutions of a stacked module, and their text in --conv-strategy."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastlocal import kernels
from fastlocal.kernels import functional
from fastlocal.kernels.conv2d_clients.operator import CONVOLUTIONS, STRATEGIES

from ...common.errors import UsageError, nearest

Strategies = str | Mapping[str, str]
"""One strategy for all convolutions, or {layer: strategy} with "auto" for layers that are missing."""


def convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the layers that have a strategy, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}


def parse_strategies(text: str, module: nn.Module, device: torch.device) -> Strategies:
    """Parse --conv-strategy: comma-separated `layer=strategy` pairs, and one strategy for all other layers.

    Raises:
        UsageError: A strategy or a layer does not exist, or "triton" does not work on `device`.
    """
    default, by_layer = "auto", {}
    known = convolutions(module)
    for word in filter(None, (part.strip() for part in text.split(","))):
        layer, equals, strategy = word.rpartition("=")
        if strategy not in STRATEGIES:
            near = nearest(strategy, STRATEGIES) or f"; one of {', '.join(STRATEGIES)}"
            raise UsageError(f"--conv-strategy {text}: unknown strategy {strategy!r}{near}")
        if equals and layer not in known:
            near = nearest(layer, known) or (f"; the first is {next(iter(known))!r}" if known else "; it has none")
            raise UsageError(f"--conv-strategy {text}: the model has no convolution {layer!r}{near}")
        if strategy == "triton":
            try:
                for op in CONVOLUTIONS:
                    kernels.get(op, "triton", device)
            except ValueError as error:
                raise UsageError(f"--conv-strategy {text}: {error}") from error
        if equals:
            by_layer[layer] = strategy
        else:
            default = strategy
    return {name: by_layer.get(name, default) for name in known} if by_layer else default


def format_strategies(strategies: Strategies) -> str:
    """Write strategies for `parse_strategies`: the most frequent one, then the layers with another one."""
    if isinstance(strategies, str):
        return strategies
    if not strategies:
        return "auto"
    default = Counter(strategies.values()).most_common(1)[0][0]
    others = [f"{layer}={strategy}" for layer, strategy in strategies.items() if strategy != default]
    return ",".join([default, *others])


class Stacking:
    """A copy of a module for vmap; within `mode`, each convolution and norm is one operation for all clients.

    Args:
        module: The module.
        strategies: Strategies of its convolutions.
        fuse: Of StackedOps.
    """

    def __init__(self, module: nn.Module, strategies: Strategies, *, fuse: bool | None = None) -> None:
        self.module = copy.deepcopy(module)
        self._default = strategies if isinstance(strategies, str) else "auto"
        self._fuse = fuse
        self._mode: functional.StackedOps | None = None
        if not isinstance(strategies, str):
            for name, part in convolutions(self.module).items():
                strategy = strategies.get(name, "auto")
                if strategy != "auto":
                    part.forward = functools.partial(self._within, strategy, part.forward)  # type: ignore[method-assign]

    def mode(self) -> functional.StackedOps:
        """Return the context in which the module runs under vmap."""
        self._mode = functional.StackedOps(self._default, fuse=self._fuse)
        return self._mode

    def _within(self, strategy: str, forward: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call a layer with its own strategy."""
        assert self._mode is not None
        before, self._mode.strategy = self._mode.strategy, strategy
        try:
            return forward(*args)
        finally:
            self._mode.strategy = before
