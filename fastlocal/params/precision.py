"""Which number formats a run computes in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from ..common.errors import UsageError
from ..config.schema import Precision


@dataclass(frozen=True)
class Numerics:
    """dtype: of images, parameters and momenta        autocast_dtype: of forward passes under autocast, or None"""

    device: torch.device
    dtype: torch.dtype
    autocast_dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager[object]:
        """The region in which forward passes run."""
        low = self.autocast_dtype
        return nullcontext() if low is None else torch.autocast(self.device.type, dtype=low)

    def to_param_dtype(self, outputs: Tensor) -> Tensor:
        """A model's outputs as the loss takes them: in the parameters' precision where autocast lowered it."""
        return outputs.to(self.dtype) if self.autocast_dtype is not None and outputs.is_floating_point() else outputs


_MEMORY: Any = deterministic  # a module that is an object with properties, which its annotations do not say


def numerics(precision: Precision, device: torch.device, *, repeatable: bool = False) -> Numerics:
    """What `precision` means on `device`; sets whether float32 matrix products may use TF32.

    repeatable: also allow torch no algorithm whose result can differ between repeats
    Raises UsageError where the device cannot compute in it.
    """
    if repeatable:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
        torch.use_deterministic_algorithms(True)
        # nothing here reads memory before it is written, and filling it would be one more pass over each buffer
        _MEMORY.fill_uninitialized_memory = False
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UsageError("--precision tf32: needs a CUDA device of capability 8.0 or newer; use fp32 or bf16")
    if device.type == "cuda":
        _allow_tf32(precision == "tf32")
    return Numerics(
        device=device,
        dtype=torch.float64 if precision == "fp64" else torch.float32,
        autocast_dtype=torch.bfloat16 if precision == "bf16" else None,
    )


@contextmanager
def preserve_torch_flags() -> Iterator[None]:
    """What `numerics` sets for the whole process is afterwards as it was."""
    algorithms = torch.are_deterministic_algorithms_enabled()
    warns, fills = torch.is_deterministic_algorithms_warn_only_enabled(), _MEMORY.fill_uninitialized_memory
    try:
        with _tf32_kept():
            yield
    finally:
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if now != (algorithms, warns):  # to set it imports torch's compiler, which takes three seconds
            torch.use_deterministic_algorithms(algorithms, warn_only=warns)
        _MEMORY.fill_uninitialized_memory = fills


@contextmanager
def without_tf32() -> Iterator[None]:
    """Within, a GPU computes float32 products and convolutions in float32."""
    with _tf32_kept():
        _allow_tf32(False)
        yield


def _allow_tf32(allowed: bool) -> None:
    """Set torch's two generations of switches alike: with mixed ones, reading the older one raises RuntimeError."""
    backends = torch.backends
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = allowed
    for operations in _fp32_operations():
        operations.fp32_precision = "tf32" if allowed else "ieee"  # "none" would be what a script set for everything


@contextmanager
def _tf32_kept() -> Iterator[None]:
    """Put both generations of switches back; the older one cannot be read, and is left, where a script mixed them."""
    older: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed = [_read_allow_tf32(backend) for backend in older]
    precisions = [operations.fp32_precision for operations in _fp32_operations()]
    try:
        yield
    finally:
        for backend, value in zip(older, allowed, strict=True):
            if value is not None:
                backend.allow_tf32 = value
        for operations, precision in zip(_fp32_operations(), precisions, strict=True):
            operations.fp32_precision = precision


def _read_allow_tf32(backend: Any) -> bool | None:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return None


def _fp32_operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
