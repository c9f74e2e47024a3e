"""What --precision bf16 computes in which number format, looked at inside a stacked step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlocal.executors.stacked import StackedExecutor
from tests.executors.test_executors import problem_of, start

OPERANDS = {"convolution", "convolution_backward"}
NORMS = {"native_group_norm", "native_batch_norm"}
ACTIVATIONS = {"silu", "silu_backward", "relu"}
UPDATES = {"addcmul_", "mul_", "add_"}


class Dtypes(TorchDispatchMode):
    """Notes the dtypes of what torch's own operations are given and give back."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, set[torch.dtype]] = {}
        self.results: dict[str, list[list[torch.dtype]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        floats = [value.dtype for value in tree_leaves(args) if isinstance(value, Tensor) and value.is_floating_point()]
        self.given.setdefault(name, set()).update(floats)
        self.results.setdefault(name, []).append([v.dtype for v in tree_leaves(out) if isinstance(v, Tensor)])
        return out


@pytest.mark.parametrize("name", ["groupnorm", "batchnorm"])
def test_activations_are_bfloat16_and_what_adds_up_is_float32(name: str) -> None:
    problem = problem_of(name, torch.float32, torch.bfloat16, nesterov=True)
    stack, plan = start(problem)
    with Dtypes() as seen:
        result = StackedExecutor(problem).run_round(stack, plan)
    assert all(seen.given[op] == {torch.bfloat16} for op in OPERANDS)
    assert stack.params.dtype == result.losses.dtype == torch.float32
    assert stack.momentum is not None and stack.momentum.dtype == torch.float32
    assert all(seen.given[op] == {torch.float32} for op in UPDATES & set(seen.given))
    statistics = [dtypes[1:] for op in NORMS & set(seen.results) for dtypes in seen.results[op]]
    assert statistics and all(dtype == torch.float32 for dtypes in statistics for dtype in dtypes)
    assert all(seen.given[op] == {torch.bfloat16} for op in ACTIVATIONS & set(seen.given))
