"""Snapshots of the Python state of a callable: attributes, containers, closures and globals."""

from __future__ import annotations

import array
import contextlib
import functools
import random
import types
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import number_holders as numbers
from . import state_holders as holders
from .state_holders import GENERATORS, LIBRARIES, PLAIN, Holder

DEPTH = 8
LARGEST = 2**20
"""Number of elements up to which the values of a tensor or a container are compared."""
_SHARED = (torch.default_generator, np.random.mtrand._rand, random._inst)  # type: ignore[attr-defined]
"""The global generators of the process, whose state belongs to no callable."""


_OF_VALUES = (numbers.Values, numbers.Version, numbers.Elements, numbers.Generator)


_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch")
"""Packages whose objects in a compiled function are no state of the model."""


class Change(NamedTuple):
    """An entry that differs from its snapshot.

    Attributes:
        path: Dotted path from the root.
        before: Old value, or None if the entry is new.
        now: New value, or None if the entry is missing now.
        in_place: Whether the same object has changed, instead of being replaced.
        new: Whether the entry was added or removed.
        irreversible: Whether the old value cannot be restored.
    """

    path: str
    before: Any
    now: Any
    in_place: bool
    new: bool
    irreversible: bool


class PythonState:
    """Snapshot of everything reachable from an object.

    Attributes:
        tensors: (path, tensor or array) of all reachable ones.
        reached_excluded: Whether an excluded object is reachable.
    """

    def __init__(self, root: object, *, own: nn.Module | None = None, without: Collection[int] = ()) -> None:
        """Take the snapshot.

        Args:
            root: A module, a function, a bound method, a partial, a tuple of these or any other object.
            own: A module whose parameters and buffers are excluded.
            without: ids of objects that are excluded with everything below them.
        """
        self._parts = set() if own is None else set(map(id, own.modules()))
        excluded = [] if own is None else [*own.parameters(), *own.buffers()]
        self._without = frozenset(without)
        self.reached_excluded = False
        self._visited = {*without, *map(id, excluded), *map(id, _SHARED)}
        self._alive = (excluded, root)  # so that no id is reused
        self._ignored: Collection[str] = ()
        self._entries: list[tuple[str, Holder, dict[Any, Any]]] = []
        self.tensors: list[tuple[str, Tensor | np.ndarray]] = []
        self._walk("", root, 0)

    @property
    def reached(self) -> Collection[int]:
        """The ids of all reachable objects."""
        return self._visited

    def changes(self, *, values: bool = True) -> list[Change]:
        """Return the differences from the snapshot; `values` includes numbers of tensors and large arrays."""
        changes = []
        for path, holder, before in self._entries:
            if isinstance(holder, numbers.Version) if values else not holder.cheap:
                continue
            now = holder.snapshot()
            if len(now) == len(before) and all(key in before and before[key] is now[key] for key in now):
                continue
            for key in {**before, **now}:
                in_both, where = key in now and key in before, _join(path, key)
                if where not in self._ignored and not (in_both and same(now[key], before[key])):
                    irreversible = isinstance(holder, holders.Position)
                    old, new = before.get(key), now.get(key)
                    changes.append(Change(where, old, new, holder.in_place, not in_both, irreversible))
        return changes

    def restore(self) -> None:
        """Restore the snapshot."""
        for _, holder, before in self._entries:
            holder.restore(before)

    def ignore(self, paths: Collection[str]) -> None:
        """Drop the entries at and below `paths`; they may change, and their values are freed."""
        self._ignored = paths
        below = tuple(f"{path}." for path in paths)
        self._entries = [each for each in self._entries if each[0] not in paths and not each[0].startswith(below)]
        for path, _, before in self._entries:
            for key in [key for key in before if _join(path, key) in paths]:
                del before[key]
        self.tensors.clear()

    def _walk(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, PLAIN) or isinstance(value, type | types.ModuleType) or depth > DEPTH:
            return
        if type(value).__module__.startswith(_COMPILERS):
            return
        if id(value) in self._visited:
            self.reached_excluded |= id(value) in self._without
            return
        self._visited.add(id(value))
        for name, inner in self._inside(path, value):
            self._walk(f"{path}.{name}" if path else name, inner, depth + 1)

    def _inside(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Take the snapshot of one object and yield (name, object) of those that it refers to."""
        if isinstance(value, functools.partial):
            yield from (("func", value.func), ("args", list(value.args)), ("keywords", value.keywords))
        elif isinstance(value, types.MethodType):
            yield from (("", value.__self__), (value.__name__, value.__func__))
        elif isinstance(value, nn.Module):
            for name, part in value.named_modules():
                self._visited.add(id(part))
                without = ("_parameters", "_buffers") if id(part) in self._parts else ()
                yield from self._copy(name, holders.PartAttributes(part, without))
                yield from self._of_classes(name, part)
        elif isinstance(value, tuple):
            yield from ((str(place), inner) for place, inner in enumerate(value))
        elif isinstance(value, GENERATORS):
            yield from self._copy(path, numbers.Generator(value))
        elif isinstance(value, Tensor):
            self.tensors.append((path, value))
            if value.layout == torch.strided and not value.is_meta:
                yield from self._copy(path, numbers.Version(value))
                if value.numel() <= LARGEST:
                    yield from self._copy(path, numbers.Values(value))
        elif isinstance(value, types.FunctionType):
            yield from self._copy("", holders.Names(value))
            yield from self._copy(value.__name__, holders.Attributes(value))
            yield from (value.__kwdefaults__ or {}).items()
            yield from ((f"default {place}", inner) for place, inner in enumerate(value.__defaults__ or ()))
        else:
            yield from self._inside_data(path, value)

    def _inside_data(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list | set | deque):
            if len(value) <= LARGEST:
                yield from self._copy(path, holders.Container(value))
        elif isinstance(value, np.ndarray | array.array | bytearray):
            if isinstance(value, np.ndarray):
                self.tensors.append((path, value))
            size = value.size if isinstance(value, np.ndarray) else len(value)
            if size <= LARGEST and not (isinstance(value, np.ndarray) and value.dtype.hasobject):
                yield from self._copy(path, numbers.Elements(value))
        elif holders.keeps_position(value):
            yield from self._copy(path, holders.Position(value))
        if isinstance(getattr(value, "__dict__", None), dict):
            yield from self._copy(path, holders.Attributes(value))
            yield from self._of_classes(path, value)
        if any(True for _ in holders.slots_of(type(value))):
            yield from self._copy(path, holders.Slots(value))

    def _of_classes(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Take snapshots of the data of an object's classes, and yield the data and the classes' functions."""
        for kind in type(value).__mro__:
            if id(kind) in self._visited or kind.__module__.partition(".")[0] in LIBRARIES:
                continue
            self._visited.add(id(kind))
            yield from self._copy(path, holders.ClassData(kind))
            for name, entry in vars(kind).items():
                function = entry.fget if isinstance(entry, property) else getattr(entry, "__func__", entry)
                if isinstance(function, types.FunctionType) and name != "__init__":
                    yield name, function

    def _copy(self, path: str, holder: Holder) -> Iterator[tuple[str, Any]]:
        before = holder.snapshot()
        self._entries.append((path, holder, before))
        if not isinstance(holder, _OF_VALUES):
            yield from ((str(key), inner) for key, inner in before.items())


def _join(path: str, key: object) -> str:
    return f"{path}.{key}".strip(".")


@contextlib.contextmanager
def preserve_state(root: object) -> Iterator[None]:
    """Restore the Python state of `root` at the end of the block."""
    before = PythonState(root)
    try:
        yield
    finally:
        before.restore()


def same(one: Any, other: Any, depth: int = 0) -> bool:
    """Return True if two values are the same object, or equal data."""
    if one is other:
        return True
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return bool(one == other) or (one != one and other != other)
    if type(one) is not type(other) or depth > DEPTH:
        return False
    all_same = functools.partial(_all_same, depth=depth + 1)
    if isinstance(one, Tensor):
        return _equal(one, other)
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and bool(np.array_equal(one, other))
    if isinstance(one, tuple | list | deque):
        return len(one) == len(other) and all_same(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all_same(one.values(), [other[key] for key in one])
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__ and one.__self__ is other.__self__
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__ and all_same(_cells(one), _cells(other))
    if isinstance(one, set | frozenset | bytearray | array.array | slice | torch.Size | torch.dtype | torch.device):
        return bool(one == other)
    if holders.keeps_position(one):
        return all_same(holders.Position(one).snapshot().values(), holders.Position(other).snapshot().values())
    if isinstance(getattr(one, "__dict__", None), dict) and not isinstance(one, nn.Module) and not callable(one):
        ours, theirs = vars(one), vars(other)
        return ours.keys() == theirs.keys() and all_same(ours.values(), [theirs[key] for key in ours])
    return False


def _all_same(ones: Any, others: Any, depth: int) -> bool:
    pairs = zip(ones, others, strict=False)
    return all(same(one, other, depth) for one, other in pairs)


def _cells(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if holders.is_filled(cell)]
    return [*cells, *(function.__defaults__ or ())]


def _equal(one: Tensor, other: Tensor) -> bool:
    kinds = [(value.shape, value.dtype, value.layout, value.device) for value in (one, other)]
    if kinds[0] != kinds[1] or one.is_meta:
        return False
    try:
        one, other = one.detach(), other.detach()
        return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
    except RuntimeError:  # a batched tensor that outlived its vmap in a dictionary of a hook has no numbers
        return False
