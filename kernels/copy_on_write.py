"""Tensors that an operation saves for its gradients, copied before an operation in place changes them.

norm_act saves the residual, which an addition of torch does not: a module may change it in place afterwards.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves


class _Saved:
    """A tensor that autograd holds, and its version when it was saved."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def copy(self) -> None:
        self.__init__(self.tensor.detach().clone())  # type: ignore[misc]

    def value(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError("a tensor that is needed for gradients has been modified by an inplace operation")
        return self.tensor


_saved: weakref.WeakSet[_Saved] = weakref.WeakSet()


def saving() -> AbstractContextManager[Any]:
    """Return a context whose operations save tensors that `copy_before` copies.

    Within other hooks of saved tensors, a checkpoint for example, it changes nothing.
    """
    hooks: Any = torch._C._autograd
    if not hooks._saved_tensors_hooks_is_enabled() or hooks._top_saved_tensors_default_hooks(False) is not None:
        return nullcontext()
    return saved_tensors_hooks(_pack, _Saved.value)


def copy_before(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Copy what was saved of the tensors that a call is about to change."""
    if len(_saved) and in_place(func, args, kwargs):
        changed = tree_leaves((args[:1], kwargs.get("input"), kwargs.get("out")))
        storages = {_storage(value) for value in changed if isinstance(value, Tensor)}
        for saved in list(_saved):
            if _storage(saved.tensor) in storages:
                saved.copy()


def in_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True if a call may change a tensor: by its name, by out=, or by a flag that may be `inplace`."""
    name = getattr(func, "__name__", "")
    dunder = name.startswith("__")
    if dunder and (name.startswith("__i") or name == "__setitem__") or not dunder and name.endswith("_"):
        return True
    return "out" in kwargs or any(value is True for value in (*args, *kwargs.values()))


def elsewhere(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return the arguments of an activation of torch.nn.functional without its `inplace`; None for other calls."""
    place = _inplace_at(func)
    if place is None or not in_place(func, args, kwargs):
        return None
    if "inplace" in kwargs:
        return args, {**kwargs, "inplace": False}
    return (*args[:place], *(False for _ in args[place : place + 1]), *args[place + 1 :]), kwargs


@functools.cache
def _inplace_at(func: Callable[..., Any]) -> int | None:
    """Return the place of the argument `inplace`, or None."""
    if getattr(func, "__module__", "") != "torch.nn.functional":
        return None
    names = [*inspect.signature(func).parameters]
    return names.index("inplace") if "inplace" in names else None


def _pack(tensor: Tensor) -> _Saved:
    saved = _Saved(tensor)
    _saved.add(saved)
    return saved


def _storage(tensor: Tensor) -> int:
    """Return the address of the storage below vmap."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0
