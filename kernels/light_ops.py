"""Operators of torch for fake tensors and vmap that have no gradient.

torch.library.custom_op defines them in one step, and imports torch's compiler as it is first called, which takes 1.9 s
of a core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FUNCTIONS: dict[str, Callable[..., Tensor]] = {}
"""What each operator computes, by its name with the namespace."""
_LIBRARY = torch.library.Library("fastlocal", "FRAGMENT")


def define(
    schema: str, function: Callable[..., Tensor], fake: Callable[..., Tensor], vmap: Callable[..., Any]
) -> Callable[..., Tensor]:
    """Define an operator on every device.

    Args:
        schema: As torch.library takes it, without a namespace.
        function: What it computes; its result shares no memory with what it is given.
        fake: The same of tensors without values.
        vmap: (info, in_dims, *arguments) -> (result, its dimension of clients), as torch.library.register_vmap says.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    FUNCTIONS[f"fastlocal::{name}"] = function
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastlocal::{name}", fake, lib=_LIBRARY)
    torch.library.register_vmap(f"fastlocal::{name}", vmap, lib=_LIBRARY)
    operator: Callable[..., Tensor] = getattr(torch.ops.fastlocal, name)
    return operator
