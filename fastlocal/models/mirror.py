"""Attributes that a forward pass computes, shown to a loss that reads them from the user's own module."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

_TORCHS_OWN = frozenset(vars(nn.Module()))
_MISSING = object()


class Mirror:
    """Pairs of attributes of a copy and of the module that it was copied from.

    A loss such as `lambda out, y: cross_entropy(out, y) + model.aux_loss` reads what the last forward pass has kept,
    and that was a copy's.
    """

    def __init__(self, module: nn.Module, original: nn.Module | None, paths: Collection[str] | None) -> None:
        """Pair attributes.

        Args:
            module: The copy whose forward passes are taken.
            original: None if nothing can hold it, and nothing is shown.
            paths: Of the attributes, with dots; None: all.
        """
        self._pairs: list[tuple[dict[str, Any], dict[str, Any], frozenset[str] | None]] = []
        parts = {} if original is None else dict(original.named_modules())
        for name, part in module.named_modules():
            keys = None if paths is None else frozenset(key for where, key in map(_split, paths) if where == name)
            if name in parts and (keys is None or keys):
                self._pairs.append((part.__dict__, parts[name].__dict__, keys))

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Give the original the copy's attributes; at the end it has its own again."""
        before = []
        for own, theirs, keys in self._pairs:
            for key in [key for key in own if (key not in _TORCHS_OWN if keys is None else key in keys)]:
                before.append((theirs, key, theirs.get(key, _MISSING)))
                theirs[key] = own[key]
        try:
            yield
        finally:
            for theirs, key, value in before:
                if value is _MISSING:
                    theirs.pop(key, None)
                else:
                    theirs[key] = value


def _split(path: str) -> tuple[str, str]:
    part, _, key = path.rpartition(".")
    return part, key
