"""Rebind functions of a copied module, such as hooks, from the original module to the copy."""

from __future__ import annotations

import functools
import types
from collections.abc import Collection
from typing import Any

from torch import nn

from .own_tensors import tensors_of
from .python_state import PythonState
from .state_holders import is_filled


def rebind_functions(module: nn.Module, original: nn.Module) -> None:
    """Replace functions of a copy that refer to the original, its parts or its tensors.

    copy.deepcopy copies attributes but not functions: a lambda or a hook in the copy would still use the original's
    parameters.

    Args:
        module: The copy; its attributes and hooks are replaced.
        original: The module with the same parts and tensors.
    """
    parts = dict(module.named_modules())
    tensors = tensors_of(module)
    own = {id(part): parts[name] for name, part in original.named_modules() if name in parts}
    own |= {id(value): tensors[name] for name, value in tensors_of(original).items() if name in tensors}
    rebind = _Rebinding(own, PythonState(original).reached)
    for part in parts.values():
        names: dict[str, Any] = part.__dict__
        for name, value in names.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                names[name] = rebind(value)


class _Rebinding:
    """Replace objects inside functions and containers of functions."""

    def __init__(self, own: dict[int, Any], shared: Collection[int]) -> None:
        """Set the replacements.

        Args:
            own: {id of an object: its replacement}.
            shared: ids of objects whose attributes are not changed, because the original uses them too.
        """
        self._own, self._originals, self._shared = dict(own), frozenset(own), shared
        self._alive: list[Any] = []  # holds all objects, so that no id is reused

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._own:
            self._alive.append(value)
            self._own[id(value)] = value  # ends the recursion for a function that refers to itself
            self._own[id(value)] = self._rebind(value)
        return self._own[id(value)]

    def _rebind(self, value: Any) -> Any:
        """Return a copy with the replacements, or the value itself if it needs none."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            function, owner = self(value.__func__), self(value.__self__)
            same = function is value.__func__ and owner is value.__self__
            return value if same else types.MethodType(function, owner)
        if isinstance(value, types.BuiltinMethodType) and id(value.__self__) in self._originals:
            return getattr(self(value.__self__), value.__name__)
        if isinstance(value, functools.partial):
            function, args, keywords = self(value.func), self(value.args), self(value.keywords)
            same = function is value.func and args is value.args and keywords is value.keywords
            return value if same else functools.partial(function, *args, **keywords)
        if isinstance(value, dict):
            inner = {key: self(each) for key, each in dict.items(value)}
            if any(inner[key] is not each for key, each in dict.items(value)):
                return _with_entries(value, inner)
        elif type(value) in (list, tuple, set):
            items = [self(each) for each in value]
            if any(one is not each for one, each in zip(items, value, strict=True)):
                return type(value)(items)
        elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type | nn.Module):
            if id(value) not in self._shared:
                vars(value).update({name: self(each) for name, each in vars(value).items()})
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        if not self._refers(function, set()):
            return function
        cells = function.__closure__ or ()
        closure = tuple(types.CellType() for _ in cells)
        copied = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, closure)
        self._own[id(function)] = copied  # for functions that call each other
        for cell, own in zip(cells, closure, strict=True):
            if is_filled(cell):
                own.cell_contents = self(cell.cell_contents)
        copied.__defaults__, copied.__kwdefaults__ = self(function.__defaults__), self(function.__kwdefaults__)
        copied.__dict__.update({name: self(each) for name, each in vars(function).items()})
        return copied

    def _refers(self, value: Any, visited: set[int]) -> bool:
        """Return True if a function refers to an object that is replaced, directly or through others."""
        if id(value) in self._originals:
            return True
        if id(value) in visited:
            return False
        visited.add(id(value))
        inner: list[Any] = []
        if isinstance(value, types.FunctionType):
            inner = [cell.cell_contents for cell in value.__closure__ or () if is_filled(cell)]
            inner += [value.__defaults__, value.__kwdefaults__, vars(value)]
        elif isinstance(value, types.MethodType):
            inner = [value.__func__, value.__self__]
        elif isinstance(value, types.BuiltinMethodType):
            inner = [value.__self__]
        elif isinstance(value, functools.partial):
            inner = [value.func, value.args, value.keywords]
        elif isinstance(value, dict):
            inner = list(dict.values(value))
        elif isinstance(value, list | tuple | set):
            inner = list(value)
        return any(self._refers(each, visited) for each in inner)


def _with_entries(value: dict[Any, Any], inner: dict[Any, Any]) -> Any:
    """Return a dictionary of the same class with other entries; torch stores hooks in an OrderedDict."""
    copied = value.copy()
    copied.update(inner)
    return copied
