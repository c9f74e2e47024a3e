"""Functions of torch that hide from a TorchFunctionMode what they are made of."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
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


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """torch.nn.functional.rms_norm of one client, in single operations that vmap has rules for, on a GPU too.

    The mean is computed in fp32 at least.

    Args:
        input: [..., *normalized_shape].
        normalized_shape: Axes of the mean.
        weight: [*normalized_shape] or None.
        eps: Added to the mean of the squares; None: the precision of the mean.
    """
    wide = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    axes = tuple(range(-len(normalized_shape), 0))
    added = torch.finfo(wide.dtype).eps if eps is None else eps
    scaled = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + added)
    return (scaled if weight is None else scaled * weight).to(input.dtype)


def is_mean_of_pixels(input: Tensor, output_size: Any) -> bool:
    """Return True for an adaptive_avg_pool2d to one pixel, which torch restrides client by client under vmap."""
    return output_size in (1, (1, 1), [1, 1]) and input.dim() in (3, 4)
