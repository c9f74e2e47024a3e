"""Short descriptions of values for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

MAX_PARTS = 4
"""Keys or parts that a message names; it counts the others."""
MAX_CHARS = 40
"""Characters of a text that a message quotes."""


def describe(value: Any) -> str:
    """Describe `value` by its type and content: "'cat', a str" or "a dict with the keys 'image', 'label'"."""
    if value is None:
        return "None"
    name = type(value).__name__
    if isinstance(value, str | bytes):
        text = repr(value)
        return f"{text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + '...'}, a {name}"
    if isinstance(value, Mapping):
        return f"a {name} with the keys {_join(list(map(repr, value)))}" if value else f"an empty {name}"
    if isinstance(value, list | tuple):
        return f"a {name} of {len(value)} ({_join([_kind(part) for part in value])})" if value else f"an empty {name}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{_kind(value)} of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _join(parts: list[str]) -> str:
    more = len(parts) - MAX_PARTS
    return ", ".join(parts) if more <= 0 else f"{', '.join(parts[:MAX_PARTS])} and {more} more"


def _kind(value: Any) -> str:
    kinds = {"NoneType": "None", "ndarray": "an array", "Tensor": "a tensor"}
    return kinds.get(type(value).__name__, type(value).__name__)


def is_nested(value: Any) -> bool:
    """Return True if a list or tuple holds, at any depth, a tensor, a text, a dictionary or None."""
    if not isinstance(value, list | tuple):
        return False
    return any(_is_part(part) or is_nested(part) for part in value)


def _is_part(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    return value is None or isinstance(value, str | bytes | Mapping)
