"""Write a local step as TorchScript: the traced operations, then the in-place update of every parameter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx

from fastlocal.kernels import native as kernels_native
from fastlocal.kernels.module_draws import purpose_of

from ..base import LocalProblem
from ..clipping import EPSILON
from . import fuse_linear, fuse_losses, fuse_norms, fuse_pools
from .nodes import ALIASES, memory, name, text


class ScriptText:
    """TorchScript of a function `steps` that takes several local steps.

    Attributes:
        constants: Tensors that the trace refers to, an argument of `steps`.
        needs_channels_last: Nodes whose results are converted to channels-last.
    """

    def __init__(self, problem: LocalProblem, traced: fx.GraphModule, native: Callable[[], bool]) -> None:
        """Plan the text of a traced step.

        Args:
            problem: The local step.
            traced: Its graph; the outputs are the loss, the model's outputs and the gradients.
            native: Loads torch.ops.fastlocal_native and returns whether it is available; called only if it is useful.
        """
        self._problem = problem
        nodes = list(traced.graph.nodes)
        attributes = [node for node in nodes if node.op == "get_attr"]
        self.constants = [_attribute(traced, node.target).detach() for node in attributes]
        self._places = {node: f"constants[{index}]" for index, node in enumerate(attributes)}
        *self._parameters, inputs, targets, client, number = (node for node in nodes if node.op == "placeholder")
        self._batch, self._place = (inputs, targets), (client, number)
        self._calls = [node for node in nodes if node.op == "call_function"]
        results = next(node for node in nodes if node.op == "output").args[0]
        self._loss, self._outputs, *self._grads = results
        self._decays = [problem.weight_decay * decays for decays in problem.layout.decays]
        in_place = problem.clip_norm is None and not problem.nesterov
        gradients = (problem, self._grads if in_place else [], lambda node: memory(node) in self._parameters)
        merged = list(fuse_linear.find_products(*gradients))
        maps = [linear for linear in map(fuse_linear.find_map, self._calls) if linear is not None]
        norms, losses = fuse_norms.find(self._calls), fuse_losses.find(self._calls)
        pools = list(fuse_pools.find(self._calls, {node for norm in norms for node in norm.fused_nodes}))
        linear = any(one.is_native for one in maps) or any(update.is_native for update in merged)
        self._draws = [node for node in self._calls if node.target is torch.ops.fastlocal.module_words.default]
        useful = bool(norms or pools or self._draws) or linear
        self._native = useful and native()
        if self._has("product_update"):
            merged = list(fuse_linear.with_biases(merged, problem, self._grads))
        else:
            merged = [dataclasses.replace(update, is_native=False) for update in merged]
        if not self._has("group_norm_act", "group_norm_act_backward"):
            norms = []
        if not self._has("max_pool_act", "max_pool_act_backward"):
            pools = []
        if not self._has("cross_entropy"):
            losses = []
        self._merged = {update.index: update for update in merged}
        self._done = {*self._merged, *(update.bias.index for update in merged if update.bias is not None)}
        self.needs_channels_last = needs_channels_last(self._calls)
        product = self._has("product")
        self._replacements = {linear.node: lines for linear in maps if (lines := linear.lines(product)) is not None}
        self._replacements.update(part for norm in norms for part in norm.lines(name))
        self._replacements.update(part for pool in pools for part in pool.lines())
        self._replacements.update((loss.node, loss.lines()) for loss in losses)
        self._replacements.update((node, _words(node)) for node in self._draws)
        fusions: list[Any] = [*merged, *norms, *pools, *losses]
        self._fused_nodes = {node for fusion in fusions for node in fusion.fused_nodes}

    def _has(self, *ops: str) -> bool:
        """Return True if the C++ library is loaded and provides all `ops`."""
        return self._native and all(map(kernels_native.has, ops))

    def source(self) -> str:
        """Return the text of this function:

            def steps(row, momentum, constants, inputs, targets, labels, rates, client, numbers, seed)
                -> (losses [steps], correct)

        `row` and `momentum` (or None) are [n_params] and are updated in place; `inputs`, `targets` and `labels` are
        [steps, batch, ...]; `correct` holds the counts of losses.count_correct, in float64. Random draws are those of
        `client` [], the global numbers of its steps in `numbers` [steps], and `seed`.
        """
        names = ["row: Tensor", "momentum: Optional[Tensor]", "constants: List[Tensor]"]
        names += ["inputs: Tensor", "targets: Tensor", "labels: Tensor", "rates: List[float]"]
        names += ["client: Tensor", "numbers: Tensor", "seed: int"]
        (inputs, targets), (client, number) = self._batch, self._place
        views = [node for node in self._calls if self._is_in_row(node)]  # made once: the same memory in every step
        body = ["rate = rates[step]", f"{name(inputs)} = inputs[step]", f"{name(targets)} = targets[step]"]
        body += [f"{name(number)} = numbers[step]"] if self._draws else []
        body += [line for node in self._calls if node not in views for line in self._lines(node)]
        body += [f"losses.append({name(self._loss)})", f"outputs.append({name(self._outputs)}.clone())"]
        body += self._updates()
        merged = (line for update in self._merged.values() for line in update.before())
        lines = ["losses: List[Tensor] = []", "outputs: List[Tensor] = []", *self._parts("params", "row")]
        if self._problem.momentum:
            lines += ["assert momentum is not None", *self._parts("momenta", "momentum")]
        lines += [f"{name(node)} = params[{index}]" for index, node in enumerate(self._parameters)]
        lines.append(f"{name(client)} = client")
        lines += [f"{name(node)} = {value}" for node, value in self._places.items()]
        lines += [*(line for node in views for line in self._lines(node)), *merged]
        lines += ["for step in range(len(rates)):", *("    " + line for line in body)]
        lines += [*self._counts(), "return torch.stack(losses), correct"]
        return f"def steps({', '.join(names)}):\n" + "".join(f"    {line}\n" for line in lines)

    def _parts(self, parts: str, row: str) -> list[str]:
        """Return the lines that split a row into a view of each parameter."""
        layout = self._problem.layout
        views = (f"places[{index}].view({list(shape)})" for index, shape in enumerate(layout.shapes))
        split = f"places = {row}.split_with_sizes({list(layout.sizes)})"
        return [split, f"{parts}: List[Tensor] = [{', '.join(views)}]"]

    def _lines(self, node: fx.Node) -> list[str]:
        if node in self._replacements:
            return self._replacements[node]
        return [] if node in self._fused_nodes or node.target in ALIASES else [self._line(node)]

    def _line(self, node: fx.Node) -> str:
        target: Any = node.target
        if target.__module__ == "_operator":
            return f"{name(node)} = {text(node.args[0])}[{node.args[1]}]"
        arguments = [text(value) for value in node.args]
        arguments += [f"{keyword}={text(value)}" for keyword, value in node.kwargs.items()]
        # a fused operation may return another memory layout, of which the traced view is impossible
        operation = "reshape" if target in (VIEW, UNSAFE_VIEW) else target._opname
        back = ".contiguous(memory_format=torch.channels_last)" if node in self.needs_channels_last else ""
        return f"{name(node)} = torch.ops.{target.namespace}.{operation}({', '.join(arguments)}){back}"

    def _counts(self) -> Iterator[str]:
        """Yield the lines that count correct predictions of all steps at once, as losses.count_correct does."""
        topk, ignored = self._problem.topk, self._problem.ignored
        yield f"correct = torch.zeros([{self._problem.counts}], dtype=torch.float64)"
        if topk:
            yield "scores = torch.stack(outputs)"
            yield f"most = min({max(topk)}, scores.size(-1))"
            yield "hits = torch.topk(scores, most, -1)[1] == labels.unsqueeze(-1)"
            if ignored is not None:
                yield f"left_out = labels == {ignored}"
                yield "hits = hits.logical_and(left_out.logical_not().unsqueeze(-1))"
                yield f"correct[{len(topk)}] += left_out.sum(dtype=torch.float64)"
            for place, k in enumerate(topk):
                yield f"correct[{place}] += hits.narrow(-1, 0, min({k}, most)).sum(dtype=torch.float64)"

    def _is_in_row(self, node: Any) -> bool:
        """Return True if a node is a view of a parameter."""
        while node.op == "call_function" and node.target in VIEWS:
            node = node.args[0]
        return node in self._parameters

    def _updates(self) -> Iterator[str]:
        problem = self._problem
        rest = [index for index in range(len(self._grads)) if index not in self._done]
        for index in rest:
            yield f"g{index} = {name(self._grads[index])}"
        if problem.clip_norm is not None:
            yield f"norms = torch.stack([{', '.join(f'torch.linalg.vector_norm(g{index})' for index in rest)}])"
            yield f"scale = ({problem.clip_norm!r} / (torch.linalg.vector_norm(norms) + {EPSILON!r})).clamp(max=1.0)"
            for index in rest:
                yield f"g{index} = g{index} * scale"
        for update in self._merged.values():
            yield from update.lines()
        for index in rest:
            yield from self._update(index)

    def _update(self, index: int) -> Iterator[str]:
        mu, decay, p, g, m = self._problem.momentum, self._decays[index], f"params[{index}]", f"g{index}", ""
        fusible = mu and not self._problem.nesterov and self._problem.numerics.dtype == torch.float32
        if fusible and self._has("sgd_update"):
            layout = "" if len(self._problem.layout.shapes[index]) == 4 else ".contiguous()"
            yield f"torch.ops.fastlocal_native.sgd_update({p}, momenta[{index}], {g}{layout}, {mu!r}, {decay!r}, rate)"
            return
        if decay:
            yield f"{g} = torch.add({g}, {p}, alpha={decay!r})"
        if mu:
            m = f"momenta[{index}]"
            yield f"{m}.mul_({mu!r}).add_({g})"
            if self._problem.nesterov:
                m = f"torch.add({g}, {m}, alpha={mu!r})"
        yield f"{p}.add_({m or g}, alpha=-rate)"


def _words(node: fx.Node) -> list[str]:
    """Return the lines that draw a module's random words, by the seed of the run in place of the traced one."""
    client, number, size, call, *_ = cast("tuple[Any, ...]", node.args)
    arguments = f"{name(client)}, {name(number)}, {purpose_of(call)}, seed, {name(node)}"
    return [
        f"{name(node)} = torch.empty([{size}], dtype=torch.int64)",
        f"torch.ops.fastlocal_native.module_words({arguments})",
    ]


EXPAND = torch.ops.aten.expand.default
VIEW, UNSAFE_VIEW = torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default
VIEWS = (*ALIASES, torch.ops.aten.t.default, VIEW)


def _attribute(module: Any, path: Any) -> Tensor:
    for part in str(path).split("."):
        module = getattr(module, part)
    assert isinstance(module, Tensor)
    return module


def needs_channels_last(calls: Iterable[fx.Node]) -> set[fx.Node]:
    """Find images in another layout that an operation computes from channels-last images.

    Examples are the backward pass of a slice, and operations on the expanded gradient of a mean. A later operation on
    both layouts would take up to six times as long.
    """
    nodes: set[fx.Node] = set()

    def is_channels_last(node: fx.Node) -> bool:
        return node in nodes or node.target is EXPAND or _layout(node) is torch.channels_last

    for node in calls:
        target: Any = node.target
        if target.__module__ == "_operator" or not _is_image(node) or _layout(node) is not torch.contiguous_format:
            continue
        if "memory_format" in node.kwargs:  # the layout is intended, for example before a view as rows
            continue
        shares_memory = any(value.alias_info is not None for value in target._schema.returns)
        images = [value for value in node.args if isinstance(value, fx.Node) and _is_image(value)]
        if images and not shares_memory and all(map(is_channels_last, images)):
            nodes.add(node)
    return nodes


def _layout(node: fx.Node) -> torch.memory_format | None:
    layout: torch.memory_format | None = node.meta["tensor_meta"].memory_format
    return layout


def _is_image(node: fx.Node) -> bool:
    """Return True if a node's value is images with several channels and pixels, whose layout matters."""
    shape: tuple[int, ...] = getattr(node.meta.get("tensor_meta"), "shape", ())
    return len(shape) == 4 and shape[1] > 1 and math.prod(shape[2:]) > 1
