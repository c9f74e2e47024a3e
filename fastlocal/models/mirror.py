"""Expose attributes of a copied module to a loss that reads them from the user's module."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Container, Iterator
from typing import Any

from torch import nn

_TORCHS_OWN = frozenset(vars(nn.Module()))
_MISSING = object()


class Mirror:
    """Pairs of attributes of a copy and of its original.

    A loss such as `lambda out, y: cross_entropy(out, y) + model.aux_loss` reads an attribute of the original, but the
    forward pass has set it in the copy.
    """

    def __init__(self, module: nn.Module, original: nn.Module | None, paths: Collection[str] | None) -> None:
        """Pair attributes.

        Args:
            module: The copy that runs forward passes.
            original: The user's module, or None if nothing refers to it.
            paths: Dotted paths of the attributes; None for all.
        """
        self._pairs: list[tuple[dict[str, Any], dict[str, Any], frozenset[str] | None]] = []
        parts = {} if original is None else dict(original.named_modules())
        places = (
            None if paths is None else [place for path in paths if (place := attribute_of(path, parts)) is not None]
        )
        for name, part in module.named_modules():
            keys = None if places is None else frozenset(place[1] for place in places if place and place[0] == name)
            if name in parts and (keys is None or keys):
                self._pairs.append((part.__dict__, parts[name].__dict__, keys))

    @contextlib.contextmanager
    def expose(self) -> Iterator[None]:
        """Set the original's attributes to the copy's, and restore them at the end of the block."""
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


def attribute_of(path: str, parts: Container[str]) -> tuple[str, str] | None:
    """Return the part and the attribute that hold a path: ("block", "losses") of block.losses.0; None for others."""
    words = path.split(".")
    for length in reversed(range(len(words))):
        part = ".".join(words[:length])
        if part in parts:
            return None if words[length] in _TORCHS_OWN else (part, words[length])
    return None
