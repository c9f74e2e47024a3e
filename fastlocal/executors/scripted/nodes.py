"""Values of a traced step as TorchScript names and writes them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

ALIASES = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)
"""A trace holds one of these for `detach`: the first since torch 2.14, the second before."""


def origin(node: Any) -> Any:
    """What an alias is one of."""
    while isinstance(node, fx.Node) and node.target in ALIASES:
        node = node.args[0]
    return node


def memory(node: Any) -> Any:
    """What a view, or a value that was changed in place, has its memory from."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        target: Any = node.target
        if target is not operator.getitem and all(one.alias_info is None for one in target._schema.returns):
            break
        node = node.args[0]
    return node


def users(node: fx.Node) -> Iterator[fx.Node]:
    """What takes a value, by whatever alias."""
    for user in node.users:
        if user.target in ALIASES:
            yield from users(user)
        else:
            yield user


def name(node: Any) -> str:
    return f"v_{origin(node).name}"  # whatever TorchScript's own words are


def text(value: Any) -> str:
    """An argument as TorchScript writes it."""
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
