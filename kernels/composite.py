"""Functions of torch that hide from a TorchFunctionMode what they are made of."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def _visible(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a Python function of torch without the line that hands a call to a mode as a whole."""
    namespace = {**func.__globals__, "has_torch_function": lambda _: False}
    found = types.FunctionType(func.__code__, namespace, func.__name__, func.__defaults__, func.__closure__)
    found.__kwdefaults__ = func.__kwdefaults__
    return found


attention = _visible(F.multi_head_attention_forward)
"""torch.nn.functional.multi_head_attention_forward whose linear maps a mode sees.

Under vmap, torch's own repeat each client's weights for every place of the sequence.
"""


def is_mean_of_pixels(input: Tensor, output_size: Any) -> bool:
    """Return True for an adaptive_avg_pool2d to one pixel, which torch restrides client by client under vmap."""
    return output_size in (1, (1, 1), [1, 1]) and input.dim() in (3, 4)
