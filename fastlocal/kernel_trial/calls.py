"""The calls of ops that a run makes, noted while plain torch answers them, as cases to check kernels on."""

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
"""Values of a floating-point tensor up to which they are kept; larger ones are drawn anew."""
TOLERANCES = {torch.float64: "fp64", torch.float32: "fp32 sum", torch.bfloat16: "bf16 sum", torch.float16: "fp16"}
WIDEST = ("fp64", "fp32 sum", "tf32", "fp16", "bf16 sum")


@dataclass(frozen=True)
class Drawn:
    """A large tensor whose values do not matter: normally distributed, or any bytes."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self, draw: Draws) -> Tensor:
        """Its values, in the same memory layout."""
        sizes = [1 if stride == 0 else size for size, stride in zip(self.shape, self.stride, strict=True)]
        out = torch.empty_strided(sizes, self.stride, dtype=self.dtype, device=draw.device)
        drawn = draw.normal(*sizes) if self.dtype.is_floating_point else draw.integers(*sizes, below=256)
        return out.copy_(drawn).expand(self.shape)


class Calls:
    """Calls by op, one of each kind: of shapes, strides, types and options."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, tuple[Inputs, Inputs]]] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """While it lasts, what `kernels.get` returns is plain torch, and its calls are noted."""
        load = kernels.load

        def noting(op: str, backend: str) -> Callable[..., Any]:
            function = load(op, "reference")
            signature = inspect.signature(function)

            def call(*args: Any, **kwargs: Any) -> Any:
                own = {name: kwargs.pop(name) for name in list(kwargs) if name not in signature.parameters}
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                self._note(op, bound.arguments, own)
                return function(*args, **kwargs)

            return call

        with patch.object(kernels, "load", noting):
            yield

    def save(self, path: Path) -> None:
        """Write them for `load_cases`."""
        torch.save({op: list(kinds.values()) for op, kinds in self._found.items()}, path)

    def _note(self, op: str, arguments: Inputs, own: Inputs) -> None:
        kind = repr([own, {name: _kind(value) for name, value in arguments.items() if name != "step"}])
        kinds = self._found.setdefault(op, {})
        if kind not in kinds:
            kinds[kind] = {name: _kept(value) for name, value in arguments.items()}, own


def _kind(value: Any) -> Any:
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _kept(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    large = value.numel() > SMALL and (value.is_floating_point() or value.dtype == torch.uint8)
    if large:
        return Drawn(tuple(value.shape), value.stride(), value.dtype)
    return value.detach().cpu().clone() if value.is_contiguous() else _strided_copy(value.detach())


def _strided_copy(value: Tensor) -> Tensor:
    sizes = [1 if stride == 0 else size for size, stride in zip(value.shape, value.stride(), strict=True)]
    out = torch.empty_strided(sizes, value.stride(), dtype=value.dtype)
    return out.copy_(value.as_strided(sizes, value.stride(), value.storage_offset())).expand(value.shape)


def load_cases(path: Path, op: str) -> tuple[tuple[Case, Inputs], ...]:
    """The noted calls of an op, and the arguments of each that the reference does not have."""
    noted: list[tuple[Inputs, Inputs]] = torch.load(path, weights_only=False).get(op, [])
    return tuple((_case(op, inputs, own), own) for inputs, own in noted)


def _case(op: str, inputs: Inputs, own: Inputs) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        return {name: _made(value, draw) for name, value in inputs.items()}

    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor | Drawn)}
    floating = {name: value.dtype for name, value in tensors.items() if value.dtype.is_floating_point}
    dtypes = [*floating.values(), *(value for value in inputs.values() if isinstance(value, torch.dtype))]
    levels = [TOLERANCES[dtype] for dtype in dtypes] + (["tf32"] if own.get("tf32") else [])
    sizes = ["x".join(map(str, value.shape)) for value in tensors.values()]
    like = cases(op)

    def of_all(names: str) -> tuple[str, ...]:
        known = {name for case in like for name in getattr(case, names)}
        return tuple(name for name in tensors if name in known)

    return Case(
        name=f"this run's {max(sizes, key=len, default='')}",
        make_inputs=make_inputs,
        tolerance=max(levels, key=WIDEST.index, default="exact"),
        bytes_moved=0,
        flops=0,
        changed=of_all("changed"),
        scratch=of_all("scratch"),
        differentiated=tuple(name for name in of_all("differentiated") if name in floating),
        deterministic=all(case.deterministic for case in like),
    )


def _made(value: Any, draw: Draws) -> Any:
    if isinstance(value, Drawn):
        return value.make(draw)
    return value.to(draw.device) if isinstance(value, Tensor) else value
