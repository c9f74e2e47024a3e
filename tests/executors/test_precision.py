"""What --precision bf16 computes in which number format, looked at inside a stacked step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlocal.executors.looped import LoopedExecutor
from fastlocal.executors.stacked import StackedExecutor
from tests.executors.problems import problem_of, start

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


class Unscaled(nn.Sequential):
    """Norms without weights."""

    def __init__(self) -> None:
        norms = nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4, affine=False), nn.InstanceNorm2d(4)
        layers = [part for norm in norms for part in (norm, nn.Conv2d(4, 4, 3, padding=1))]
        super().__init__(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.Linear(48, 6), nn.LayerNorm(6, bias=False))
        self.append(nn.LayerNorm(6, elementwise_affine=False)).append(nn.Linear(6, 4))


@pytest.mark.parametrize("executor", [StackedExecutor, LoopedExecutor])
def test_statistics_of_norms_without_weights_are_float32(executor: Any) -> None:
    problem = problem_of("unscaled", torch.float32, torch.bfloat16, module=Unscaled())
    stack, plan = start(problem)
    with Dtypes() as seen:
        executor(problem).run_round(stack, plan)
    statistics = {op: {dtype for dtypes in seen.results[op] for dtype in dtypes[1:]} for op in seen.results}
    norms = {op: dtypes for op, dtypes in statistics.items() if op in NORMS | {"native_layer_norm"}}
    assert len(norms) == 3 and set().union(*norms.values()) == {torch.float32}
