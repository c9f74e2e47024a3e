"""torch operators with rules for fake tensors and vmap, and without a gradient.

torch.library.custom_op defines such operators in one step, but its first call imports torch's compiler: 1.9 s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FUNCTIONS: dict[str, Callable[..., Tensor]] = {}
"""Function of each operator, by its name with namespace."""
_LIBRARY = torch.library.Library("fastlocal", "FRAGMENT")


def define(
    schema: str, function: Callable[..., Tensor], fake: Callable[..., Tensor], vmap: Callable[..., Any]
) -> Callable[..., Tensor]:
    """Define an operator on every device.

    Args:
        schema: Schema of torch.library, without a namespace.
        function: Computes the result, which must not share memory with the arguments.
        fake: The same for fake tensors.
        vmap: (info, in_dims, *arguments) -> (result, its batch dimension), as for torch.library.register_vmap.

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
