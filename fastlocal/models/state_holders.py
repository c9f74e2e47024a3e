"""Snapshots of Python objects that keep state between calls, one class per kind of object."""

from __future__ import annotations

import array
import random
import sys
import types
import warnings
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
DATA = (*PLAIN, list, dict, set, deque, bytearray, array.array, np.ndarray, Tensor)
LIBRARIES = frozenset({"torch", "numpy", "fastlocal", *sys.stdlib_module_names})
"""Packages whose classes and functions have no state that a forward pass changes."""


class Holder(Protocol):
    """An object with state, as entries by key.

    Attributes:
        in_place: Whether a changed entry is the same object, instead of a new one.
        cheap: Whether a snapshot takes about a microsecond.
    """

    in_place: bool
    cheap: bool

    def snapshot(self) -> dict[Any, Any]:
        """Return a copy of the entries."""
        ...

    def restore(self, before: dict[Any, Any]) -> None:
        """Restore the entries of a snapshot."""
        ...


class Attributes:
    """The __dict__ of an object, without some keys."""

    in_place = False
    cheap = True

    def __init__(self, part: Any, without: Collection[str] = ()) -> None:
        self._part, self._without = part, without

    def snapshot(self) -> dict[Any, Any]:
        return {key: value for key, value in vars(self._part).items() if key not in self._without}

    def restore(self, before: dict[Any, Any]) -> None:
        entries = vars(self._part)
        for key in [key for key in self.snapshot() if key not in before]:
            del entries[key]
        entries.update(before)


class PartAttributes(Attributes):
    """The __dict__ of a module's part; empty dictionaries of hooks are one entry, as each part has ten of them."""

    def snapshot(self) -> dict[Any, Any]:
        entries = super().snapshot()
        empty = [key for key in _HOOKS if not entries.get(key, True)]
        for key in empty:
            del entries[key]
        return {**entries, _EMPTY: len(empty)}

    def restore(self, before: dict[Any, Any]) -> None:
        entries = vars(self._part)
        for key in _HOOKS & entries.keys() - before.keys():
            entries[key].clear()
        for key in super().snapshot().keys() - before.keys() - _HOOKS:
            del entries[key]
        entries.update({key: value for key, value in before.items() if key != _EMPTY})


_EMPTY = "(hooks)"
_HOOKS = frozenset(key for key in vars(torch.nn.Module()) if "hooks" in key)


class Slots:
    """The values of an object's __slots__."""

    in_place = False
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value
        self._names = list(slots_of(type(value)))

    def snapshot(self) -> dict[Any, Any]:
        return {name: getattr(self._value, name) for name in self._names if hasattr(self._value, name)}

    def restore(self, before: dict[Any, Any]) -> None:
        for name in self._names:
            if name in before:
                object.__setattr__(self._value, name, before[name])
            elif hasattr(self._value, name):
                object.__delattr__(self._value, name)


def slots_of(kind: type) -> Iterator[str]:
    """Yield the names of the slots of a class and of its bases."""
    for base in kind.__mro__:
        for name, entry in vars(base).items():
            if isinstance(entry, types.MemberDescriptorType) and base.__module__.partition(".")[0] not in LIBRARIES:
                yield name


class ClassData:
    """The data attributes of a class."""

    in_place = False
    cheap = True

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def snapshot(self) -> dict[Any, Any]:
        entries = vars(self._kind).items()
        return {key: value for key, value in entries if isinstance(value, DATA) and not key.startswith("__")}

    def restore(self, before: dict[Any, Any]) -> None:
        now = self.snapshot()
        for key in now.keys() - before.keys():
            delattr(self._kind, key)
        for key, value in before.items():
            if now.get(key) is not value:
                setattr(self._kind, key, value)


class Names:
    """The closure variables of a function, and the globals that it reads and that may hold data."""

    in_place = False
    cheap = True

    def __init__(self, function: types.FunctionType) -> None:
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self._globals = function.__globals__
        names = [name for name in function.__code__.co_names if name in self._globals]
        self._names = [name for name in names if self._keeps(self._globals[name])]

    def _keeps(self, value: Any) -> bool:
        """Return True for data, and for functions and objects of the same file, which may hold data."""
        if isinstance(value, types.FunctionType):
            return value.__globals__ is self._globals
        own = type(value).__module__ == self._globals.get("__name__") and not isinstance(value, torch.nn.Module)
        return own or isinstance(value, DATA) or keeps_position(value)

    def snapshot(self) -> dict[Any, Any]:
        filled = {name: cell.cell_contents for name, cell in self._cells.items() if is_filled(cell)}
        return {**{name: self._globals[name] for name in self._names}, **filled}

    def restore(self, before: dict[Any, Any]) -> None:
        for name, value in before.items():
            if name in self._cells:
                self._cells[name].cell_contents = value
            else:
                self._globals[name] = value


class Container:
    """The entries of a dictionary by key, of a list or deque by index, of a set as keys."""

    in_place = False
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value

    def snapshot(self) -> dict[Any, Any]:
        if isinstance(self._value, dict):
            return dict(dict.items(self._value))  # a subclass may override `items`, for example to construct objects
        return {entry: None for entry in self._value} if isinstance(self._value, set) else dict(enumerate(self._value))

    def restore(self, before: dict[Any, Any]) -> None:
        now = self.snapshot()
        if now.keys() == before.keys() and all(now[key] is before[key] for key in before):
            return
        self._value.clear()
        if isinstance(self._value, dict | set):
            self._value.update(before)
        else:
            self._value.extend(before.values())


class Position:
    """The position of an iterator, as the arguments that copy.copy would use; it cannot be restored."""

    in_place = True
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value

    def snapshot(self) -> dict[Any, Any]:
        return dict(enumerate(_reduce(self._value)))

    def restore(self, before: dict[Any, Any]) -> None:
        """Do nothing: the position of an iterator cannot be set."""


def keeps_position(value: Any) -> bool:
    """Return True for Python's own iterators that expose their position: itertools.count, cycle, iter(list), ..."""
    return (
        hasattr(type(value), "__next__")
        and type(value).__module__ in ("builtins", "itertools")
        and bool(_reduce(value))
    )


def _reduce(value: Any) -> tuple[Any, ...]:
    """Return the arguments that copy.copy would use, without the constructor; () if the object cannot be copied."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.14 no longer copies iterators of itertools
            reduced = value.__reduce_ex__(4)
    except Exception:  # any failure of the copy: the position is unknown
        return ()
    return reduced[1:] if isinstance(reduced, tuple) else ()


def is_filled(cell: types.CellType) -> bool:
    """Return True if a closure variable has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
