"""Programs that torch.compile makes, counted."""

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
    """Compiles functions with Inductor, without graph breaks and with fixed shapes; other shapes make other graphs.

    graphs: how many were compiled so far
    What Inductor generates is kept in the user's cache folder, so that the next run starts warm.
    """

    def __init__(self) -> None:
        self.graphs = 0
        os.environ.setdefault(CACHE, str(cache_file("inductor")))

    def compile(self, method: Callable[P, T]) -> Callable[P, T]:
        """The bound method `method`, compiled when it is first called."""
        assert isinstance(method, types.MethodType)
        given = method.__func__
        # torch keeps graphs, of which it allows few, with the code object: one of its own for every compilation
        code, closure = given.__code__.replace(), given.__closure__
        fresh = types.FunctionType(code, given.__globals__, given.__name__, given.__defaults__, closure)
        bound = types.MethodType(fresh, method.__self__)
        compiled: Callable[P, T] = torch.compile(bound, backend=self._inductor, fullgraph=True, dynamic=False)
        return compiled

    def _inductor(self, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        self.graphs += 1
        return compile_fx(graph, inputs)
