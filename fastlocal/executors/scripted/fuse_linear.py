"""Linear maps of a traced step, and updates of their weights, written as the TorchScript that takes least time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..base import LocalProblem
from .nodes import name, origin

aten = torch.ops.aten

NATIVE_SAMPLES, LANES = range(8, 129), 16
MISSING, LARGE, MISSING_OF_LARGE = 4, 2**18, 8
"""torch.ops.fastlocal_native computes x @ W.T for so many samples, in vectors of LANES of them, where no more than so
many are missing from the last one, which depends on the size of W.

It takes 0.61 of the time of the faster of MKL's two ways for 16 samples and a W of 128 x 3072, 0.73 of 100 x 784, 0.82
of 10 x 128; 0.7 to 0.93 for 32, 0.81 to 0.96 for 64; for 8, 0.81 of 128 x 3072 and 1.09 of 100 x 784 (one Zen 4 core).
"""

TURNED_WEIGHT, TURNED_VALUES, TURNED_SAMPLES = 2**16, 512, range(16, 49, 8)
LARGE_TURNED_WEIGHT, FEW_SAMPLES = 3 * 2**18, range(8, 16)
"""Without those, x @ W.T is computed as (W @ x.T).T for these numbers of samples, of at least so many values, and sizes
of W.

With 784 values and 100 outputs that takes 0.78 of the time for 16 samples and 0.79 for 32; with 3072 and 128 it takes
0.4 and 0.54, and 1.4 times as long for 8 (float32 on one core, MKL 2024.2).
"""

MERGED_WEIGHT, MERGED_SAMPLES = 2**10, 128
"""torch.ops.fastlocal_native updates weights of at least so many numbers, for at most so many samples: 128 x 3072 by 16
samples in 0.75 of the time that blocks take, by 128 in 0.87; 10 x 128 by 16 in a quarter."""

BLOCK, BLOCK_ROWS = 3 * 2**16, 32
"""Numbers of a weight that are else updated at a time, so that they and their momenta stay in a core's cache meanwhile;
and what their rows are a multiple of, as products take longer in tiles that are not whole."""


@dataclass(frozen=True)
class LinearMap:
    """node = x @ weight.T [+ bias]"""

    node: fx.Node
    x: Any
    weight: Any
    bias: Any = None

    @property
    def is_native(self) -> bool:
        """Whether torch.ops.fastlocal_native computes it in less time."""
        x, weight = (node.meta["tensor_meta"] for node in (self.x, self.weight))
        if {x.dtype, weight.dtype} != {torch.float32} or weight.stride != (weight.shape[1], 1):
            return False
        missing = MISSING_OF_LARGE if weight.shape.numel() >= LARGE else MISSING
        return x.shape[0] in NATIVE_SAMPLES and -x.shape[0] % LANES <= missing

    @property
    def is_turned(self) -> bool:
        """Whether the transposed product takes less time in torch."""
        samples, values = self.x.meta["tensor_meta"].shape
        size = self.weight.meta["tensor_meta"].shape.numel()
        if samples in FEW_SAMPLES:
            return bool(size >= LARGE_TURNED_WEIGHT)
        return samples in TURNED_SAMPLES and values >= TURNED_VALUES and size >= TURNED_WEIGHT

    def lines(self, native: bool) -> list[str] | None:
        """The TorchScript of it, or None where it is best as it was traced."""
        x, weight, own = name(self.x), name(self.weight), name(self.node)
        if native and self.is_native:
            shape = list(self.node.meta["tensor_meta"].shape)
            bias = "None" if self.bias is None else f"{name(self.bias)}.contiguous()"
            given = f"{x}.contiguous(), {weight}.contiguous(), {bias}, {own}"
            return [f"{own} = {x}.new_empty({shape})", f"torch.ops.fastlocal_native.product({given})"]
        if not self.is_turned:
            return None
        product = f"torch.mm({weight}, {x}.t()).t().contiguous()"
        return [f"{own} = {product}" + ("" if self.bias is None else f" + {name(self.bias)}")]


def find_map(node: fx.Node) -> LinearMap | None:
    """What a node could compute in another way than it was traced, or None."""
    if node.target not in (aten.addmm.default, aten.mm.default) or node.kwargs:
        return None
    operands: list[Any] = list(node.args)
    *biases, x, turned = operands
    weight = _transposed(turned)
    if weight is None or any(
        "tensor_meta" not in part.meta for part in (*biases, x, weight)
    ):  # given with the module, not computed
        return None
    rows = weight.meta["tensor_meta"].shape[0]
    if any(bias.meta["tensor_meta"].shape != (rows,) for bias in biases):
        return None
    return LinearMap(node, x, weight, *biases)


@dataclass(frozen=True)
class Bias:
    """A parameter whose gradient is the sum over samples of what a weight's gradient is a product of."""

    index: int
    decay: float
    chain: tuple[fx.Node, ...]


@dataclass(frozen=True)
class ProductUpdate:
    """The update of parameter `index` by a gradient a.T @ b that nothing else needs, added up where it goes.

    a, b: TorchScript of [samples, rows] and [samples, columns]        left: the node of a, if there is one
    chain: the gradient and what leads from the product to it
    is_native: whether torch.ops.fastlocal_native does it, in one pass, and with it that of a bias
    """

    index: int
    left: fx.Node | None
    a: str
    b: str
    shape: tuple[int, ...]
    momentum: float
    decay: float
    chain: tuple[fx.Node, ...]
    is_native: bool
    bias: Bias | None = None

    @property
    def fused_nodes(self) -> tuple[fx.Node, ...]:
        """The nodes that go with the gradients."""
        return self.chain if self.bias is None else self.chain + self.bias.chain

    def before(self) -> Iterator[str]:
        """The blocks that are updated at a time, of the parameter and of its momentum."""
        if self.momentum and not self.is_native:
            for part, values in (("p", "params"), ("m", "momenta")):
                yield f"{part}{self.index} = {values}[{self.index}].split({self._rows})"

    def lines(self) -> Iterator[str]:
        index, mu, decay = self.index, self.momentum, self.decay
        if self.is_native:
            given, bias_decay = f"params[{index}], momenta[{index}], {self.a}.contiguous(), {self.b}.contiguous()", 0.0
            bias = "None, None"
            if self.bias is not None:
                bias, bias_decay = f"params[{self.bias.index}], momenta[{self.bias.index}]", self.bias.decay
            constants = f"{mu!r}, {decay!r}, {bias_decay!r}, rate"
            yield f"torch.ops.fastlocal_native.product_update({given}, {bias}, {constants})"
            return
        # small beside the product, which takes up to a quarter less time then
        a = f"{self.a}.t().contiguous()"
        if not mu:
            yield f"params[{index}].addmm_({a}, {self.b}, beta=1.0 - rate * {decay!r}, alpha=-rate)"
            return
        p, m = f"p{index}[block]", f"m{index}[block]"
        yield f"a = {a}.split({self._rows})"
        yield "for block in range(len(a)):"
        yield f"    {m}.addmm_(a[block], {self.b}, beta={mu!r})"
        if decay:
            yield f"    {m}.add_({p}, alpha={decay!r})"
        yield f"    {p}.add_({m}, alpha=-rate)"

    @property
    def _rows(self) -> int:
        """Of the weight, that are updated at a time."""
        rows, columns = self.shape
        blocks = max(1, math.ceil(rows * columns / BLOCK))
        return max(1, math.ceil(rows / blocks / BLOCK_ROWS) * BLOCK_ROWS)


def find_products(
    problem: LocalProblem, grads: list[Any], is_parameter: Callable[[Any], bool]
) -> Iterator[ProductUpdate]:
    """Of the weights whose gradients are products: a third of the passes over memory that own gradients take."""
    numerics, layout = problem.numerics, problem.layout
    for index, node in enumerate(grads):
        chain = [node]
        while chain[-1].target is aten.t.default and len(chain[-1].users) == 1:
            chain.append(chain[-1].args[0])
        last = chain[-1]
        same = last.target is aten.mm.default and last.meta["tensor_meta"].dtype == numerics.dtype
        if not same or any(len(link.users) != 1 for link in chain) or any(map(is_parameter, last.args)):
            continue
        first, second = last.args
        left = second if len(chain) % 2 == 0 else _transposed(first)
        a = f"{name(first)}.t()" if left is None else name(left)
        b = name(second) if len(chain) % 2 else f"{name(first)}.t()"
        samples, shape = first.meta["tensor_meta"].shape[1], layout.shapes[index]
        large = math.prod(shape) >= MERGED_WEIGHT and samples <= MERGED_SAMPLES
        native = large and numerics.dtype == torch.float32 and problem.momentum > 0
        decay = problem.weight_decay * layout.decays[index]
        yield ProductUpdate(index, left, a, b, shape, problem.momentum, decay, tuple(chain), native)


def with_biases(updates: Iterable[ProductUpdate], problem: LocalProblem, grads: list[Any]) -> Iterator[ProductUpdate]:
    """The same, and with each the bias that belongs to it, where there is one."""
    taken: set[int] = set()
    for update in updates:
        for index, node in enumerate(grads):
            chain = (node, node.args[0]) if node.target is aten.view.default else (node,)
            if update.is_native and index not in taken and _is_sum(chain, update.left) and grads.count(node) == 1:
                taken.add(index)
                update = dataclasses.replace(
                    update, bias=Bias(index, problem.weight_decay * problem.layout.decays[index], chain)
                )
                break
        yield update


def _is_sum(chain: tuple[Any, ...], of: fx.Node | None) -> bool:
    """Whether the last node is the sum over samples of another one, and nothing else needs it."""
    total = chain[-1]
    if of is None or total.target is not aten.sum.dim_IntList or total.kwargs:
        return False
    return origin(total.args[0]) is origin(of) and total.args[1] == [0] and all(len(node.users) == 1 for node in chain)


def _transposed(node: fx.Node) -> fx.Node | None:
    """What a node is the transpose of, or None."""
    inner = node.args[0] if node.target is aten.t.default else None
    return inner if isinstance(inner, fx.Node) else None
