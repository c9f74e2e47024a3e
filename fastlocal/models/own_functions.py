"""Functions that a copied module keeps, such as hooks, made to mean the copy and not the module it was copied from."""

from __future__ import annotations

import functools
import types
from collections.abc import Collection
from typing import Any

from torch import nn

from .own_tensors import tensors_of
from .python_state import PythonState
from .state_holders import is_filled


def own_functions(module: nn.Module, original: nn.Module) -> None:
    """Replace the functions of a copy that hold the original, its parts or its tensors.

    copy.deepcopy copies attributes and leaves functions as they are: a lambda or a hook around the original module
    goes on computing with the original's parameters.

    Args:
        module: The copy; its attributes and hooks change.
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
    """Replaces objects by others wherever functions, and containers of functions, hold them."""

    def __init__(self, own: dict[int, Any], shared: Collection[int]) -> None:
        """Begin.

        Args:
            own: Others, by the ids of what they replace.
            shared: ids of objects that stay as they are, though what they hold may be replaced in copies of functions.
        """
        self._own, self._shared = dict(own), shared
        self._alive: list[Any] = []  # as ids of what is gone are used again

    def __call__(self, value: Any) -> Any:
        if id(value) not in self._own:
            self._alive.append(value)
            self._own[id(value)] = value  # while it is looked through: a function may hold itself
            self._own[id(value)] = self._rebound(value)
        return self._own[id(value)]

    def _rebound(self, value: Any) -> Any:
        """A copy that holds the others, or the value itself where it holds none."""
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            function, owner = self(value.__func__), self(value.__self__)
            same = function is value.__func__ and owner is value.__self__
            return value if same else types.MethodType(function, owner)
        if isinstance(value, functools.partial):
            function, args, keywords = self(value.func), self(value.args), self(value.keywords)
            same = function is value.func and args is value.args and keywords is value.keywords
            return value if same else functools.partial(function, *args, **keywords)
        if isinstance(value, dict):
            inner = {key: self(each) for key, each in dict.items(value)}
            if any(inner[key] is not each for key, each in dict.items(value)):
                return _filled(value, inner)
        elif type(value) in (list, tuple, set):
            several = [self(each) for each in value]
            if any(one is not each for one, each in zip(several, value, strict=True)):
                return type(value)(several)
        elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type | nn.Module):
            if id(value) not in self._shared:
                vars(value).update({name: self(each) for name, each in vars(value).items()})
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = function.__closure__ or ()
        inner = [self(cell.cell_contents) if is_filled(cell) else None for cell in cells]
        defaults, keywords = self(function.__defaults__), self(function.__kwdefaults__)
        changed = any(is_filled(cell) and cell.cell_contents is not one for cell, one in zip(cells, inner, strict=True))
        if not changed and defaults is function.__defaults__ and keywords is function.__kwdefaults__:
            return function
        closure = tuple(types.CellType(one) for one in inner)
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
        for cell, own in zip(cells, closure, strict=True):
            if not is_filled(cell):
                del own.cell_contents
            elif cell.cell_contents is function:
                own.cell_contents = made
        made.__kwdefaults__ = keywords
        made.__dict__.update(vars(function))
        return made


def _filled(value: dict[Any, Any], inner: dict[Any, Any]) -> Any:
    """A dictionary of the same kind with other entries: torch keeps hooks in an OrderedDict."""
    made = value.copy()
    made.update(inner)
    return made
