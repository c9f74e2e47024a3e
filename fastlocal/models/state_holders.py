"""Kinds of objects that keep something between calls: how each is copied, and how the copy is put back."""

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
"""Packages whose classes and functions keep nothing that a forward pass changes."""


class Holder(Protocol):
    """An object that keeps something, seen as entries by key.

    Attributes:
        in_place: Whether an entry that differs was changed where it lies, and not replaced.
        cheap: Whether looking at it takes no longer than a microsecond or so.
    """

    in_place: bool
    cheap: bool

    def take(self) -> dict[Any, Any]:
        """Copy the entries."""
        ...

    def put(self, before: dict[Any, Any]) -> None:
        """Make the entries those of an earlier copy."""
        ...


class Attributes:
    """The __dict__ of an object, without some keys."""

    in_place = False
    cheap = True

    def __init__(self, part: Any, without: Collection[str] = ()) -> None:
        self._part, self._without = part, without

    def take(self) -> dict[Any, Any]:
        return {key: value for key, value in vars(self._part).items() if key not in self._without}

    def put(self, before: dict[Any, Any]) -> None:
        entries = vars(self._part)
        for key in [key for key in self.take() if key not in before]:
            del entries[key]
        entries.update(before)


class Slots:
    """The values of an object's __slots__."""

    in_place = False
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value
        self._names = list(slots_of(type(value)))

    def take(self) -> dict[Any, Any]:
        return {name: getattr(self._value, name) for name in self._names if hasattr(self._value, name)}

    def put(self, before: dict[Any, Any]) -> None:
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
    """The data that a class holds, by name."""

    in_place = False
    cheap = True

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def take(self) -> dict[Any, Any]:
        held = vars(self._kind).items()
        return {key: value for key, value in held if isinstance(value, DATA) and not key.startswith("__")}

    def put(self, before: dict[Any, Any]) -> None:
        now = self.take()
        for key in now.keys() - before.keys():
            delattr(self._kind, key)
        for key, value in before.items():
            if now.get(key) is not value:
                setattr(self._kind, key, value)


class Names:
    """The variables of a function's closure, and the globals it reads that are data or can keep some."""

    in_place = False
    cheap = True

    def __init__(self, function: types.FunctionType) -> None:
        self._cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self._globals = function.__globals__
        names = [name for name in function.__code__.co_names if name in self._globals]
        self._names = [name for name in names if self._keeps(self._globals[name])]

    def _keeps(self, value: Any) -> bool:
        """Whether it is data, or a function or an object of the same file, which may hold some."""
        if isinstance(value, types.FunctionType):
            return value.__globals__ is self._globals
        own = type(value).__module__ == self._globals.get("__name__") and not isinstance(value, torch.nn.Module)
        return own or isinstance(value, DATA) or keeps_position(value)

    def take(self) -> dict[Any, Any]:
        filled = {name: cell.cell_contents for name, cell in self._cells.items() if is_filled(cell)}
        return {**{name: self._globals[name] for name in self._names}, **filled}

    def put(self, before: dict[Any, Any]) -> None:
        for name, value in before.items():
            if name in self._cells:
                self._cells[name].cell_contents = value
            else:
                self._globals[name] = value


class Container:
    """Entries of a dictionary, by key; of a list or a deque, by place; of a set, themselves."""

    in_place = False
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        if isinstance(self._value, dict):
            return dict(dict.items(self._value))  # as it is: a registry of classes may make an object of each it gives
        return {entry: None for entry in self._value} if isinstance(self._value, set) else dict(enumerate(self._value))

    def put(self, before: dict[Any, Any]) -> None:
        now = self.take()
        if now.keys() == before.keys() and all(now[key] is before[key] for key in before):
            return
        self._value.clear()
        if isinstance(self._value, dict | set):
            self._value.update(before)
        else:
            self._value.extend(before.values())


class Position:
    """Where an iterator stands, as what it would be copied from; it cannot be put back."""

    in_place = True
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        return dict(enumerate(_reduced(self._value)))

    def put(self, before: dict[Any, Any]) -> None:
        """Nothing can be put back."""


def keeps_position(value: Any) -> bool:
    """Whether it is an iterator of Python's own that says where it stands: itertools.count, cycle, iter(list), ..."""
    return (
        hasattr(type(value), "__next__")
        and type(value).__module__ in ("builtins", "itertools")
        and bool(_reduced(value))
    )


def _reduced(value: Any) -> tuple[Any, ...]:
    """What copy.copy would make another of, without its constructor; () where it cannot be copied."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.14 copies no iterators of itertools any more
            reduced = value.__reduce_ex__(4)
    except Exception:  # whatever keeps it from being copied, then nothing can be said
        return ()
    return reduced[1:] if isinstance(reduced, tuple) else ()


def is_filled(cell: types.CellType) -> bool:
    """Whether a variable of a closure has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
