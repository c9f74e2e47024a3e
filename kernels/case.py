"""Cases: the inputs on which an op is tested, compiled ahead of time and timed.

Each op's `cases.py` holds `CASES`, a tuple of `Case`. The tests walk those that are not `large` with every backend, and
benches and the ahead-of-time compilation walk all of them, by calling the op with the very same arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
"""The op's arguments by name."""


@dataclass(frozen=True)
class Case:
    """One set of arguments of an op.

    name: unique in its op; says shapes and dtypes where they matter, such as "3x127 bf16"
    make_inputs: device -> the arguments by name, the same values at each call; on the device "meta" tensors without
        values, so that nothing is drawn and no memory is taken
    tolerance: the row of the tests' table of tolerances
    bytes_moved: the fewest bytes that must cross device memory, each input read and each output written once
    flops: floating-point operations, a multiplication with an addition counted as two
    changed: arguments that the op changes in place
    scratch: arguments that the op may overwrite with anything
    differentiated: arguments whose gradients are compared too, for the ops that autograd knows
    large: of the size that matters on a GPU, too large for the interpreter
    deterministic: the same bits at each run
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
    """Random tensors for `make_inputs`: the same ones at each run, and without values on the device "meta"."""

    def __init__(self, device: torch.device | str, seed: int = 0) -> None:
        self.device = torch.device(device)
        self.meta = self.device.type == "meta"
        self._generator = None if self.meta else torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Normally distributed with standard deviation `scale`."""
        out = torch.empty(shape, device=self.device, dtype=dtype)
        return out if self.meta else out.normal_(generator=self._generator).mul_(scale)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform in [low, high)."""
        out = torch.empty(shape, device=self.device, dtype=dtype)
        return out if self.meta else out.uniform_(low, high, generator=self._generator)

    def integers(self, *shape: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers in [0, below)."""
        out = torch.empty(shape, device=self.device, dtype=dtype)
        return out if self.meta else out.random_(0, below, generator=self._generator)

    def padded(self, tensor: Tensor, multiple: int = 1, extra: int = 0) -> Tensor:
        """The same values in rows that lie further apart: the next multiple of `multiple` elements, and `extra` more.

        tensor: [..., n]        Returns the same shape, strided as if its last dimension were longer.
        """
        n = tensor.shape[-1]
        width = -(-n // multiple) * multiple + extra
        out = torch.empty((*tensor.shape[:-1], width), device=self.device, dtype=tensor.dtype)[..., :n]
        return out if self.meta else out.copy_(tensor)


def cases(op: str) -> tuple[Case, ...]:
    """The cases of an op; none where its folder has no cases.py."""
    name = f"{__package__}.{op}.cases"
    try:
        return tuple(importlib.import_module(name).CASES)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        return ()


def bytes_of(tensors: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> int:
    """Bytes of tensors that are given as (shape, dtype)."""
    total = 0
    for shape, dtype in tensors:
        elements = 1
        for size in shape:
            elements *= size
        total += elements * dtype.itemsize
    return total
