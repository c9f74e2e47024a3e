"""Names and literals of a traced step's values in TorchScript."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

ALIASES = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
"""Operations of `detach` in a trace: the first since torch 2.14, the second before."""

RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


def origin(node: Any) -> Any:
    """Return the node behind a chain of aliases."""
    while isinstance(node, fx.Node) and node.target in ALIASES:
        node = node.args[0]
    return node


def memory(node: Any) -> Any:
    """Return the node that owns the memory of a view or of the result of an in-place operation."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        target: Any = node.target
        if target is not operator.getitem and all(one.alias_info is None for one in target._schema.returns):
            break
        node = node.args[0]
    return node


def users(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that use a value directly or through an alias."""
    for user in node.users:
        if user.target in ALIASES:
            yield from users(user)
        else:
            yield user


def meta(node: Any) -> Any:
    """Return what is known of a node's value: shape, dtype and layout; None if nothing is."""
    return origin(node).meta.get("tensor_meta")


def name(node: Any) -> str:
    """Return the variable of a node; the prefix avoids TorchScript's keywords."""
    return f"v_{origin(node).name}"


def text(value: Any) -> str:
    """Return an argument as a TorchScript expression."""
    if isinstance(value, fx.Node):
        return name(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.layout | torch.memory_format):
        return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else repr(value)
    raise TypeError(f"TorchScript has no word for {value!r}")
