"""Recorded calls of ops in a run, as further test cases for kernels."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.kernels.case import Case, Draws, Inputs, cases

SMALL = 2**16
"""Size up to which a floating-point tensor is recorded; larger ones are values at random."""
TOLERANCES = {torch.float64: "fp64", torch.float32: "fp32 sum", torch.bfloat16: "bf16 sum", torch.float16: "fp16"}
WIDEST = ("fp64", "fp32 sum", "tf32", "fp16", "bf16 sum")


@dataclass(frozen=True)
class RandomTensor:
    """A large tensor with random values: normally distributed, or random bytes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self, draw: Draws) -> Tensor:
        """Draw the values, in the original memory layout."""
        sizes = [1 if stride == 0 else size for size, stride in zip(self.shape, self.stride, strict=True)]
        out = torch.empty_strided(sizes, self.stride, dtype=self.dtype, device=draw.device)
        values = draw.normal(*sizes) if self.dtype.is_floating_point else draw.integers(*sizes, below=256)
        return out.copy_(values).expand(self.shape)


class Calls:
    """Recorded calls by op, one for each combination of shapes, strides, dtypes and options."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, tuple[Inputs, Inputs]]] = {}

    @contextlib.contextmanager
    def record(self) -> Iterator[None]:
        """Let `kernels.get` return plain torch during the block, and record its calls."""
        load = kernels.load

        def load_recorder(op: str, backend: str) -> Callable[..., Any]:
            function = load(op, "reference")
            signature = inspect.signature(function)

            def call(*args: Any, **kwargs: Any) -> Any:
                own = {name: kwargs.pop(name) for name in list(kwargs) if name not in signature.parameters}
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                self._add(op, bound.arguments, own)
                return function(*args, **kwargs)

            return call

        with patch.object(kernels, "load", load_recorder):
            yield

    def save(self, path: Path) -> None:
        """Write the calls to a file for `load_cases`."""
        torch.save({op: list(kinds.values()) for op, kinds in self._found.items()}, path)

    def _add(self, op: str, arguments: Inputs, own: Inputs) -> None:
        kind = repr([own, {name: _kind(value) for name, value in arguments.items() if name != "step"}])
        kinds = self._found.setdefault(op, {})
        if kind not in kinds:
            kinds[kind] = {name: _copy(value) for name, value in arguments.items()}, own


def _kind(value: Any) -> Any:
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    large = value.numel() > SMALL and (value.is_floating_point() or value.dtype == torch.uint8)
    if large:
        return RandomTensor(tuple(value.shape), value.stride(), value.dtype)
    return value.detach().cpu().clone() if value.is_contiguous() else _strided_copy(value.detach())


def _strided_copy(value: Tensor) -> Tensor:
    sizes = [1 if stride == 0 else size for size, stride in zip(value.shape, value.stride(), strict=True)]
    out = torch.empty_strided(sizes, value.stride(), dtype=value.dtype)
    return out.copy_(value.as_strided(sizes, value.stride(), value.storage_offset())).expand(value.shape)


def load_cases(path: Path, op: str) -> tuple[tuple[Case, Inputs], ...]:
    """Return the recorded calls of an op as cases, each with the arguments that the reference does not have."""
    calls: list[tuple[Inputs, Inputs]] = torch.load(path, weights_only=False).get(op, [])
    return tuple((_case(op, inputs, own), own) for inputs, own in calls)


def _case(op: str, inputs: Inputs, own: Inputs) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        return {name: _materialize(value, draw) for name, value in inputs.items()}

    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor | RandomTensor)}
    floating = {name: value.dtype for name, value in tensors.items() if value.dtype.is_floating_point}
    dtypes = [*floating.values(), *(value for value in inputs.values() if isinstance(value, torch.dtype))]
    levels = [TOLERANCES[dtype] for dtype in dtypes] + (["tf32"] if own.get("tf32") else [])
    sizes = ["x".join(map(str, value.shape)) for value in tensors.values()]
    stored = cases(op)

    def tensors_in(names: str) -> tuple[str, ...]:
        known = {name for case in stored for name in getattr(case, names)}
        return tuple(name for name in tensors if name in known)

    return Case(
        name=f"this run's {max(sizes, key=len, default='')}",
        make_inputs=make_inputs,
        tolerance=max(levels, key=WIDEST.index, default="exact"),
        bytes_moved=0,
        flops=0,
        changed=tensors_in("changed"),
        scratch=tensors_in("scratch"),
        differentiated=tuple(name for name in tensors_in("differentiated") if name in floating),
        deterministic=all(case.deterministic for case in stored),
    )


def _materialize(value: Any, draw: Draws) -> Any:
    if isinstance(value, RandomTensor):
        return value.make(draw)
    return value.to(draw.device) if isinstance(value, Tensor) else value
