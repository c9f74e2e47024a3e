"""Functions of torch that hide from a TorchFunctionMode what they are made of."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import Tensor


@functools.cache
def opened(func: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function of torch.nn.functional so that it runs its body without asking the modes first.

    Within multi_head_attention_forward are linear maps: under vmap, torch's own repeat each client's weights for every
    place of the sequence.
    """
    assert isinstance(func, types.FunctionType)
    asks = [name for name in func.__globals__ if name.startswith("has_torch_function")]
    names = func.__globals__ | dict.fromkeys(asks, lambda *tensors: False)
    body = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def is_mean_of_pixels(input: Tensor, output_size: Any) -> bool:
    """Return True for an adaptive_avg_pool2d to one pixel, which torch restrides client by client under vmap."""
    return output_size in (1, (1, 1), [1, 1]) and input.dim() in (3, 4)
