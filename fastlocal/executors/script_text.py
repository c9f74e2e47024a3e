"""A local step written out as TorchScript: traced operations, then the update of every parameter in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from . import script_norms
from .base import LocalProblem
from .script_norms import ALIAS
from .update import EPSILON

WEIGHT, VALUES, SAMPLES = 2**16, 512, range(16, 49, 8)
LARGE_WEIGHT, FEW_SAMPLES = 3 * 2**18, range(8, 16)
"""x @ W.T is computed as (W @ x.T).T for these numbers of samples, of at least so many values, and sizes of W.

With 784 values and 100 outputs that takes 0.78 of the time for 16 samples and 0.79 for 32; with 3072 and 128 it takes
0.4 and 0.54, and 1.4 times as long for 8 (float32 on one core, MKL 2024.2).
"""

BLOCK, BLOCK_ROWS = 3 * 2**16, 32
"""Numbers of a weight that are updated at a time, so that they and their momenta stay in a core's cache meanwhile; and
what their rows are a multiple of, as products take longer in tiles that are not whole."""


MERGED_WEIGHT, MERGED_SAMPLES = 2**14, 64
"""torch.ops.fastlocal_native updates weights of at least so many numbers, for fewer samples: 128 x 3072 by 16 samples
in 0.6 of the time that blocks take, by 32 in 0.8, by 64 in as much."""


@dataclass(frozen=True)
class _Product:
    """A gradient a @ b that nothing else needs, so that it can be added up where it goes.

    samples: what is summed over
    """

    a: str
    b: str
    samples: int


class ScriptText:
    """The text of `steps`: of every step the traced operations, then the update of every parameter in place.

    native: says whether torch.ops.fastlocal_native is there, and is asked where that could be used
    """

    def __init__(self, problem: LocalProblem, traced: fx.GraphModule, native: Callable[[], bool]) -> None:
        self._problem = problem
        nodes = list(traced.graph.nodes)
        attributes = [node for node in nodes if node.op == "get_attr"]
        self.constants = [_attribute(traced, node.target).detach() for node in attributes]
        self._places = {node: f"constants[{index}]" for index, node in enumerate(attributes)}
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._calls = [node for node in nodes if node.op == "call_function"]
        results = next(node for node in nodes if node.op == "output").args[0]
        self._loss, self._outputs, *self._grads = results
        self._decays = [problem.weight_decay * decays for decays in problem.layout.decays]
        in_place = problem.clip_norm is None and not problem.nesterov
        self._products = self._find_products() if in_place else {}
        self._strayed = _strayed(self._calls)
        self._merged = {index for index, (product, _) in self._products.items() if self._can_merge(index, product)}
        norms = script_norms.find(self._calls)
        if not (norms or self._merged) or not native():
            norms, self._merged = [], set()
        self._replaced = dict(part for norm in norms for part in norm.lines(_name))
        self._gone = {node for _, chain in self._products.values() for node in chain}
        self._gone.update(node for norm in norms for node in norm.gone)

    def source(self) -> str:
        """def steps(params, momenta, constants, inputs, targets, labels, rates) -> (losses [steps], right predictions)

        inputs, targets, labels: [steps, batch, ...]
        """
        names = ["params: List[Tensor]", "momenta: List[Tensor]", "constants: List[Tensor]"]
        names += ["inputs: Tensor", "targets: Tensor", "labels: Tensor", "rates: List[float]"]
        *parameters, inputs, targets = self._inputs
        views = [node for node in self._calls if self._is_parameter(node)]  # of the same memory in every step
        body = ["rate = rates[step]", f"{_name(inputs)} = inputs[step]", f"{_name(targets)} = targets[step]"]
        body += [line for node in self._calls if node not in views for line in self._lines(node)]
        body += [f"losses.append({_name(self._loss)})", f"outputs.append({_name(self._outputs)}.clone())"]
        body += self._updates()
        lines = ["losses: List[Tensor] = []", "outputs: List[Tensor] = []"]
        lines += [f"{_name(node)} = params[{index}]" for index, node in enumerate(parameters)]
        lines += [f"{_name(node)} = {value}" for node, value in self._places.items()]
        lines += [*(line for node in views for line in self._lines(node)), *self._blocks()]
        lines += ["for step in range(len(rates)):", *("    " + line for line in body)]
        lines += [*self._counts(), "return torch.stack(losses), correct"]
        return f"def steps({', '.join(names)}):\n" + "".join(f"    {line}\n" for line in lines)

    def _lines(self, node: fx.Node) -> list[str]:
        if node in self._replaced:
            return self._replaced[node]
        return [] if node in self._gone or node.target is ALIAS else [self._line(node)]

    def _line(self, node: fx.Node) -> str:
        target: Any = node.target
        if target.__module__ == "_operator":
            return f"{_name(node)} = {_text(node.args[0])}[{node.args[1]}]"
        arguments = [_text(value) for value in node.args]
        if target in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default) and not node.kwargs:
            x, weight = node.args[-2:]
            turned = _turned(weight)
            if turned is not None and _worth_turning(x, turned):
                product = f"torch.mm({_name(turned)}, {_text(x)}.t()).t().contiguous()"
                return f"{_name(node)} = {product}" + (f" + {arguments[0]}" if len(arguments) == 3 else "")
        arguments += [f"{name}={_text(value)}" for name, value in node.kwargs.items()]
        # what was a view of one layout may be none of another
        operation = "reshape" if target in (VIEW, UNSAFE_VIEW) else target._opname
        back = ".contiguous(memory_format=torch.channels_last)" if node in self._strayed else ""
        return f"{_name(node)} = torch.ops.{target.namespace}.{operation}({', '.join(arguments)}){back}"

    def _counts(self) -> Iterator[str]:
        """As losses.count_correct does, of all steps at once."""
        topk = self._problem.topk
        yield f"correct = torch.zeros([{len(topk)}], dtype=torch.float64)"
        if topk:
            yield "scores = torch.stack(outputs)"
            yield f"most = min({max(topk)}, scores.size(-1))"
            yield "hits = torch.topk(scores, most, -1)[1] == labels.unsqueeze(-1)"
            for place, k in enumerate(topk):
                yield f"correct[{place}] += hits.narrow(-1, 0, min({k}, most)).sum(dtype=torch.float64)"

    def _find_products(self) -> dict[int, tuple[_Product, list[fx.Node]]]:
        """{parameter: the product that its gradient is, and the nodes that go}, where nothing else needs the gradient.

        The product is then added into the momentum, or into the parameter where there is none, block by block: a third
        of the passes over memory that a gradient of its own takes.
        """
        found = {}
        transpose, product = torch.ops.aten.t.default, torch.ops.aten.mm.default
        for index, node in enumerate(self._grads):
            chain = [node]
            while chain[-1].target is transpose and len(chain[-1].users) == 1:
                chain.append(chain[-1].args[0])
            last = chain[-1]
            same = last.target is product and last.meta["tensor_meta"].dtype == self._problem.numerics.dtype
            if not same or any(len(link.users) != 1 for link in chain) or any(map(self._is_parameter, last.args)):
                continue
            a, b = (_name(value) for value in last.args)
            a, b = (a, b) if len(chain) % 2 else (f"{b}.t()", f"{a}.t()")
            found[index] = _Product(a, b, last.args[0].meta["tensor_meta"].shape[1]), chain
        return found

    def _can_merge(self, index: int, product: _Product) -> bool:
        """Whether torch.ops.fastlocal_native can update a parameter, in one pass, and faster."""
        size = math.prod(self._problem.layout.shapes[index])
        floats = self._problem.numerics.dtype == torch.float32 and self._problem.momentum > 0
        return floats and size >= MERGED_WEIGHT and product.samples < MERGED_SAMPLES

    def _is_parameter(self, node: Any) -> bool:
        """Whether this is memory of a parameter, which another update may have changed."""
        while node.op == "call_function" and node.target in VIEWS:
            node = node.args[0]
        return node in self._inputs[:-2]

    def _updates(self) -> Iterator[str]:
        problem = self._problem
        own = [index for index in range(len(self._grads)) if index not in self._products]
        for index in own:
            yield f"g{index} = {_name(self._grads[index])}"
        if problem.clip_norm is not None:
            yield f"norms = torch.stack([{', '.join(f'torch.linalg.vector_norm(g{index})' for index in own)}])"
            yield f"scale = ({problem.clip_norm!r} / (torch.linalg.vector_norm(norms) + {EPSILON!r})).clamp(max=1.0)"
            for index in own:
                yield f"g{index} = g{index} * scale"
        for index, (product, _) in self._products.items():
            yield from self._product_update(index, product)
        for index in own:
            yield from self._update(index)

    def _update(self, index: int) -> Iterator[str]:
        mu, decay, p, g, m = self._problem.momentum, self._decays[index], f"params[{index}]", f"g{index}", ""
        if decay:
            yield f"{g} = torch.add({g}, {p}, alpha={decay!r})"
        if mu:
            m = f"momenta[{index}]"
            yield f"{m}.mul_({mu!r}).add_({g})"
            if self._problem.nesterov:
                m = f"torch.add({g}, {m}, alpha={mu!r})"
        yield f"{p}.add_({m or g}, alpha=-rate)"

    def _blocks(self) -> Iterator[str]:
        """The parameters that `_product_update` takes in blocks, and their momenta."""
        for index in sorted(self._products.keys() - self._merged) if self._problem.momentum else ():
            for name, values in (("p", "params"), ("m", "momenta")):
                yield f"{name}{index} = {values}[{index}].split({self._block(index)})"

    def _block(self, index: int) -> int:
        """Rows of a parameter that are updated at a time."""
        rows, size = self._problem.layout.shapes[index]
        blocks = max(1, math.ceil(rows * size / BLOCK))
        return max(1, math.ceil(rows / blocks / BLOCK_ROWS) * BLOCK_ROWS)

    def _product_update(self, index: int, product: _Product) -> Iterator[str]:
        mu, decay, p, m = self._problem.momentum, self._decays[index], f"p{index}[row]", f"m{index}[row]"
        # small beside the product, which takes up to a quarter less time then
        a = f"{product.a}.contiguous()"
        if not mu:
            yield f"params[{index}].addmm_({a}, {product.b}, beta=1.0 - rate * {decay!r}, alpha=-rate)"
            return
        if index in self._merged:
            given = f"params[{index}], momenta[{index}], {a}, {product.b}.contiguous()"
            yield f"torch.ops.fastlocal_native.product_update({given}, {mu!r}, {decay!r}, rate)"
            return
        yield f"a = {a}.split({self._block(index)})"
        yield "for row in range(len(a)):"
        yield f"    {m}.addmm_(a[row], {product.b}, beta={mu!r})"
        if decay:
            yield f"    {m}.add_({p}, alpha={decay!r})"
        yield f"    {p}.add_({m}, alpha=-rate)"


EXPAND = torch.ops.aten.expand.default
VIEW, UNSAFE_VIEW = torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default
VIEWS = (ALIAS, torch.ops.aten.t.default, VIEW)


def _attribute(module: Any, path: Any) -> Tensor:
    for name in str(path).split("."):
        module = getattr(module, name)
    assert isinstance(module, Tensor)
    return module


def _turned(node: Any) -> fx.Node | None:
    """What a node is the transpose of, or None."""
    if isinstance(node, fx.Node) and node.target is torch.ops.aten.t.default:
        inner = node.args[0]
        return inner if isinstance(inner, fx.Node) else None
    return None


def _worth_turning(x: Any, weight: fx.Node) -> bool:
    if "tensor_meta" not in x.meta or "tensor_meta" not in weight.meta:  # given with the module, not computed
        return False
    samples, values = x.meta["tensor_meta"].shape
    size = weight.meta["tensor_meta"].shape.numel()
    if samples in FEW_SAMPLES:
        return bool(size >= LARGE_WEIGHT)
    return samples in SAMPLES and values >= VALUES and size >= WEIGHT


def _strayed(calls: Iterable[fx.Node]) -> set[fx.Node]:
    """Images that an operation on channels-last ones leaves in another layout, as the backward pass of a slice does.

    So does what follows the expanded gradient of a mean. Whatever meets them later would read two layouts at once,
    which takes up to six times as long.
    """
    found: set[fx.Node] = set()

    def is_good(node: fx.Node) -> bool:
        return node in found or node.target is EXPAND or _layout(node) is torch.channels_last

    for node in calls:
        target: Any = node.target
        if target.__module__ == "_operator" or not _is_image(node) or _layout(node) is not torch.contiguous_format:
            continue
        if "memory_format" in node.kwargs:  # it asks for that layout, to become rows say
            continue
        shares_memory = any(value.alias_info is not None for value in target._schema.returns)
        images = [value for value in node.args if isinstance(value, fx.Node) and _is_image(value)]
        if images and not shares_memory and all(map(is_good, images)):
            found.add(node)
    return found


def _layout(node: fx.Node) -> torch.memory_format | None:
    layout: torch.memory_format | None = node.meta["tensor_meta"].memory_format
    return layout


def _is_image(node: fx.Node) -> bool:
    """Whether these are images with several channels and pixels."""
    shape: tuple[int, ...] = getattr(node.meta.get("tensor_meta"), "shape", ())
    return len(shape) == 4 and shape[1] > 1 and math.prod(shape[2:]) > 1


def _name(node: Any) -> str:
    while node.target is ALIAS:
        node = node.args[0]
    return f"v_{node.name}"  # whatever TorchScript's own words are


def _text(value: Any) -> str:
    """An argument as TorchScript writes it."""
    if isinstance(value, fx.Node):
        return _name(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.layout | torch.memory_format):
        return str(value) if isinstance(value, torch.dtype | torch.layout | torch.memory_format) else repr(value)
    raise TypeError(f"TorchScript has no word for {value!r}")
