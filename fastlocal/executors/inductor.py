"""Compile functions with Inductor, and count the compiled graphs."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import fx

from ..common.disk_cache import cache_file

CACHE = "TORCHINDUCTOR_CACHE_DIR"
P = ParamSpec("P")
T = TypeVar("T")


class Compiler:
    """Compile functions with Inductor, without graph breaks and for fixed shapes.

    Inductor's files are stored in the user's cache folder, so that the next run starts warm.

    Attributes:
        graphs: Number of graphs compiled so far, one per function and shape.
    """

    def __init__(self) -> None:
        self.graphs = 0
        os.environ.setdefault(CACHE, str(cache_file("inductor")))

    def compile(self, method: Callable[P, T]) -> Callable[P, T]:
        """Return a bound method that is compiled at its first call."""
        assert isinstance(method, types.MethodType)
        function = method.__func__
        # torch limits the number of graphs per code object, so that every compilation gets its own copy
        code, closure = function.__code__.replace(), function.__closure__
        copied = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        bound = types.MethodType(copied, method.__self__)
        compiled: Callable[P, T] = torch.compile(bound, backend=self._inductor, fullgraph=True, dynamic=False)
        return compiled

    def _inductor(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        self.graphs += 1
        return compile_fx(graph, inputs)
