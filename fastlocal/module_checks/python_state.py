"""What a callable keeps in Python between its calls: attributes, containers, closures and globals."""

from __future__ import annotations

import contextlib
import functools
import pickle
import random
import sys
import types
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEPTH = 6
LARGEST = 2**20
"""Elements of a tensor, or of a container, whose values are looked at."""
PLAIN = (type(None), bool, int, float, complex, str, bytes)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_SHARED = (torch.default_generator, np.random.mtrand._rand, random._inst)  # type: ignore[attr-defined]
"""The generators that a process has, whose states are no state of what draws from them."""
_WITH_TENSORS = ("_modules", "training")
_OWN = ("_parameters", "_buffers", *_WITH_TENSORS)
_LIBRARIES = frozenset({"torch", "numpy", "fastlocal", *sys.stdlib_module_names})
"""Packages whose classes keep nothing that a forward pass changes."""
_DATA = (*PLAIN, list, dict, set, deque, Tensor)


class PythonState:
    """A copy of what is reachable from an object, to be compared with later or to be put back."""

    def __init__(self, root: object, *, without: Collection[int] = (), tensors: bool = True) -> None:
        """Take the copy.

        Args:
            root: A module, a function, a bound method, a partial or any other object.
            without: ids of objects that are passed over with all below them.
            tensors: Whether values of tensors count, or only which they are; of modules, whether their parameters
                and buffers count.
        """
        self._seen = {*without, *map(id, _SHARED)}
        self._tensors = tensors
        self._kept: list[tuple[str, Any, Any]] = []
        self._walk("", root, 0)

    def changes(self) -> list[tuple[str, Any, Any]]:
        """(path, before, now) of what is no longer as it was."""
        found = []
        for path, holder, before in self._kept:
            now = holder.take()
            for key in {**before, **now}:
                if key not in now or key not in before or not _same(now[key], before[key]):
                    found.append((f"{path}.{key}".strip("."), before.get(key), now.get(key)))
        return found

    def restore(self) -> None:
        """Put everything back."""
        for _, holder, before in self._kept:
            holder.put(before)

    def _walk(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, PLAIN) or isinstance(value, type | types.ModuleType) or depth > DEPTH:
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        for name, inner in self._keep(path, value):
            self._walk(f"{path}.{name}" if path else name, inner, depth + 1)

    def _keep(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Copy what `value` holds itself; yields what it leads to."""
        if isinstance(value, functools.partial):
            yield from (("func", value.func), ("args", list(value.args)), ("keywords", value.keywords))
        elif isinstance(value, types.MethodType):
            yield from (("", value.__self__), (value.__name__, value.__func__))
        elif isinstance(value, nn.Module):
            for name, part in value.named_modules():
                self._seen.add(id(part))
                yield from self._kept_of(name, _Attributes(part, _WITH_TENSORS if self._tensors else _OWN))
                yield from self._of_classes(name, part)
        elif isinstance(value, tuple):
            yield from ((str(place), inner) for place, inner in enumerate(value))
        elif isinstance(value, GENERATORS):
            self._kept.append((path, _Generator(value), _Generator(value).take()))
        elif isinstance(value, Tensor):
            if self._tensors and value.numel() <= LARGEST and not value.is_meta:
                yield from self._kept_of(path, _Values(value))
        elif isinstance(value, types.FunctionType):
            yield from self._kept_of("", _Names(value))
            yield from (value.__kwdefaults__ or {}).items()
            yield from ((f"default {place}", inner) for place, inner in enumerate(value.__defaults__ or ()))
        elif isinstance(value, dict | list | set | deque):
            if len(value) <= LARGEST:
                yield from self._kept_of(path, _Container(value))
        elif isinstance(getattr(value, "__dict__", None), dict):
            yield from self._kept_of(path, _Attributes(value, ()))
            yield from self._of_classes(path, value)

    def _of_classes(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """What the classes of an object keep for all their objects, and the functions in them."""
        for kind in type(value).__mro__:
            if id(kind) in self._seen or kind.__module__.partition(".")[0] in _LIBRARIES:
                continue
            self._seen.add(id(kind))
            yield from self._kept_of(path, _ClassData(kind))
            for name, entry in vars(kind).items():
                function = entry.fget if isinstance(entry, property) else getattr(entry, "__func__", entry)
                if isinstance(function, types.FunctionType) and name != "__init__":
                    yield name, function

    def _kept_of(self, path: str, holder: Any) -> Iterator[tuple[str, Any]]:
        before = holder.take()
        self._kept.append((path, holder, before))
        if not isinstance(holder, _Values):
            yield from ((str(key), inner) for key, inner in before.items())


@contextlib.contextmanager
def kept(root: object) -> Iterator[None]:
    """While it lasts, what becomes of `root` is undone at the end."""
    before = PythonState(root)
    try:
        yield
    finally:
        before.restore()


class _Attributes:
    """Those of an object, apart from some."""

    def __init__(self, part: Any, without: Collection[str]) -> None:
        self._part, self._without = part, without

    def take(self) -> dict[Any, Any]:
        return {key: value for key, value in vars(self._part).items() if key not in self._without}

    def put(self, before: dict[Any, Any]) -> None:
        kept = vars(self._part)
        for key in [key for key in self.take() if key not in before]:
            del kept[key]
        kept.update(before)


class _ClassData:
    """The data that a class holds, by name."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def take(self) -> dict[Any, Any]:
        held = vars(self._kind).items()
        return {key: value for key, value in held if isinstance(value, _DATA) and not key.startswith("__")}

    def put(self, before: dict[Any, Any]) -> None:
        now = self.take()
        for key in now.keys() - before.keys():
            delattr(self._kind, key)
        for key, value in before.items():
            if now.get(key) is not value:
                setattr(self._kind, key, value)


class _Names:
    """The variables of a function's closure, and the globals it reads that are data or can keep some."""

    def __init__(self, function: types.FunctionType) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._cells = dict(cells)
        self._globals = function.__globals__
        names = [name for name in function.__code__.co_names if name in self._globals]
        self._names = [name for name in names if self._keeps(self._globals[name])]

    def _keeps(self, value: Any) -> bool:
        """Whether it is data, or a function or an object of the same file, which may hold some."""
        if isinstance(value, types.FunctionType):
            return value.__globals__ is self._globals
        own = type(value).__module__ == self._globals.get("__name__") and not isinstance(value, nn.Module)
        return own or isinstance(value, _DATA)

    def take(self) -> dict[Any, Any]:
        filled = {name: cell.cell_contents for name, cell in self._cells.items() if _is_filled(cell)}
        return {**{name: self._globals[name] for name in self._names}, **filled}

    def put(self, before: dict[Any, Any]) -> None:
        for name, value in before.items():
            if name in self._cells:
                self._cells[name].cell_contents = value
            else:
                self._globals[name] = value


class _Container:
    """Entries of a dictionary, by key; of a list or a deque, by place; of a set, themselves."""

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


class _Generator:
    """A generator of random numbers and its state, as one entry."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        value = self._value
        state: Any
        if isinstance(value, np.random.Generator):
            state = value.bit_generator.state
        else:
            state = value.getstate() if isinstance(value, random.Random) else value.get_state()
        return {"": (value, pickle.dumps(state))}

    def put(self, before: dict[Any, Any]) -> None:
        value, state = before[""][0], pickle.loads(before[""][1])
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = state
        elif isinstance(value, random.Random):
            value.setstate(state)
        else:
            value.set_state(state)


class _Values:
    """The numbers of a tensor, as one entry."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        return {"": self._value.detach().clone()}

    def put(self, before: dict[Any, Any]) -> None:
        with torch.no_grad():
            self._value.copy_(before[""])


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return bool(one == other) or (one != one and other != other)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.detach(), other.detach())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return False
