"""Write linear maps of a traced step, and updates of their weights, as the fastest TorchScript."""

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
"""Compute x @ W.T in torch.ops.fastlocal_native for NATIVE_SAMPLES samples, in vectors of LANES samples, if the last
vector lacks at most MISSING samples, or MISSING_OF_LARGE for a W of LARGE numbers.

Its time relative to the faster of MKL's x @ W.T and (W @ x.T).T on one Zen 4 core: 0.61 for 16 samples and W of
128 x 3072, 0.73 for 100 x 784, 0.82 for 10 x 128; 0.7 to 0.93 for 32 samples, 0.81 to 0.96 for 64; for 8 samples 0.81
for 128 x 3072 and 1.09 for 100 x 784.
"""

TRANSPOSED_WEIGHT, TRANSPOSED_VALUES, TRANSPOSED_SAMPLES = 2**16, 512, range(16, 49, 8)
LARGE_TRANSPOSED_WEIGHT, FEW_SAMPLES = 3 * 2**18, range(8, 16)
"""Otherwise compute x @ W.T as (W @ x.T).T for TRANSPOSED_SAMPLES samples, from TRANSPOSED_VALUES values per sample and
TRANSPOSED_WEIGHT numbers of W on; for FEW_SAMPLES samples from LARGE_TRANSPOSED_WEIGHT numbers of W on.

Its time relative to x @ W.T in float32 on one core (MKL 2024.2), with 784 values and 100 outputs: 0.78 for 16 samples,
0.79 for 32; with 3072 values and 128 outputs: 0.4 for 16, 0.54 for 32, 1.4 for 8.
"""

MERGED_WEIGHT, MERGED_SAMPLES = 2**10, 128
"""torch.ops.fastlocal_native updates weights of at least MERGED_WEIGHT numbers, for at most MERGED_SAMPLES samples. Its
time relative to updates by blocks: 0.75 for 128 x 3072 and 16 samples, 0.87 for 128 samples; 0.25 for 10 x 128 and 16
samples."""

BLOCK, BLOCK_ROWS = 3 * 2**16, 32
"""Size of the blocks in which a weight is otherwise updated, so that a block and its momenta stay in a core's cache.
The rows of a block are a multiple of BLOCK_ROWS, because products are slower with partial tiles."""


@dataclass(frozen=True)
class LinearMap:
    """node = x @ weight.T [+ bias]"""

    node: fx.Node
    x: Any
    weight: Any
    bias: Any = None

    @property
    def is_native(self) -> bool:
        """Return True if torch.ops.fastlocal_native is faster."""
        x, weight = (node.meta["tensor_meta"] for node in (self.x, self.weight))
        if {x.dtype, weight.dtype} != {torch.float32} or weight.stride != (weight.shape[1], 1):
            return False
        missing = MISSING_OF_LARGE if weight.shape.numel() >= LARGE else MISSING
        return x.shape[0] in NATIVE_SAMPLES and -x.shape[0] % LANES <= missing

    @property
    def is_transposed(self) -> bool:
        """Return True if torch is faster with the transposed product: not for a weight that is itself a transpose."""
        weight = self.weight.meta["tensor_meta"]
        if weight.stride != (weight.shape[1], 1):
            return False
        samples, values = self.x.meta["tensor_meta"].shape
        size = weight.shape.numel()
        if samples in FEW_SAMPLES:
            return bool(size >= LARGE_TRANSPOSED_WEIGHT)
        return samples in TRANSPOSED_SAMPLES and values >= TRANSPOSED_VALUES and size >= TRANSPOSED_WEIGHT

    def lines(self, native: bool) -> list[str] | None:
        """Return its TorchScript, or None if the traced operation is the fastest."""
        x, weight, own = name(self.x), name(self.weight), name(self.node)
        if native and self.is_native:
            shape = list(self.node.meta["tensor_meta"].shape)
            bias = "None" if self.bias is None else f"{name(self.bias)}.contiguous()"
            arguments = f"{x}.contiguous(), {weight}.contiguous(), {bias}, {own}"
            return [f"{own} = {x}.new_empty({shape})", f"torch.ops.fastlocal_native.product({arguments})"]
        if not self.is_transposed:
            return None
        product = f"torch.mm({weight}, {x}.t()).t().contiguous()"
        return [f"{own} = {product}" + ("" if self.bias is None else f" + {name(self.bias)}")]


def find_map(node: fx.Node) -> LinearMap | None:
    """Return the linear map that a node computes, or None."""
    if node.target not in (aten.addmm.default, aten.mm.default) or node.kwargs:
        return None
    operands: list[Any] = list(node.args)
    *biases, x, weight_t = operands
    weight = _transposed(weight_t)
    # constants of the module have no metadata
    if weight is None or any("tensor_meta" not in operand.meta for operand in (*biases, x, weight)):
        return None
    rows = weight.meta["tensor_meta"].shape[0]
    if any(bias.meta["tensor_meta"].shape != (rows,) for bias in biases):
        return None
    return LinearMap(node, x, weight, *biases)


@dataclass(frozen=True)
class Bias:
    """A bias of a linear map: its gradient is the sum over samples of the factor `left` of the weight's gradient."""

    index: int
    decay: float
    chain: tuple[fx.Node, ...]


@dataclass(frozen=True)
class ProductUpdate:
    """Update of a weight by a gradient a.T @ b without storing the gradient, which no other node needs.

    Attributes:
        index: Number of the parameter.
        left: Node of `a`, or None if `a` is a transpose.
        a: TorchScript of [samples, rows].
        b: TorchScript of [samples, columns].
        chain: Nodes from the gradient back to the product.
        is_native: Whether torch.ops.fastlocal_native updates the weight, and a bias with it, in one pass.
        bias: The bias that is updated with the weight, or None.
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
        """Nodes that this update replaces."""
        return self.chain if self.bias is None else self.chain + self.bias.chain

    def before(self) -> Iterator[str]:
        """Yield the lines before the steps: the blocks of the parameter and of its momentum."""
        if self.momentum and not self.is_native:
            for part, values in (("p", "params"), ("m", "momenta")):
                yield f"{part}{self.index} = {values}[{self.index}].split({self._rows})"

    def lines(self) -> Iterator[str]:
        """Yield the TorchScript of the update."""
        index, mu, decay = self.index, self.momentum, self.decay
        if self.is_native:

            def rows(place: int) -> str:
                return f"params[{place}], " + (f"momenta[{place}]" if mu else "None")

            weight, bias, bias_decay = rows(index), "None, None", 0.0
            factors = f"{self.a}.contiguous(), {self.b}.contiguous()"
            if self.bias is not None:
                bias, bias_decay = rows(self.bias.index), self.bias.decay
            constants = f"{mu!r}, {decay!r}, {bias_decay!r}, rate"
            yield f"torch.ops.fastlocal_native.product_update({weight}, {factors}, {bias}, {constants})"
            return
        # a contiguous copy is small, and makes the product up to a quarter faster
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
        """Rows of a block."""
        rows, columns = self.shape
        blocks = max(1, math.ceil(rows * columns / BLOCK))
        return max(1, math.ceil(rows / blocks / BLOCK_ROWS) * BLOCK_ROWS)


def find_products(
    problem: LocalProblem, grads: list[Any], is_parameter: Callable[[Any], bool]
) -> Iterator[ProductUpdate]:
    """Find the weights whose gradients are products.

    A fused update needs a third of the passes over memory of a gradient followed by its update.

    Args:
        problem: The local step.
        grads: Nodes of the gradients, by parameter.
        is_parameter: Whether a node is a parameter.
    """
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
        native = large and numerics.dtype == torch.float32
        decay = problem.weight_decay * layout.decays[index]
        yield ProductUpdate(index, left, a, b, shape, problem.momentum, decay, tuple(chain), native)


def with_biases(updates: Iterable[ProductUpdate], problem: LocalProblem, grads: list[Any]) -> Iterator[ProductUpdate]:
    """Add to each native update the bias of its linear map, if it has one."""
    used: set[int] = set()
    for update in updates:
        for index, node in enumerate(grads):
            chain = (node, node.args[0]) if node.target is aten.view.default else (node,)
            if update.is_native and index not in used and _is_sum(chain, update.left) and grads.count(node) == 1:
                used.add(index)
                update = dataclasses.replace(
                    update, bias=Bias(index, problem.weight_decay * problem.layout.decays[index], chain)
                )
                break
        yield update


def _is_sum(chain: tuple[Any, ...], summand: fx.Node | None) -> bool:
    """Return True if the last node is the sum of `summand` over samples and no node outside the chain uses it."""
    total = chain[-1]
    if summand is None or total.target is not aten.sum.dim_IntList or total.kwargs:
        return False
    if origin(total.args[0]) is not origin(summand) or total.args[1] != [0]:
        return False
    return all(len(node.users) == 1 for node in chain)


def _transposed(node: fx.Node) -> fx.Node | None:
    """Return the node that `node` transposes, or None."""
    inner = node.args[0] if node.target is aten.t.default else None
    return inner if isinstance(inner, fx.Node) else None
