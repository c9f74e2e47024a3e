"""What a callable keeps in Python between its calls: attributes, containers, closures and globals."""

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
"""Elements of a tensor, or of a container, whose values are looked at."""
_SHARED = (torch.default_generator, np.random.mtrand._rand, random._inst)  # type: ignore[attr-defined]
"""The generators that a process has, whose states are no state of what draws from them."""


_OF_VALUES = (numbers.Values, numbers.Version, numbers.Elements, numbers.Generator)


_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch")
"""What a compiled function keeps is no state of the model."""


class Change(NamedTuple):
    """An entry that is no longer as it was.

    path: names from the root, with dots        before, now: None where there was, or is, no such entry
    in_place: whether the same object has other values now
    new: whether the entry was not there before, or is gone
    lasting: whether it cannot be put back
    """

    path: str
    before: Any
    now: Any
    in_place: bool
    new: bool
    lasting: bool


class PythonState:
    """A copy of what is reachable from an object, to be compared with later or to be put back.

    Attributes:
        tensors: (path, tensor or array) of those that were reached.
        met: Whether something that is passed over was reached.
    """

    def __init__(self, root: object, *, own: nn.Module | None = None, without: Collection[int] = ()) -> None:
        """Copy.

        Args:
            root: A module, a function, a bound method, a partial, a tuple of these or any other object.
            own: A module whose parameters and buffers are passed over.
            without: ids of objects that are passed over with all below them.
        """
        self._parts = set() if own is None else set(map(id, own.modules()))
        passed = [] if own is None else [*own.parameters(), *own.buffers()]
        self._without = frozenset(without)
        self.met = False
        self._seen = {*without, *map(id, passed), *map(id, _SHARED)}
        self._alive = (passed, root)  # as ids of what is gone are used again
        self._ignored: Collection[str] = ()
        self._entries: list[tuple[str, Holder, dict[Any, Any]]] = []
        self.tensors: list[tuple[str, Tensor | np.ndarray]] = []
        self._walk("", root, 0)

    @property
    def reached(self) -> Collection[int]:
        """ids of the objects that were reached."""
        return self._seen

    def changes(self, *, values: bool = True) -> list[Change]:
        """Return what is no longer as it was. values: whether to look at numbers of tensors and large arrays."""
        found = []
        for path, holder, before in self._entries:
            if isinstance(holder, numbers.Version) if values else not holder.cheap:
                continue
            now = holder.take()
            if len(now) == len(before) and all(key in before and before[key] is now[key] for key in now):
                continue
            for key in {**before, **now}:
                there, where = key in now and key in before, _joined(path, key)
                if where not in self._ignored and not (there and same(now[key], before[key])):
                    lasting = isinstance(holder, holders.Position)
                    found.append(Change(where, before.get(key), now.get(key), holder.in_place, not there, lasting))
        return found

    def restore(self) -> None:
        """Put everything back."""
        for _, holder, before in self._entries:
            holder.put(before)

    def ignore(self, paths: Collection[str]) -> None:
        """Drop the entries at these paths and below, which then may change and are kept alive no longer."""
        self._ignored = paths
        below = tuple(f"{path}." for path in paths)
        self._entries = [each for each in self._entries if each[0] not in paths and not each[0].startswith(below)]
        for path, _, before in self._entries:
            for key in [key for key in before if _joined(path, key) in paths]:
                del before[key]
        self.tensors.clear()

    def _walk(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, PLAIN) or isinstance(value, type | types.ModuleType) or depth > DEPTH:
            return
        if type(value).__module__.startswith(_COMPILERS):
            return
        if id(value) in self._seen:
            self.met |= id(value) in self._without
            return
        self._seen.add(id(value))
        for name, inner in self._inside(path, value):
            self._walk(f"{path}.{name}" if path else name, inner, depth + 1)

    def _inside(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Copy what `value` holds itself; yields what it leads to."""
        if isinstance(value, functools.partial):
            yield from (("func", value.func), ("args", list(value.args)), ("keywords", value.keywords))
        elif isinstance(value, types.MethodType):
            yield from (("", value.__self__), (value.__name__, value.__func__))
        elif isinstance(value, nn.Module):
            for name, part in value.named_modules():
                self._seen.add(id(part))
                without = ("_parameters", "_buffers") if id(part) in self._parts else ()
                yield from self._copy(name, holders.Attributes(part, without))
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
        """Yield what the classes of an object keep for all their objects, and the functions in them."""
        for kind in type(value).__mro__:
            if id(kind) in self._seen or kind.__module__.partition(".")[0] in LIBRARIES:
                continue
            self._seen.add(id(kind))
            yield from self._copy(path, holders.ClassData(kind))
            for name, entry in vars(kind).items():
                function = entry.fget if isinstance(entry, property) else getattr(entry, "__func__", entry)
                if isinstance(function, types.FunctionType) and name != "__init__":
                    yield name, function

    def _copy(self, path: str, holder: Holder) -> Iterator[tuple[str, Any]]:
        before = holder.take()
        self._entries.append((path, holder, before))
        if not isinstance(holder, _OF_VALUES):
            yield from ((str(key), inner) for key, inner in before.items())


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}".strip(".")


@contextlib.contextmanager
def kept(root: object) -> Iterator[None]:
    """Undo at the end what becomes of `root`."""
    before = PythonState(root)
    try:
        yield
    finally:
        before.restore()


def same(one: Any, other: Any, depth: int = 0) -> bool:
    """Return whether two values are the same object, or equal ones that keep nothing else."""
    if one is other:
        return True
    if isinstance(one, PLAIN) and isinstance(other, PLAIN):
        return bool(one == other) or (one != one and other != other)
    if type(one) is not type(other) or depth > DEPTH:
        return False
    alike = functools.partial(_all_same, depth=depth + 1)
    if isinstance(one, Tensor):
        return _equal(one.detach(), other.detach())
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and bool(np.array_equal(one, other))
    if isinstance(one, tuple | list | deque):
        return len(one) == len(other) and alike(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and alike(one.values(), [other[key] for key in one])
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__ and one.__self__ is other.__self__
    if isinstance(one, types.FunctionType):
        return one.__code__ is other.__code__ and alike(_cells(one), _cells(other))
    if isinstance(one, set | frozenset | bytearray | array.array | slice | torch.Size | torch.dtype | torch.device):
        return bool(one == other)
    if holders.keeps_position(one):
        return alike(holders.Position(one).take().values(), holders.Position(other).take().values())
    if isinstance(getattr(one, "__dict__", None), dict) and not isinstance(one, nn.Module) and not callable(one):
        return vars(one).keys() == vars(other).keys() and alike(vars(one).values(), [vars(other)[k] for k in vars(one)])
    return False


def _all_same(some: Any, others: Any, depth: int) -> bool:
    pairs = zip(some, others, strict=False)
    return all(same(one, other, depth) for one, other in pairs)


def _cells(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if holders.is_filled(cell)]
    return [*cells, *(function.__defaults__ or ())]


def _equal(one: Tensor, other: Tensor) -> bool:
    kinds = [(value.shape, value.dtype, value.layout, value.device) for value in (one, other)]
    if kinds[0] != kinds[1] or one.is_meta:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
