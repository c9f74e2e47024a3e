"""Record the operations of a step as a graph."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

VALUE = "value"
"""Key of a node's meta: what the recorded call returned."""


class Recording:
    """The operations of one call.

    Attributes:
        graph: The operations; its placeholders are the inputs, then the constants, in their order.
        constants: Tensors that the operations read and that are neither inputs nor results.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.constants: list[Tensor] = []
        self._placeholders: list[fx.Node] = []

    def add_placeholder(self, value: Tensor) -> fx.Node:
        """Add an input or, if `value` is also appended to `constants`, a constant."""
        before = self._placeholders[-1] if self._placeholders else self.graph._root
        with self.graph.inserting_after(before):
            node = self.graph.placeholder(f"tensor{len(self._placeholders)}")
        node.meta[VALUE] = value
        self._placeholders.append(node)
        return node

    def add_constant(self, value: Tensor) -> fx.Node:
        """Add a constant."""
        self.constants.append(value)
        return self.add_placeholder(value)

    @property
    def constant_nodes(self) -> list[fx.Node]:
        """Placeholders of the constants."""
        return self._placeholders[len(self._placeholders) - len(self.constants) :]

    def is_same(self, other: Recording) -> bool:
        """Return True if another call took the same operations on equal constants."""
        if str(self.graph) != str(other.graph):  # with all arguments that are no tensors
            return False
        pairs = zip(self.constants, other.constants, strict=True)
        return all(one is another or torch.equal(one, another) for one, another in pairs)

    def function(self, *, direct: bool) -> Callable[..., Any]:
        """Return the operations as a function of the inputs; it holds no recorded tensor but the constants.

        Args:
            direct: Whether to call torch.bmm for torch.ops.aten.bmm.default and so on, which takes 2 us less a call.
                Torch may take the arguments for those of another overload.
        """
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        for node in graph.nodes:
            if direct and getattr(node.target, "namespace", "") == "aten":
                own = getattr(torch, node.target.overloadpacket.__name__, None)
                node.target = own if isinstance(own, types.BuiltinFunctionType) else node.target
        code = graph.python_code("self")
        names = dict(code.globals)
        exec(compile(code.src, "<recorded step>", "exec"), names)
        return functools.partial(_call, names["forward"], tuple(self.constants))


def _call(forward: Callable[..., Any], constants: tuple[Tensor, ...], *inputs: Tensor) -> Any:
    return forward(None, *inputs, *constants)


class Recorder(TorchDispatchMode):
    """Records what runs within the mode, below vmap and autograd."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports torch._dynamo, sympy and triton when the mode is entered: 2 s

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._recording = Recording()
        self._nodes = {id(value): self._recording.add_placeholder(value) for value in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":  # the spans of a trace
            return func(*args, **kwargs)
        graph = self._recording.graph
        node = graph.call_function(func, *tree_map_only(Tensor, self._node, (tuple(args), dict(kwargs))))
        result = func(*args, **kwargs)
        self._keep(result, node)
        if isinstance(result, tuple | list):
            for place, part in enumerate(result):
                self._keep(part, graph.call_function(operator.getitem, (node, place)))
        return result

    def finish(self, results: Any) -> Recording:
        """Return the recording of a call with these results, a tree of tensors."""
        self._recording.graph.output(tree_map_only(Tensor, self._node, results))
        return self._recording

    def _keep(self, value: Any, node: fx.Node) -> None:
        node.meta[VALUE] = value  # alive, so that no other tensor gets its id
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node

    def _node(self, value: Tensor) -> fx.Node:
        if id(value) not in self._nodes:
            self._nodes[id(value)] = self._recording.add_constant(value)
        return self._nodes[id(value)]
