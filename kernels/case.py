"""Cases: inputs for the tests, the ahead-of-time compilation and the benchmarks of an op.

Each op's `cases.py` holds `CASES`, a tuple of `Case`. Tests run those that are not `large` with every backend;
benchmarks and the ahead-of-time compilation run all of them. All call the op with the same arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
"""Arguments of an op by name."""


@dataclass(frozen=True)
class Case:
    """One set of arguments of an op.

    Attributes:
        name: Unique in its op; shapes and dtypes, such as "3x127 bf16".
        make_inputs: Makes the arguments on a device, the same values at each call; on the device "meta", tensors
            without values and memory.
        tolerance: Row of the tests' tolerance table.
        bytes_moved: Minimum bytes that cross device memory: each input read and each output written once.
        flops: Floating-point operations; a multiply-add counts as two.
        changed: Arguments that the op changes in place.
        scratch: Arguments that the op may overwrite.
        differentiated: Arguments whose gradients are compared, for differentiable ops.
        large: Too large for the interpreter; of the size that matters on a GPU.
        deterministic: Whether every run gives the same bits.
    """

    name: str
    make_inputs: Callable[[torch.device], Inputs]
    tolerance: str
    bytes_moved: int
    flops: int
    changed: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    differentiated: tuple[str, ...] = ()
    large: bool = False
    deterministic: bool = True


class Draws:
    """Random tensors for `make_inputs`: the same in each run; without values on the device "meta"."""

    def __init__(self, device: torch.device | str, seed: int = 0) -> None:
        self.device = torch.device(device)
        self.meta = self.device.type == "meta"
        self._generator = None if self.meta else torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Draw from a normal distribution with standard deviation `scale`."""
        out = torch.empty(shape, device=self.device, dtype=dtype)
        return out if self.meta else out.normal_(generator=self._generator).mul_(scale)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw uniformly from [low, high)."""
        out = torch.empty(shape, device=self.device, dtype=dtype)
        return out if self.meta else out.uniform_(low, high, generator=self._generator)

    def integers(self, *shape: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Draw integers from [0, below)."""
        out = torch.empty(shape, device=self.device, dtype=dtype)
        return out if self.meta else out.random_(0, below, generator=self._generator)

    def padded(self, tensor: Tensor, multiple: int = 1, extra: int = 0) -> Tensor:
        """Copy [..., n] into rows with a stride of the next multiple of `multiple` elements, plus `extra`."""
        n = tensor.shape[-1]
        width = -(-n // multiple) * multiple + extra
        out = torch.empty((*tensor.shape[:-1], width), device=self.device, dtype=tensor.dtype)[..., :n]
        return out if self.meta else out.copy_(tensor)


def cases(op: str) -> tuple[Case, ...]:
    """Return the cases of an op; () if its folder has no cases.py."""
    name = f"{__package__}.{op}.cases"
    try:
        return tuple(importlib.import_module(name).CASES)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        return ()


def bytes_of(tensors: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> int:
    """Return the bytes of tensors described by (shape, dtype)."""
    total = 0
    for shape, dtype in tensors:
        elements = 1
        for size in shape:
            elements *= size
        total += elements * dtype.itemsize
    return total
